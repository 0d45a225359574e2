"""Exponential moving averages of the weights (`training.ema`), with a decay per member.

They are those of torch.optim.swa_utils.AveragedModel with get_ema_multi_avg_fn and `use_buffers=False`: updated after
each step, equal to the weights after the first one. Buffers, such as the statistics of batch norm, are not averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hpo.training.networks.weights_file import State
from hpo.training.stacking.parameter_blocks import ParameterBlocks


class WeightAverages:
    """Averages of the master values of K members. A member whose decay is 0 has its weights as they are.

    `frozen` are the members' averages to continue from, None for one whose decay is 0; empty before the first step.
    """

    def __init__(self, blocks: ParameterBlocks, decays: Sequence[float], frozen: Sequence[State | None] = ()) -> None:
        self._blocks = blocks
        self._averages: list[Tensor] = []  # one a block, [K, elements]; none before the first update
        self._use_decays(list(decays))
        if frozen and any(decays):
            self._averages = [block.master.clone() for block in blocks.blocks]
            views = blocks.split(self._averages)
            for member, averages in enumerate(frozen):
                own = blocks.of_member(member, views)
                for name, value in (averages or {}).items():
                    own[name].copy_(value)

    def _use_decays(self, decays: list[float]) -> None:
        self._decays = decays
        self._weights = self._blocks.blocks[0].master.new_tensor([1 - decay for decay in decays]).unsqueeze(1)

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the weights. Call it after the optimizer's step."""
        if not self._averages and any(self._decays):
            self._averages = [block.master.clone() for block in self._blocks.blocks]
        else:
            for average, block in zip(self._averages, self._blocks.blocks, strict=False):
                average.lerp_(block.master, self._weights)

    @contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """Replace the weights by their averages within the context."""
        trained = [block.master.clone() for block in self._blocks.blocks] if self._averages else []
        self._set_masters(self._averages)
        try:
            yield
        finally:
            self._set_masters(trained)

    @torch.no_grad()
    def _set_masters(self, values: Sequence[Tensor]) -> None:
        for block, value in zip(self._blocks.blocks, values, strict=False):
            block.master.copy_(value)
        if values:
            self._blocks.refresh()

    def freeze(self, member: int) -> State | None:
        """Return a copy, on the CPU, of the averages of one member, by index; None if its decay is 0."""
        if not self._decays[member]:
            return None
        own = self._blocks.of_member(member, self._blocks.split(self._averages))
        return {name: value.clone().cpu() for name, value in own.items()}

    def select(self, members: Tensor) -> None:
        """Reduce the averages to these members, ascending indices, [n] int64. Call it after the blocks' `select`."""
        self._use_decays([self._decays[index] for index in members.tolist()])
        self._averages = [average[members] for average in self._averages] if any(self._decays) else []
