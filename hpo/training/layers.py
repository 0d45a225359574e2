"""The layers that have parameters or random numbers, in stacked form: one object runs the same layer of K members.

Shapes are logical: a stacked activation is [K, B, ...], whatever its strides are. In memory a linear layer's output is
[K, units, B] and a convolution's [B, K, C, H, W]: each product then reads and writes contiguous blocks, elementwise
operations keep the strides, and nothing has to be copied in between.

Each layer is one `torch.autograd.Function` whose backward writes the parameters' gradients into their blocks.
Knows nothing of networks, optimizers or trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.training.blocks import Slot
from hpo.training.randomness import mixed_counters, random_words


class StackedLayer(Protocol):
    """The stacked form of one layer."""

    def bind(self, slots: dict[str, Slot]) -> None:
        """Fetch the layer's parameters: at first, and again after members left."""

    def keep(self, members: Tensor) -> None:
        """Keep only these members in what the layer holds itself: statistics, rates."""

    def buffers(self) -> dict[str, Tensor]:
        """Return the layer's buffers by their names in the module's state, [K, ...] each."""

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """Run the layer: `x` is [K, B, ...], or [B, ...] where all members still share it."""


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slots: tuple[Slot, Slot | None]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slots = slots
        members, units, features = weight.shape
        if x.dim() == 2:  # shared: one GEMM for all members
            out = (weight.view(members * units, features) @ x.t()).view(members, units, -1)
            if bias is not None:
                out.add_(bias.unsqueeze(-1))
        elif bias is not None:
            out = torch.baddbmm(bias.unsqueeze(-1), weight, x.transpose(1, 2))
        else:
            out = torch.bmm(weight, x.transpose(1, 2))
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        members, units, features = weight.shape
        grad = grads[0].transpose(1, 2)  # [K, units, B]
        if x.dim() == 2:
            flat = grad.reshape(members * units, -1)
            weight_slot.write(lambda into: torch.mm(flat, x, out=into.view(members * units, features)))
        else:
            weight_slot.write(lambda into: torch.bmm(grad, x, out=into))
        if bias_slot is not None:
            bias_slot.write(lambda into: torch.sum(grad, -1, out=into))
        return (torch.bmm(weight.transpose(1, 2), grad).transpose(1, 2) if ctx.needs_input_grad[0] else None,) + (
            None,
        ) * 3


class Linear:
    """`nn.Linear` of K members."""

    def __init__(self, name: str, modules: Sequence[nn.Linear]) -> None:
        self._name, self._has_bias = name, modules[0].bias is not None

    def bind(self, slots: dict[str, Slot]) -> None:
        """Fetch weight and bias."""
        self._weight = slots[f"{self._name}.weight"]
        self._bias = slots[f"{self._name}.bias"] if self._has_bias else None

    def keep(self, members: Tensor) -> None:
        """Nothing of its own."""

    def buffers(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """[K, B, features] or [B, features] -> [K, B, units]."""
        bias = self._bias
        return _apply(_LinearFunction, x, self._weight.value, bias and bias.value, (self._weight, bias))


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, slots: tuple[Slot, Slot | None], module: nn.Conv2d
    ) -> Tensor:
        members = weight.shape[0]
        shared = x.dim() == 4
        # Members become groups; where they share the input, there is one group with all their channels.
        images = x if shared else x.transpose(0, 1).flatten(1, 2)
        groups = module.groups * (1 if shared else members)
        kernels = weight.flatten(0, 1)
        ctx.save_for_backward(images, kernels)
        ctx.slots, ctx.module, ctx.groups, ctx.shared = slots, module, groups, shared
        out = F.conv2d(
            images,
            kernels,
            None if bias is None else bias.flatten(),
            module.stride,
            module.padding,
            module.dilation,
            groups,
        )
        return torch.unflatten(out, 1, (members, -1)).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        images, kernels = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        module, needs_input = ctx.module, ctx.needs_input_grad[0]
        grad = grads[0].transpose(0, 1).flatten(1, 2)
        grad_images, grad_kernels, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            images,
            kernels,
            [kernels.shape[0]] if bias_slot is not None else None,
            module.stride,
            module.padding,
            module.dilation,
            False,
            [0, 0],
            ctx.groups,
            [needs_input, True, bias_slot is not None],
        )
        weight_slot.write(lambda into: into.copy_(grad_kernels.view_as(into)))
        if bias_slot is not None:
            bias_slot.write(lambda into: into.copy_(grad_bias.view_as(into)))
        if needs_input and not ctx.shared:
            grad_images = torch.unflatten(grad_images, 1, (weight_slot.value.shape[0], -1)).transpose(0, 1)
        return (grad_images if needs_input else None), None, None, None, None


class Conv2d:
    """`nn.Conv2d` of K members: one grouped convolution."""

    def __init__(self, name: str, modules: Sequence[nn.Conv2d]) -> None:
        self._name, self._module = name, modules[0]

    def bind(self, slots: dict[str, Slot]) -> None:
        """Fetch weight and bias."""
        self._weight = slots[f"{self._name}.weight"]
        self._bias = slots[f"{self._name}.bias"] if self._module.bias is not None else None

    def keep(self, members: Tensor) -> None:
        """Nothing of its own."""

    def buffers(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """[K, B, C, H, W] or [B, C, H, W] -> [K, B, channels, H', W']."""
        bias = self._bias
        return _apply(_ConvFunction, x, self._weight.value, bias and bias.value, (self._weight, bias), self._module)


class _BatchNormFunction(torch.autograd.Function):
    """Batch norm in training: S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slots: tuple[Slot, Slot], layer: BatchNorm
    ) -> Tensor:
        dims, count = layer.dims(x), x[0].numel() // x.shape[layer.channel]
        mean = _sum(x, dims).div_(count)
        centred = x - mean.to(x.dtype)
        variance = _sum(centred * centred, dims).div_(count)
        layer.observe(mean, variance, count)
        scale = variance.add_(layer.eps).rsqrt_()
        ctx.save_for_backward(centred, scale, weight)
        ctx.slots, ctx.dims, ctx.count = slots, dims, count
        gain = (scale * weight).to(x.dtype)
        return torch.addcmul(bias.to(x.dtype), centred, gain, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        centred, scale, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        grad = grads[0]
        grad_sum = _sum(grad, ctx.dims)
        product_sum = _sum(grad * centred, ctx.dims)
        bias_slot.write(lambda into: into.copy_(grad_sum.view_as(into)))
        weight_slot.write(lambda into: into.copy_((product_sum * scale).view_as(into)))
        # dx = weight * scale * (dy - mean(dy) - centred * scale^2 * mean(dy * centred))
        slope = (product_sum * scale * scale).div_(-ctx.count).to(grad.dtype)
        out = torch.addcmul(grad, centred, slope, out=torch.empty_like(centred))
        out.sub_(grad_sum.div_(ctx.count).to(grad.dtype)).mul_((scale * weight).to(grad.dtype))
        return out, None, None, None, None


class BatchNorm:
    """`nn.BatchNorm1d` and `nn.BatchNorm2d` of K members: batch norm over K x C channels.

    Statistics are kept and summed in float32 at least, also where activations are bfloat16.
    """

    channel = 2  # of a stacked activation [K, B, C, ...]

    def __init__(self, name: str, modules: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
        self._name = name
        self.eps = modules[0].eps
        self._momentum = modules[0].momentum or 0.0
        self._mean = torch.stack([m.running_mean for m in modules])  # type: ignore[misc]  # never None: see stacking.py
        self._variance = torch.stack([m.running_var for m in modules])  # type: ignore[misc]
        self._batches = torch.stack([m.num_batches_tracked for m in modules])  # type: ignore[misc]

    def bind(self, slots: dict[str, Slot]) -> None:
        """Fetch weight and bias."""
        self._weight, self._bias = slots[f"{self._name}.weight"], slots[f"{self._name}.bias"]

    def keep(self, members: Tensor) -> None:
        """Keep these members' running statistics."""
        self._mean, self._variance = self._mean[members], self._variance[members]
        self._batches = self._batches[members]

    def buffers(self) -> dict[str, Tensor]:
        """Return the running statistics."""
        return {
            f"{self._name}.running_mean": self._mean,
            f"{self._name}.running_var": self._variance,
            f"{self._name}.num_batches_tracked": self._batches,
        }

    def dims(self, x: Tensor) -> list[int]:
        """Return the dimensions that the statistics are taken over: all but member and channel."""
        return [1, *range(3, x.dim())]

    def observe(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards a batch's; the running variance is the unbiased one, as in torch."""
        self._mean.lerp_(mean.view_as(self._mean), self._momentum)
        self._variance.lerp_(variance.view_as(self._variance) * (count / (count - 1)), self._momentum)
        self._batches.add_(1)

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """[K, B, C, ...] -> the same shape."""
        shape = (x.shape[0], 1, x.shape[2]) + (1,) * (x.dim() - 3)
        weight, bias = self._weight.value.view(shape), self._bias.value.view(shape)
        if training:
            return _apply(_BatchNormFunction, x, weight, bias, (self._weight, self._bias), self)
        scale = weight * (self._variance + self.eps).rsqrt().view(shape)
        shift = bias - scale * self._mean.view(shape)
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype), out=torch.empty_like(x))


class Dropout:
    """`nn.Dropout` of K members, a rate each: kept elements are scaled by 1 / (1 - rate), as torch does.

    Masks come from the members' own keys, which `set_keys` brings before each step.
    """

    def __init__(self, name: str, modules: Sequence[nn.Dropout]) -> None:
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

    def bind(self, slots: dict[str, Slot]) -> None:
        """No parameters."""

    def keep(self, members: Tensor) -> None:
        """Keep these members' rates."""
        self._rates = self._rates[members.cpu()]
        self._prepare()

    def buffers(self) -> dict[str, Tensor]:
        """None."""
        return {}

    def set_keys(self, keys: Tensor) -> None:
        """Take the keys of the coming step's masks, [K, 1]."""
        self._keys = keys

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """[K, B, ...] -> the same shape."""
        if not training or not self._any:
            return x
        assert self._keys is not None, "set_keys comes before a training step"
        count = x[0].numel()
        if self._counters.numel() * 4 < count or self._counters.device != x.device:
            self._counters = mixed_counters(count, x.device)
        words = random_words(self._keys, count, self._counters)
        kept = (words >= self._thresholds.to(x.device)) * self._scales.to(x.device, x.dtype)
        # Elements are counted in the order in which they lie in memory, so that mask and activation agree in strides.
        if x.dim() == 3 and x.transpose(1, 2).is_contiguous():
            return x * kept.view(-1, x.shape[2], x.shape[1]).transpose(1, 2)
        return x * kept.view(-1, *x.shape[1:])


def _sum(x: Tensor, dims: list[int]) -> Tensor:
    return x.sum(dims, keepdim=True, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _apply(function: type[torch.autograd.Function], *args: object) -> Tensor:
    out = function.apply(*args)  # type: ignore[no-untyped-call]
    assert isinstance(out, Tensor)
    return out
