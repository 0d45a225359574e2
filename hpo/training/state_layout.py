"""Layout of a member's training state: names, shapes and types of the tensors that its configuration requires.

A state from a file is compared with the layout before it is used, so a wrong file cannot fail the training later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpo.studyfile import Config
from hpo.training.device_data import Shape
from hpo.training.networks.builtin import build_uninitialized
from hpo.training.networks.user_defined import in_type
from hpo.training.networks.weights_file import HEADER_BYTES, HEADER_BYTES_PER_TENSOR, State
from hpo.training.optimizers.rules import RULES
from hpo.training.stack import DTYPES, MemberState

MAX_BUFFER_BYTES = 2**30
"""Upper limit of the buffers of a user-defined network, whose forward may replace them by larger ones."""

Tensors = Mapping[str, tuple[torch.Size, torch.dtype]]
"""Tensor's name -> its shape and type."""


@dataclass(frozen=True)
class StateLayout:
    """The tensors of a member's state.

    A network has the tensors `fixed`, and may have those named in `free`, of any shape and type: the buffers of a
    user-defined network. The optimizer has `moments` state tensors for each of the `trained` parameters. It updates
    them in every step, unless `may_lack_gradients`: those of a user-defined network. All these tensors are there once
    for each of the `folds`. `plateau` says whether there is a state of a plateau schedule, `averaged` whether there are
    averages of the trained parameters.
    """

    fixed: Tensors
    free: frozenset[str]
    trained: Tensors
    moments: int
    may_lack_gradients: bool
    plateau: bool = False
    averaged: bool = False
    folds: int = 1

    @property
    def max_bytes(self) -> int:
        """Upper limit of the size of a file of this state and the weights of the best epoch, without its curve."""
        sizes = [
            HEADER_BYTES_PER_TENSOR + len(name) + math.prod(shape) * dtype.itemsize
            for part in [*2 * [self.fixed], *(self.moments + self.averaged) * [self.trained]]
            for name, (shape, dtype) in part.items()
        ]
        return HEADER_BYTES + self.folds * (sum(sizes) + (2 * MAX_BUFFER_BYTES if self.free else 0))

    def check(self, state: MemberState, best: State | None, steps: Sequence[int]) -> None:
        """Raise ValueError unless state and best weights, where there are any, have this layout.

        `steps` are the numbers of training steps up to the state's epoch, one for each fold.
        """
        if len(state.folds) != self.folds:
            raise ValueError(f"it has the states of {len(state.folds)} folds instead of {self.folds}")
        for fold, steps_of_fold in zip(state.folds, steps, strict=True):
            self._check_fold(fold, steps_of_fold)
        if best is not None:
            _check("best weights", best, self.fixed, self.free)

    def _check_fold(self, state: MemberState, steps: int) -> None:
        _check("network", state.network, self.fixed, self.free)
        if len(state.optimizer.states) != self.moments or state.optimizer.steps.keys() != self.trained.keys():
            raise ValueError("its optimizer state is that of another optimizer")
        if (state.optimizer.plateau is not None) != self.plateau:
            raise ValueError("its optimizer state is that of another schedule")
        for moments in state.optimizer.states:
            _check("optimizer", moments, self.trained)
        if (state.averages is not None) != self.averaged:
            raise ValueError("it has averages of the weights, or lacks them")
        if state.averages is not None:
            _check("averages", state.averages, self.trained)
        updates = set(state.optimizer.steps.values())
        if max(updates, default=0) > steps or (not self.may_lack_gradients and updates - {steps}):
            raise ValueError(f"its optimizer has not made the {steps} updates of {state.epoch} epochs")


def state_layout(config: Config, shape: Shape, classes: int, precision: str, folds: int = 1) -> StateLayout:
    """Return the layout of the states of a configuration's members, trained in `precision`, a key of `DTYPES`.

    Raises what the construction of the network raises.
    """
    network = in_type(build_uninitialized(config.network, shape, classes), DTYPES[precision])
    weights = network.state_dict()
    fixed, free = weights, frozenset[str]()
    if config.network.kind == "module":
        fixed = dict(network.named_parameters(remove_duplicate=False))
        buffers = {f"{path}.{name}" if path else name for path, m in network.named_modules() for name in m._buffers}
        free = frozenset({*weights, *buffers} - fixed.keys())
    trained = {name: value for name, value in network.named_parameters() if value.requires_grad}
    moments, is_module = RULES[config.optimizer.kind][1], config.network.kind == "module"
    plateau, averaged = config.optimizer.schedule == "plateau", config.training.ema > 0
    return StateLayout(_tensors(fixed), free, _tensors(trained), moments, is_module, plateau, averaged, folds)


def _tensors(values: Mapping[str, Any]) -> Tensors:
    return {name: (value.shape, value.dtype) for name, value in values.items() if isinstance(value, Tensor)}


def _check(part: str, values: State, fixed: Tensors, free: frozenset[str] = frozenset()) -> None:
    found = _tensors(values)
    if not fixed.keys() <= found.keys() <= fixed.keys() | free:
        raise ValueError(f"its {part} has other tensors than the described network")
    for name, tensor in fixed.items():
        if found[name] != tensor:
            raise ValueError(f"its {part} has another shape or type than the described network ({name[:60]!r})")
