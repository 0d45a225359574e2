"""Dropout of K members in stacked form: a rate each, and masks of their own seeds.

Knows nothing of networks or trials: keys come from whoever trains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpo.training.randomness import mixed_counters, random_words
from hpo.training.stacking.parameter_blocks import ParameterSlot
from hpo.training.stacking.trace import require


class Dropout:
    """`nn.Dropout` of K members, a rate each: kept elements are scaled by 1 / (1 - rate), as torch does.

    Masks come from the members' own keys, which `set_keys` brings before each step.
    """

    def __init__(self, name: str, modules: Sequence[nn.Dropout | nn.Dropout1d | nn.Dropout2d]) -> None:
        self._rates = torch.tensor([module.p for module in modules], dtype=torch.float64)
        self._counters = torch.empty(0, dtype=torch.int64)
        self._keys: Tensor | None = None
        self._prepare()

    def _prepare(self) -> None:
        # A 16-bit number in [-32768, 32767] is dropped where it is below the threshold: rates are met to 1 / 65536.
        thresholds = (self._rates * 65536).round().sub_(32768)
        self._thresholds = thresholds.clamp_(max=32767).to(torch.int16).unsqueeze(1)
        self._scales = torch.where(self._rates < 1, 1 / (1 - self._rates), 0.0).unsqueeze(1)
        self._any = bool((self._rates > 0).any())

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """No parameters."""

    def select(self, members: Tensor) -> None:
        """Keep these members' rates."""
        self._rates = self._rates[members.cpu()]
        self._prepare()

    def buffers(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def set_keys(self, keys: Tensor) -> None:
        """Take the keys of the coming step's masks, [K, 1]."""
        self._keys = keys

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """[K, B, ...], or [B, ...] -> [K, B, ...]."""
        if not stacked:  # members share the input, but not what the layer makes of it
            x = x.expand(len(self._rates), *x.shape)
        if not training or not self._any:
            return x
        return self._drop(x)

    def _drop(self, x: Tensor) -> Tensor:
        # Elements are counted in the order in which they lie in memory, so that mask and activation agree in strides.
        if x.dim() == 3 and x.stride(1) < x.stride(2):
            return x * self._kept((x.shape[2], x.shape[1]), x).transpose(1, 2)
        return x * self._kept(x.shape[1:], x)

    def _kept(self, shape: Sequence[int], x: Tensor) -> Tensor:
        """Return 0 for what is dropped and 1 / (1 - rate) for what is kept, [K, *shape]."""
        assert self._keys is not None, "set_keys comes before a training step"
        count = math.prod(shape)
        if self._counters.numel() * 4 < count or self._counters.device != x.device:
            self._counters = mixed_counters(count, x.device)
        # Once moved to the device they stay there: a copy a step would have it wait for the host.
        self._thresholds, self._scales = self._thresholds.to(x.device), self._scales.to(x.device, x.dtype)
        words = random_words(self._keys, count, self._counters)
        # Compared straight into numbers: on a CPU, operations on truth values are several times as slow.
        kept = torch.empty(words.shape, dtype=x.dtype, device=x.device)
        return torch.ge(words, self._thresholds, out=kept).mul_(self._scales).view(-1, *shape)


class ChannelDropout(Dropout):
    """`nn.Dropout1d` and `nn.Dropout2d` of K members: whole channels are dropped."""

    def __init__(self, name: str, modules: Sequence[nn.Dropout1d | nn.Dropout2d]) -> None:
        super().__init__(name, modules)
        self._name, self._rank = name, 4 if isinstance(modules[0], nn.Dropout2d) else 3

    def _drop(self, x: Tensor) -> Tensor:
        require(x.dim() == self._rank + 1, f"layer '{self._name}'", f"its input must have {self._rank} dimensions")
        return x * self._kept(x.shape[1:3], x).view(*x.shape[:3], *[1] * (x.dim() - 3))
