"""Stacked convolutions over images and sequences.

A convolution's output is [K, B, C, H, W] logically; its memory order is [B, H, W, K, C].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.training.stacking.layers import WeightedLayer, apply
from hpo.training.stacking.parameter_blocks import ParameterSlot


class _ConvFunction(torch.autograd.Function):
    """Convolution of K members, [K, B, C, H, W] or [B, C, H, W] -> [K, B, C', H', W']."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slots: tuple[ParameterSlot, ParameterSlot | None],
        layer: Conv,
        is_normalized: bool,
    ) -> Tensor:
        members, merged = len(weight), _can_merge(x)
        images, kernels = _split_members(x, merged), _split_members(weight, merged, channel=0)
        biases: Sequence[Tensor | None] = [None] * len(kernels)
        if bias is not None:
            biases = _split_members(bias, merged, channel=0)
        ctx.save_for_backward(*images, *kernels)
        ctx.slots, ctx.shared, ctx.merged = slots, x.dim() == 4, merged
        ctx.settings, ctx.cancels = layer.settings, is_normalized
        ctx.groups = layer.groups * (members if merged and not ctx.shared else 1)
        settings: tuple[Any, Any, Any] = ctx.settings
        out = [
            F.conv2d(image, kernel, each, *settings, ctx.groups)
            for image, kernel, each in zip(images, kernels, biases, strict=True)
        ]
        return _join_members(out, members, merged)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        count = len(ctx.saved_tensors) // 2
        images, kernels = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        weight_slot, bias_slot = ctx.slots
        members, needs_input = len(weight_slot.value), ctx.needs_input_grad[0]
        needs_bias = bias_slot is not None and not ctx.cancels
        found = [
            torch.ops.aten.convolution_backward(
                grad,
                image,
                kernel,
                [len(kernel)] if needs_bias else None,
                *ctx.settings,
                False,
                [0, 0],
                ctx.groups,
                [needs_input, True, needs_bias],
            )
            for grad, image, kernel in zip(_split_members(grads[0], ctx.merged), images, kernels, strict=True)
        ]
        weight_slot.write(lambda into: into.copy_(torch.cat([part[1] for part in found]).view_as(into)))
        if needs_bias:
            bias_slot.write(lambda into: into.copy_(torch.cat([part[2] for part in found]).view_as(into)))
        elif bias_slot is not None:
            bias_slot.write(Tensor.zero_)
        if not needs_input:
            return None, None, None, None, None, None
        if ctx.shared:
            return found[0][0], None, None, None, None, None
        return _join_members([part[0] for part in found], members, ctx.merged), None, None, None, None, None


def _can_merge(x: Tensor) -> bool:
    """Return whether one convolution computes all members: as groups, or as channels if they share the input.

    Not in bfloat16 on a CPU: a grouped convolution there computes neighbouring groups in one block, masked with zeros,
    so that a NaN of one member reaches the others (0 x NaN is NaN). One convolution per member is also faster there.
    """
    return x.dim() == 4 or x.dtype != torch.bfloat16 or x.device.type != "cpu"


def _split_members(x: Tensor, merged: bool, channel: int = 1) -> list[Tensor]:
    """Return the stacked tensor as one tensor with the channels of all members if `merged`, else one per member.

    `channel` is the dimension of the channels in one member's tensor. Images are made channels-last, with which
    convolutions are up to 5 times as fast.
    """
    if not merged:
        parts = list(x.unbind(0))
    elif channel == 0:
        parts = [x.flatten(0, 1)]
    else:
        parts = [x if x.dim() == 4 else x.transpose(0, 1).flatten(1, 2)]
    return parts if channel == 0 else [_channels_last(part) for part in parts]


def _channels_last(images: Tensor) -> Tensor:
    """Return images [B, C, H, W] whose strides are those of channels-last images, also for one channel.

    The order of one channel in memory is that of both layouts, and torch takes it for the slow one unless the strides
    are those of the other.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = images.shape
    return images.as_strided(images.shape, (channels * height * width, 1, channels * width, channels))


def _join_members(parts: list[Tensor], members: int, merged: bool) -> Tensor:
    """Return the parts, as `_split_members` makes them, as one tensor [K, B, C, H, W]."""
    if merged:
        return torch.unflatten(parts[0], 1, (members, -1)).transpose(0, 1)
    return torch.stack([part.permute(0, 2, 3, 1) for part in parts]).permute(0, 1, 4, 2, 3)


class Conv(WeightedLayer):
    """Stacked form of `nn.Conv2d` and `nn.Conv1d`: one grouped convolution. A sequence is an image with one row."""

    def __init__(self, name: str, modules: Sequence[nn.Conv1d | nn.Conv2d]) -> None:
        module = modules[0]
        super().__init__(name, module)
        self.groups, self._has_rows = module.groups, isinstance(module, nn.Conv2d)
        settings = (module.stride, _padding(module), module.dilation)
        self.settings: tuple[Any, ...] = settings if self._has_rows else tuple(map(_with_row, settings, (1, 0, 1)))

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """Return [K, B, C', H', W'] for [K, B, C, H, W] or [B, C, H, W]; without H for `nn.Conv1d`."""
        bias, weight = self.bias, self.weight.value
        if not self._has_rows:
            x, weight = x.unsqueeze(-2), weight.unsqueeze(-2)
        unbatched = x.dim() - stacked == 3  # one image, [C, H, W], as torch allows
        if unbatched:
            x = x.unsqueeze(-4)
        if not stacked and self.groups > 1:  # the module's groups would mix the channels of different members
            x = x.expand(len(weight), *x.shape)
        is_normalized = self.is_normalized and not unbatched
        out = apply(_ConvFunction, x, weight, bias and bias.value, (self.weight, bias), self, is_normalized)
        out = out.squeeze(-4) if unbatched else out
        return out if self._has_rows else out.squeeze(-2)


def _padding(module: nn.Conv1d | nn.Conv2d) -> Any:
    """Return the padding in numbers, which is the same on both sides: stacked_network.py refuses anything else."""
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return (0,) * len(module.kernel_size) if module.padding == "valid" else module.padding


def _with_row(setting: Any, row_value: int) -> tuple[Any, ...]:
    """Return a one-dimensional setting for two dimensions: `row_value` for the rows."""
    return (row_value, *setting)
