"""Weights as safetensors files, never pickles, and networks made of them.

What is read is checked before it is used: a file that is damaged, or not of the network that it is read for, is an
error of one line. Knows nothing of where files lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors import torch as tensors
from torch import nn

from hpo.errors import HpoError
from hpo.studyfile import NetworkSettings
from hpo.training.device_split import Shape
from hpo.training.networks.builtin import build_uninitialized
from hpo.training.networks.user_defined import in_type, with_output_check
from hpo.untrusted_files import open_regular_file, parse_json

State = dict[str, torch.Tensor]
"""A member's weights as its module's `load_state_dict` takes them: on the CPU, in the type that was trained."""

ABOUT = "about"
"""The one key of a file's metadata, as JSON: several would be written in an order of chance."""

_NAMES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 uint16 uint32 uint64"
TYPES = frozenset(getattr(torch, name) for name in (*_NAMES.split(), "bool", "complex64"))
"""What a file of weights can hold, and is read back as."""


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_ELEMENT_BYTES = 8  # bytes of a number
TENSOR = 1024  # bytes of what a file's header says of a tensor
HEADER = 2**20  # bytes of what it says besides


def weights_to_bytes(state: State, about: Mapping[str, str]) -> bytes:
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


def read_weights(path: Path) -> tuple[State, dict[str, str]]:
    """Read a file of weights; return them with what it says about them."""
    try:
        open_regular_file(path).close()
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = parse_json((file.metadata() or {}).get(ABOUT, "{}"))
        if not isinstance(about, dict):
            raise ValueError("its metadata is no table")
        return state, about
    except FileNotFoundError as error:
        raise HpoError(f"{path}: no such file") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        said = " ".join(str(error).split())
        raise HpoError(f"{path}: its weights cannot be read: damaged or cut short ({said})") from error


def max_weights_bytes(network: nn.Module) -> int:
    """Return how large a file of a network's weights is at most."""
    tensors = [each for each in network.state_dict().values() if isinstance(each, torch.Tensor)]
    sizes: list[int] = [each.numel() for each in tensors]
    return HEADER + len(sizes) * TENSOR + MAX_ELEMENT_BYTES * sum(sizes)


def load_network(path: Path, state: State, settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return the network with these weights, which were read from `path`, in their own type and for inference."""
    network = build_uninitialized(settings, shape, classes)
    wanted = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    described = "the network that is described with them"
    # Nothing of them is used before all of it fits: they may come from anywhere.
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in wanted.items()}:
        raise HpoError(f"{path}: its weights are not those of {described}")
    for name, value in wanted.items():
        if state[name].dtype not in (value.dtype, *(FLOATS if value.dtype.is_floating_point else ())):
            raise HpoError(f"{path}: its weights are not of the type of {described} ({name}: {state[name].dtype})")
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise HpoError(f"{path}: its weights are not those of {described}") from error
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise HpoError(f"{path}: its weights are NaN or infinite ({name})")
    kind = next((parameter.dtype for parameter in network.parameters()), None)
    if kind is None:
        raise HpoError(f"{path}: its weights are not those of a network: it has nothing to train")
    return with_output_check(in_type(network, kind), classes, settings).eval()
