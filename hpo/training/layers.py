"""The layers that have parameters or random numbers, in stacked form: one object runs the same layer of K members.

Shapes are logical: a stacked activation is [K, B, ...], whatever its strides are. In memory a linear layer's output is
[K, units, B] and a convolution's [B, H, W, K, C]: each product then reads and writes contiguous blocks, elementwise
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

from hpo.errors import HpoError
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
        members, together = len(weight), _runs_together(x)
        images, kernels = _parts(x, together), _parts(weight, together, channel=0)
        biases: Sequence[Tensor | None] = [None] * len(kernels) if bias is None else _parts(bias, together, channel=0)
        ctx.save_for_backward(*images, *kernels)
        ctx.slots, ctx.shared, ctx.together = slots, x.dim() == 4, together
        ctx.settings = (module.stride, module.padding, module.dilation)
        ctx.groups = module.groups * (members if together and not ctx.shared else 1)
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
        if x.dim() == 4 and self._module.groups > 1:  # the members' channels would mix in the module's own groups
            x = x.expand(len(self._weight.value), *x.shape)
        return _apply(_ConvFunction, x, self._weight.value, bias and bias.value, (self._weight, bias), self._module)


class _BatchNormFunction(torch.autograd.Function):
    """Batch norm in training: S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slots: tuple[Slot, Slot], layer: BatchNorm
    ) -> Tensor:
        dims, count = layer.dims(x), x[0].numel() // x.shape[layer.channel]
        wide = _wide(x)
        mean = wide.sum(dims, keepdim=True).div_(count)
        centred = wide - mean
        variance = torch.linalg.vector_norm(centred, dim=dims, keepdim=True).square_().div_(count)
        layer.observe(mean, variance, count)
        scale = variance.add_(layer.eps).rsqrt_()
        ctx.save_for_backward(centred, scale, weight)
        ctx.slots, ctx.dims, ctx.count = slots, dims, count
        out: Tensor = (centred * (scale * weight)).add_(bias).to(x.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        centred, scale, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        grad = _wide(grads[0])
        grad_sum = grad.sum(ctx.dims, keepdim=True)
        product_sum = (grad * centred).sum(ctx.dims, keepdim=True)
        bias_slot.write(lambda into: into.copy_(grad_sum.view_as(into)))
        weight_slot.write(lambda into: into.copy_((product_sum * scale).view_as(into)))
        # dx = weight * scale * (dy - mean(dy) - centred * scale^2 * mean(dy * centred))
        out = (centred * (product_sum * scale * scale).div_(-ctx.count)).add_(grad)
        return out.sub_(grad_sum.div_(ctx.count)).mul_(scale * weight).to(grads[0].dtype), None, None, None, None


class BatchNorm:
    """`nn.BatchNorm1d` and `nn.BatchNorm2d` of K members: batch norm over K x C channels.

    It computes in float32 at least, also between bfloat16 activations: statistics stay exact, and a CPU is faster so.
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
        dtype = torch.float64 if self._weight.value.dtype == torch.float64 else torch.float32
        self._mean, self._variance = self._mean.to(dtype), self._variance.to(dtype)

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
            if x[0].numel() == x.shape[2]:
                raise HpoError(f"layer '{self._name}': a batch of one value cannot be normalized; use a larger batch")
            return _apply(_BatchNormFunction, x, weight, bias, (self._weight, self._bias), self)
        scale = weight * (self._variance + self.eps).rsqrt().view(shape)
        shift = bias - scale * self._mean.view(shape)
        return (_wide(x) * scale).add_(shift).to(x.dtype)


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
        # Once moved to the device they stay there: a copy a step would have it wait for the host.
        self._thresholds, self._scales = self._thresholds.to(x.device), self._scales.to(x.device, x.dtype)
        words = random_words(self._keys, count, self._counters)
        # Compared straight into numbers: on a CPU, operations on truth values are several times as slow.
        kept = torch.empty(words.shape, dtype=x.dtype, device=x.device)
        torch.ge(words, self._thresholds, out=kept).mul_(self._scales)
        # Elements are counted in the order in which they lie in memory, so that mask and activation agree in strides.
        if x.dim() == 3 and x.transpose(1, 2).is_contiguous():
            return x * kept.view(-1, x.shape[2], x.shape[1]).transpose(1, 2)
        return x * kept.view(-1, *x.shape[1:])


def _wide(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is where it is wider."""
    return x if x.dtype == torch.float64 else x.float()


def _apply(function: type[torch.autograd.Function], *args: object) -> Tensor:
    out = function.apply(*args)  # type: ignore[no-untyped-call]
    assert isinstance(out, Tensor)
    return out
