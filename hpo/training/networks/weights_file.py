"""Write and read weights files (safetensors, never pickle), and load networks from them.

A file is validated before its content is used: a damaged file, or one that does not match the network, raises HpoError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors import torch as tensors
from torch import nn

from hpo.errors import HpoError
from hpo.studyfile import NetworkSettings
from hpo.training.device_data import Shape
from hpo.training.networks.builtin import build_uninitialized
from hpo.training.networks.user_defined import in_type, with_id_check, with_output_check
from hpo.untrusted_files import open_regular_file, parse_json

State = dict[str, torch.Tensor]
"""A member's weights as its module's `load_state_dict` takes them: on the CPU, in the type used in training."""

ABOUT = "about"
"""The only key of a file's metadata; its value is JSON. Several keys would be written in random order."""

_NAMES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 int64 int32 int16 int8 uint8 uint16 uint32 uint64"
TYPES = frozenset(getattr(torch, name) for name in (*_NAMES.split(), "bool", "complex64"))
"""Types of tensors that a weights file can store."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_ELEMENT_BYTES = 8
"""Upper bound of the size of a number."""
HEADER_BYTES_PER_TENSOR = 1024
"""Upper bound of the size of a tensor's entry in a file's header."""
HEADER_BYTES = 2**20
"""Upper bound of the size of a header without the entries of tensors."""


def weights_to_bytes(state: State, about: Mapping[str, Any]) -> bytes:
    """Return the weights and the metadata `about` as a safetensors file; equal weights give equal bytes.

    Raises HpoError for a value that such a file cannot store: a sparse tensor, an unsupported type, or no tensor.
    """
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise HpoError(f"'{name}' is a {type(value).__name__}: a weights file stores tensors only")
        if value.layout != torch.strided or value.dtype not in TYPES:
            layout = "" if value.layout == torch.strided else f", {value.layout}"
            raise HpoError(f"'{name}' has type {value.dtype}{layout}, which no weights file stores; use another type")
    # Contiguous copies: safetensors refuses tensors that share memory.
    copies = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return tensors.save(copies, {ABOUT: json.dumps(dict(about))})


def read_weights(path: Path) -> tuple[State, dict[str, str]]:
    """Read a weights file; return the weights and the file's metadata.

    Raises HpoError where the file is missing, cannot be read or is damaged.
    """
    try:
        open_regular_file(path).close()
        with safetensors.safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = parse_json((file.metadata() or {}).get(ABOUT, "{}"))
        if not isinstance(about, dict):
            raise ValueError("its metadata is not a JSON object")
        return state, about
    except FileNotFoundError as error:
        raise HpoError(f"{path}: no such file") from error
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise HpoError(f"{path}: its weights cannot be read: damaged or truncated ({reason})") from error


def max_weights_bytes(network: nn.Module) -> int:
    """Return an upper bound for the size of a network's weights file, in bytes."""
    sizes: list[int] = [each.numel() for each in network.state_dict().values() if isinstance(each, torch.Tensor)]
    return HEADER_BYTES + len(sizes) * HEADER_BYTES_PER_TENSOR + MAX_ELEMENT_BYTES * sum(sizes)


def load_network(path: Path, state: State, settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return the network with these weights, in the type of the weights and in evaluation mode.

    `path` is the weights' file, for error messages. Raises HpoError for weights of other names, shapes or types than
    the network's, and for weights that are not finite.
    """
    network = build_uninitialized(settings, shape, classes)
    expected = {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}
    # Check all weights before any is used: the file may come from an untrusted source.
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in expected.items()}:
        raise HpoError(f"{path}: its weights do not match the described network")
    for name, value in expected.items():
        if state[name].dtype not in (value.dtype, *(FLOATS if value.dtype.is_floating_point else ())):
            raise HpoError(
                f"{path}: its weights do not have the described network's type ({name}: {state[name].dtype})"
            )
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise HpoError(f"{path}: its weights do not match the described network") from error
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise HpoError(f"{path}: its weights are NaN or infinite ({name})")
    dtype = next((parameter.dtype for parameter in network.parameters()), None)
    if dtype is None:
        raise HpoError(f"{path}: the described network has no parameters")
    return with_output_check(with_id_check(in_type(network, dtype), settings), classes, settings).eval()
