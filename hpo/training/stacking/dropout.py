"""Stacked dropout: a rate per member, and masks that depend on the member's key only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpo.training.randomness import mixed_counters, random_words
from hpo.training.stacking.layers import StackedLayer
from hpo.training.stacking.tracing.trace import require


class Dropout(StackedLayer):
    """Stacked form of `nn.Dropout` with a rate per member; the remaining elements are scaled by 1 / (1 - rate).

    Call `set_keys` before each training step: the masks are derived from the members' keys
    (hpo/training/randomness.py).
    """

    def __init__(self, name: str, modules: Sequence[nn.Dropout | nn.Dropout1d | nn.Dropout2d]) -> None:
        self._rates = torch.tensor([module.p for module in modules], dtype=torch.float64)
        self._counters = torch.empty(0, dtype=torch.int64)
        self._keys: Tensor | None = None
        self._own: list[tuple[int, ...]] = []
        self._prepare()

    def pad(self, shapes: Sequence[tuple[int, ...]]) -> None:
        """Draw each member's mask as it is drawn alone, in its own shape of one example; the stack's may be larger."""
        self._own = list(shapes) if len(set(shapes)) > 1 else []

    def _prepare(self) -> None:
        # An element is dropped if its number in [-32768, 32767] is below the threshold: rates are exact to 1 / 65536.
        thresholds = (self._rates * 65536).round().sub_(32768)
        self._thresholds = thresholds.clamp_(max=32767).to(torch.int16).unsqueeze(1)
        self._scales = torch.where(self._rates < 1, 1 / (1 - self._rates), 0.0).unsqueeze(1)
        self._drops_any = bool((self._rates > 0).any())

    def select(self, members: Tensor) -> None:
        """Reduce the rates to these members."""
        self._rates = self._rates[members.cpu()]
        self._own = [self._own[index] for index in members.tolist()] if self._own else []
        self._prepare()

    @property
    def dropouts(self) -> Sequence[Dropout]:
        """Return the layer itself."""
        return [self]

    def drops(self, training: bool) -> bool:
        """Return whether a call drops any element."""
        return training and self._drops_any

    def set_keys(self, keys: Tensor) -> None:
        """Set the keys of the next step's masks, [K, 1] int64."""
        if self._drops_any:
            self._keys = keys[: len(self._rates)]  # the first members may be all that have this layer

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """Return [K, B, ...] for [K, B, ...] or [B, ...]."""
        if not stacked:
            x = x.expand(len(self._rates), *x.shape)
        return self._drop(x) if self.drops(training) else x

    def mask_of_units(self, x: Tensor) -> Tensor:
        """Return the factors of an activation whose batch comes last, `x` [K, units, B] and contiguous."""
        return self._mask(x.shape[1:], x)  # padding comes last: the own elements' numbers are the same

    def scales(self, x: Tensor) -> Tensor:
        """Return the members' factors of the elements that remain, [K, 1], in the type of `x`."""
        return self._scales.to(x.device, x.dtype)

    def _drop(self, x: Tensor) -> Tensor:
        # Elements are numbered in their memory order, so that mask and activation have the same strides.
        if x.dim() == 3 and x.stride(1) < x.stride(2):
            return x * self.mask_of_units(x.transpose(1, 2)).transpose(1, 2)
        return x * self._padded_mask(x.shape[1:], x)

    def _padded_mask(self, shape: Sequence[int], x: Tensor) -> Tensor:
        """Return the factors of `_mask`, drawn for each own shape; they are 1 in the padding."""
        if all(own[: len(shape) - 1] == tuple(shape[1:]) for own in self._own):
            return self._mask(shape, x)
        mask = torch.ones(len(x), *shape, dtype=x.dtype, device=x.device)
        start = 0
        for own, group in itertools.groupby(self._own):
            end = start + len(list(group))
            sizes = (shape[0], *own[: len(shape) - 1])
            mask[(slice(start, end), *map(slice, sizes))] = self._mask(sizes, x, slice(start, end))
            start = end
        return mask

    def _mask(self, shape: Sequence[int], x: Tensor, members: slice | None = None) -> Tensor:
        """Return factors [K, *shape], of the type of `x`: 0 to drop an element, else 1 / (1 - rate)."""
        count = math.prod(shape)
        keys, counters, thresholds, scales = self.mask_numbers(count, x, members)
        words = random_words(keys, count, counters)
        # Compare in place, into integers: on a CPU, operations on booleans are several times as slow.
        return words.ge_(thresholds).to(x.dtype).mul_(scales).view(-1, *shape)

    def mask_numbers(
        self, count: int, x: Tensor, members: slice | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what masks of `count` elements are computed from: keys, counters, thresholds and scales.

        The counters are those of `random_words`. The others are [K, 1]: an element remains if its number is at least
        the threshold, and is multiplied by the scale.
        """
        assert self._keys is not None, "call set_keys before a training step"
        if self._counters.numel() * 4 < count or self._counters.device != x.device:
            self._counters = mixed_counters(count, x.device)
        # Move them to the device once: a copy in each step would make the device wait for the host.
        self._thresholds, self._scales = self._thresholds.to(x.device), self.scales(x)
        of_all = self._keys, self._thresholds, self._scales
        keys, thresholds, scales = of_all if members is None else (each[members] for each in of_all)
        return keys, self._counters, thresholds, scales


class ChannelDropout(Dropout):
    """Stacked form of `nn.Dropout1d` and `nn.Dropout2d`, which drop whole channels."""

    def __init__(self, name: str, modules: Sequence[nn.Dropout1d | nn.Dropout2d]) -> None:
        super().__init__(name, modules)
        self._name, self._rank = name, 4 if isinstance(modules[0], nn.Dropout2d) else 3

    def _drop(self, x: Tensor) -> Tensor:
        require(x.dim() == self._rank + 1, f"layer '{self._name}'", f"its input must have {self._rank} dimensions")
        return x * self._padded_mask(x.shape[1:3], x).view(*x.shape[:3], *[1] * (x.dim() - 3))
