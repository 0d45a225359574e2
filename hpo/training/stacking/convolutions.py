"""Convolutions of K members in stacked form, over images and over sequences.

A convolution's output lies in memory as [B, H, W, K, C], logically it is [K, B, C, H, W]. Knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.training.stacking.layers import Weighted, apply
from hpo.training.stacking.parameter_blocks import ParameterSlot


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slots: tuple[ParameterSlot, ParameterSlot | None],
        layer: Conv,
    ) -> Tensor:
        members, together = len(weight), _runs_together(x)
        images, kernels = _parts(x, together), _parts(weight, together, channel=0)
        biases: Sequence[Tensor | None] = [None] * len(kernels) if bias is None else _parts(bias, together, channel=0)
        ctx.save_for_backward(*images, *kernels)
        ctx.slots, ctx.shared, ctx.together = slots, x.dim() == 4, together
        ctx.settings = layer.settings
        ctx.groups = layer.groups * (members if together and not ctx.shared else 1)
        settings: tuple[Any, Any, Any] = ctx.settings
        out = [
            F.conv2d(image, kernel, each, *settings, ctx.groups)
            for image, kernel, each in zip(images, kernels, biases, strict=True)
        ]
        return _whole(out, members, together)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        count = len(ctx.saved_tensors) // 2
        images, kernels = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        weight_slot, bias_slot = ctx.slots
        members, needs_input = len(weight_slot.value), ctx.needs_input_grad[0]
        found = [
            torch.ops.aten.convolution_backward(
                grad,
                image,
                kernel,
                [len(kernel)] if bias_slot is not None else None,
                *ctx.settings,
                False,
                [0, 0],
                ctx.groups,
                [needs_input, True, bias_slot is not None],
            )
            for grad, image, kernel in zip(_parts(grads[0], ctx.together), images, kernels, strict=True)
        ]
        weight_slot.write(lambda into: into.copy_(torch.cat([part[1] for part in found]).view_as(into)))
        if bias_slot is not None:
            bias_slot.write(lambda into: into.copy_(torch.cat([part[2] for part in found]).view_as(into)))
        if not needs_input:
            return None, None, None, None, None
        if ctx.shared:
            return found[0][0], None, None, None, None
        return _whole([part[0] for part in found], members, ctx.together), None, None, None, None


def _runs_together(x: Tensor) -> bool:
    """Return whether one convolution serves all members: as groups, or as channels where they share the input.

    Not in bfloat16 on a CPU: grouped convolutions there compute neighbouring groups in one block, masked with zeros,
    so that one member's NaN reaches the others (0 x NaN is NaN); and one by one they are faster too.
    """
    return x.dim() == 4 or x.dtype != torch.bfloat16 or x.device.type != "cpu"


def _parts(x: Tensor, together: bool, channel: int = 1) -> list[Tensor]:
    """Return the stacked tensor as one with all members' channels, or as a tensor a member.

    Images have their channels innermost in memory: convolutions are up to 5 times as fast so.
    """
    if not together:
        parts = list(x.unbind(0))
    elif channel == 0:
        parts = [x.flatten(0, 1)]
    else:
        parts = [x if x.dim() == 4 else x.transpose(0, 1).flatten(1, 2)]
    return parts if channel == 0 else [part.contiguous(memory_format=torch.channels_last) for part in parts]


def _whole(parts: list[Tensor], members: int, together: bool) -> Tensor:
    """Return what `_parts` took apart, [K, B, C, H, W]."""
    if together:
        return torch.unflatten(parts[0], 1, (members, -1)).transpose(0, 1)
    return torch.stack([part.permute(0, 2, 3, 1) for part in parts]).permute(0, 1, 4, 2, 3)


class Conv(Weighted):
    """`nn.Conv2d` and `nn.Conv1d` of K members: one grouped convolution. A sequence is an image of one row."""

    def __init__(self, name: str, modules: Sequence[nn.Conv1d | nn.Conv2d]) -> None:
        module = modules[0]
        super().__init__(name, module)
        self.groups, self._rows = module.groups, isinstance(module, nn.Conv2d)
        settings = (module.stride, _padding(module), module.dilation)
        self.settings: tuple[Any, ...] = settings if self._rows else tuple(map(_of_a_row, settings, (1, 0, 1)))

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """[K, B, C, H, W] or [B, C, H, W] -> [K, B, channels, H', W']; without H for `nn.Conv1d`."""
        bias, weight = self._bias, self._weight.value
        if not self._rows:
            x, weight = x.unsqueeze(-2), weight.unsqueeze(-2)
        alone = x.dim() - stacked == 3  # one image, as torch takes it: [C, H, W]
        if alone:
            x = x.unsqueeze(-4)
        if not stacked and self.groups > 1:  # the members' channels would mix in the module's own groups
            x = x.expand(len(weight), *x.shape)
        out = apply(_ConvFunction, x, weight, bias and bias.value, (self._weight, bias), self)
        out = out.squeeze(-4) if alone else out
        return out if self._rows else out.squeeze(-2)


def _padding(module: nn.Conv1d | nn.Conv2d) -> Any:
    """Return the padding in numbers; the same on both sides, as stacking.py requires."""
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return (0,) * len(module.kernel_size) if module.padding == "valid" else module.padding


def _of_a_row(setting: Any, of_rows: int) -> tuple[Any, ...]:
    return (of_rows, *setting)
