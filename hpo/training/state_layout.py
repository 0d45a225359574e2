"""Layout of a member's training state: names, shapes and types of the tensors that its configuration requires.

A state from a file is compared with the layout before it is used, so a wrong file cannot fail the training later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpo.studyfile import Config
from hpo.training.device_data import Shape
from hpo.training.networks.builtin import build_uninitialized
from hpo.training.networks.user_defined import in_type, values_of
from hpo.training.networks.weights_file import HEADER_BYTES, HEADER_BYTES_PER_TENSOR, State
from hpo.training.optimizers import RULES
from hpo.training.stack import DTYPES, MemberState

Tensors = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Tensor's name -> its shape and type."""


@dataclass(frozen=True)
class StateLayout:
    """The tensors of a member's state.

    `weights` are those of the module's state, `parameters` those that are trained; a state of the network has the
    weights, and may have the `buffers` that are not part of a module's state. The optimizer has `moments` state tensors
    for each parameter.
    """

    weights: Tensors
    buffers: Tensors
    parameters: Tensors
    moments: int

    @property
    def max_bytes(self) -> int:
        """Upper limit of the size of a file of this state and the weights of the best epoch, without its curve."""
        parts = [*2 * [self.weights], self.buffers, *self.moments * [self.parameters]]
        return HEADER_BYTES + sum(
            HEADER_BYTES_PER_TENSOR + len(name) + math.prod(shape) * dtype.itemsize
            for part in parts
            for name, (shape, dtype) in part.items()
        )

    def check(self, state: MemberState, best: State | None) -> None:
        """Raise ValueError unless state and best weights, where there are any, have this layout."""
        _check("network", state.network, self.weights, self.buffers)
        if len(state.optimizer.states) != self.moments or state.optimizer.steps.keys() != self.parameters.keys():
            raise ValueError("its optimizer state is that of another optimizer")
        for moments in state.optimizer.states:
            _check("optimizer", moments, self.parameters, {})
        if best is not None:
            _check("best weights", best, self.weights, {})


def state_layout(config: Config, shape: Shape, classes: int, precision: str) -> StateLayout:
    """Return the layout of the states of a configuration's members, trained in `precision`, a key of `DTYPES`.

    Raises what the construction of the network raises.
    """
    network = in_type(build_uninitialized(config.network, shape, classes), DTYPES[precision])
    weights = _tensors(network.state_dict())
    others = {name: each for name, each in _tensors(values_of(network)).items() if name not in weights}
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return StateLayout(weights, others, _tensors(parameters), RULES[config.optimizer.kind][1])


def _tensors(values: Mapping[str, Any]) -> Tensors:
    return {name: (value.shape, value.dtype) for name, value in values.items() if isinstance(value, Tensor)}


def _check(part: str, values: State, required: Tensors, optional: Tensors) -> None:
    found, possible = _tensors(values), {**optional, **required}
    if not required.keys() <= found.keys() <= possible.keys():
        raise ValueError(f"its {part} has other tensors than the described network")
    for name, tensor in found.items():
        if tensor != possible[name]:
            raise ValueError(f"its {part} has another shape or type than the described network ({name[:60]!r})")
