"""Weights as safetensors files, never pickles, and networks made of them.

What is read is checked before it is used: a file that is damaged, or not of the network that it is read for, is an
error of one line. Knows nothing of where files lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import safetensors
import torch
from safetensors import torch as tensors
from torch import nn

from hpo.errors import HpoError
from hpo.studyfile import NetworkSettings
from hpo.training.images import Shape
from hpo.training.networks import build
from hpo.training.outputs import watched
from hpo.training.own_networks import in_type
from hpo.training.stack import State

ABOUT = "about"
"""The one key of a file's metadata, as JSON: several would be written in an order of chance."""

_NAMES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 uint16 uint32 uint64"
TYPES = frozenset(getattr(torch, name) for name in (*_NAMES.split(), "bool", "complex64"))
"""What a file of weights can hold, and is read back as."""


def to_bytes(state: State, about: Mapping[str, str]) -> bytes:
    """Return the weights as a safetensors file, with what there is to say about them; equal weights, equal bytes.

    Raises HpoError for what such a file cannot hold: a sparse tensor, a type that it does not know, no tensor at all.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise HpoError(f"'{name}' is a {type(value).__name__}, and a file of weights holds tensors only")
        if value.layout != torch.strided or value.dtype not in TYPES:
            kind = "" if value.layout == torch.strided else f", {value.layout}"
            raise HpoError(f"'{name}' is of {value.dtype}{kind}, which no file of weights holds; use another type")
    # Memory of its own for each, in the order of its elements: what two names share is written for both.
    whole = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return tensors.save(whole, {ABOUT: json.dumps(dict(about))})


def read(path: Path) -> tuple[State, dict[str, str]]:
    """Read a file of weights; return them with what it says about them."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
        if not isinstance(about, dict):
            raise ValueError("its metadata is no table")
        return state, about
    except FileNotFoundError as error:
        raise HpoError(f"{path}: no such file") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        said = " ".join(str(error).split())
        raise HpoError(f"{path}: its weights cannot be read: damaged or cut short ({said})") from error


def network_of(path: Path, state: State, settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return the network with these weights, which were read from `path`, in their own type and for inference."""
    # No memory and no random numbers for weights that are about to be replaced. But a module of the user's own may keep
    # tensors that are not among its weights, or look at values.
    where = nullcontext() if settings.kind == "module" else torch.device("meta")
    with where:
        network = build(settings, shape, classes, seed=0)
    tensors_of = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    types = {name: value.dtype.is_floating_point for name, value in tensors_of.items()}
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise HpoError(f"{path}: its weights are not those of the network that is described with them") from error
    if any(state[name].dtype.is_floating_point != floating for name, floating in types.items()):
        raise HpoError(f"{path}: its weights are not of the type of the network that is described with them")
    if settings.kind == "module":
        network = in_type(network, next(network.parameters()).dtype)
    return watched(network, classes, settings).eval()
