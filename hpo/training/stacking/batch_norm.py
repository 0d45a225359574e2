"""Stacked batch norm. Norm layers without running statistics, such as layer norm, are in layers.py."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hpo.errors import HpoError
from hpo.training.stacking.layers import StackedLayer, apply
from hpo.training.stacking.parameter_blocks import ParameterSlot
from hpo.training.stacking.tracing.trace import require

MAX_RECORDED = 32
"""Batches whose statistics are kept until the running statistics are updated."""


class _BatchNormFunction(torch.autograd.Function):
    """Batch norm in training (S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015), [K, B, C, ...] to the same."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slots: tuple[ParameterSlot, ParameterSlot], layer: BatchNorm
    ) -> Tensor:
        dims, count = layer.dims(x), x[0].numel() // x.shape[layer.channel]
        x32 = at_least_float32(x)
        mean = x32.sum(dims, keepdim=True).div_(count)
        centred = x32 - mean
        variance = torch.linalg.vector_norm(centred, dim=dims, keepdim=True).square_().div_(count)
        scale = variance.add_(layer.eps).rsqrt_()
        layer.record_statistics(mean, scale, count)
        ctx.save_for_backward(centred, scale, weight)
        ctx.slots, ctx.dims, ctx.count = slots, dims, count
        out: Tensor = (centred * (scale * weight)).add_(bias).to(x.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        centred, scale, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        grad = at_least_float32(grads[0])
        grad_sum = grad.sum(ctx.dims, keepdim=True)
        product_sum = (grad * centred).sum(ctx.dims, keepdim=True)
        bias_slot.write(lambda into: into.copy_(grad_sum.view_as(into)))
        weight_slot.write(lambda into: into.copy_((product_sum * scale).view_as(into)))
        # dx = weight * scale * (dy - mean(dy) - centred * scale^2 * mean(dy * centred))
        out = (centred * (product_sum * scale * scale).div_(-ctx.count)).add_(grad)
        return out.sub_(grad_sum.div_(ctx.count)).mul_(scale * weight).to(grads[0].dtype), None, None, None, None


class _ImageBatchNormFunction(torch.autograd.Function):
    """Batch norm in training of images in which each pixel's channels of all members are adjacent in memory.

    Convolutions write them so. For torch's kernel they are the channels of one batch, [B, K x C, ...], which is several
    times as fast as single operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: BatchNorm) -> Tensor:
        images = x.transpose(0, 1).flatten(1, 2)
        out, mean, scale = layer.normalize_images(images)
        ctx.save_for_backward(images, mean, scale)
        ctx.layer, ctx.members = layer, len(x)
        return torch.unflatten(out, 1, (len(x), -1)).transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        images, mean, scale = ctx.saved_tensors
        grad = grads[0].transpose(0, 1).flatten(1, 2)
        out = ctx.layer.normalize_images_backward(grad, images, mean, scale)
        return torch.unflatten(out, 1, (ctx.members, -1)).transpose(0, 1), None


class BatchNorm(StackedLayer):
    """Stacked form of `nn.BatchNorm1d` and `nn.BatchNorm2d`: batch norm over K x C channels.

    It computes in float32 or float64, also between bfloat16 activations: the statistics are then exact, and on a CPU it
    is faster.
    """

    channel = 2
    """Dimension of the channels in a stacked activation, [K, B, C, ...]."""

    def __init__(self, name: str, modules: Sequence[nn.BatchNorm1d | nn.BatchNorm2d]) -> None:
        self._name = name
        self._ranks = (4,) if isinstance(modules[0], nn.BatchNorm2d) else (2, 3)
        self.eps = modules[0].eps
        self._momentum = modules[0].momentum or 0.0
        # Never None: stacked_network.py refuses batch norm without running statistics.
        self._mean = torch.stack([m.running_mean for m in modules])  # type: ignore[misc]
        self._variance = torch.stack([m.running_var for m in modules])  # type: ignore[misc]
        self._batches = torch.stack([m.num_batches_tracked for m in modules])  # type: ignore[misc]
        self._recorded: list[tuple[Tensor, Tensor, int]] = []

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Store the slots of weight and bias."""
        self.weight, self.bias = slots[f"{self._name}.weight"], slots[f"{self._name}.bias"]
        dtype = torch.float64 if self.weight.value.dtype == torch.float64 else torch.float32
        self._mean, self._variance = self._mean.to(dtype), self._variance.to(dtype)

    def select(self, members: Tensor) -> None:
        """Reduce the running statistics to these members."""
        self._update_statistics()
        self._mean, self._variance = self._mean[members], self._variance[members]
        self._batches = self._batches[members]

    def buffers(self) -> dict[str, Tensor]:
        """Return the running statistics, [K, C] and [K], by their names in the module's state."""
        self._update_statistics()
        return {
            f"{self._name}.running_mean": self._mean,
            f"{self._name}.running_var": self._variance,
            f"{self._name}.num_batches_tracked": self._batches,
        }

    def dims(self, x: Tensor) -> list[int]:
        """Return the dimensions that the statistics are computed over: all but member and channel."""
        return [1, *range(3, x.dim())]

    def record_statistics(self, mean: Tensor, scale: Tensor, count: int) -> None:
        """Record a batch's means and inverse deviations, K x C values each, for the running statistics.

        `count` is the number of values per channel. Nothing reads the running statistics between training steps, so
        they are updated for several batches at once: a dozen operations each time cost more than these batches' norms.
        """
        self._recorded.append((mean.reshape(-1), scale.reshape(-1), count))
        if len(self._recorded) == MAX_RECORDED:
            self._update_statistics()

    def _update_statistics(self) -> None:
        """Update the running statistics with the recorded batches. As in torch, the running variance is unbiased."""
        if not self._recorded:
            return
        means, scales, counts = zip(*self._recorded, strict=True)
        self._recorded = []
        keep, batches = 1 - self._momentum, len(counts)
        weights = self._mean.new_tensor([self._momentum * keep ** (batches - 1 - batch) for batch in range(batches)])
        unbiased = weights * weights.new_tensor([count / (count - 1) for count in counts])
        variances = torch.stack(scales).square_().reciprocal_().sub_(self.eps).clamp_(min=0)
        for running, of_batches, factors in (
            (self._mean, torch.stack(means), weights),
            (self._variance, variances, unbiased),
        ):
            running.view(-1).addmv_(of_batches.view(batches, -1).t(), factors, beta=keep**batches)
        self._batches.add_(batches)

    def normalize_images(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output for images [B, K x C, ...] in training, and their means and inverse deviations, [K x C].

        Updates the running statistics.
        """
        self._update_statistics()  # of batches in another memory order
        self._batches.add_(1)
        weight, bias = (at_least_float32(slot.value).contiguous().view(-1) for slot in (self.weight, self.bias))
        statistics = self._mean.view(-1), self._variance.view(-1)
        return torch.native_batch_norm(images, weight, bias, *statistics, True, self._momentum, self.eps)

    def normalize_images_backward(self, grad: Tensor, images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Return the gradient of the images, and write those of weight and bias."""
        weight = at_least_float32(self.weight.value).contiguous().view(-1)
        out, *found = torch.ops.aten.native_batch_norm_backward(
            grad, images, weight, None, None, mean, scale, True, self.eps, [True, True, True]
        )
        self._write_gradients(*found)
        assert isinstance(out, Tensor)
        return out

    def normalized(self, x: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the output in training for `x` [K, C, B], contiguous, then what `normalized_backward` needs.

        A row of `x` is a group of torch's group norm, which computes it in one pass. `shift` [K, C] is what `x` lacks
        of its mean: a bias before.
        """
        self.require_several(x)
        count, rows = x.shape[2], x.shape[0] * x.shape[1]
        weight, bias = (at_least_float32(each.value).contiguous().view(-1) for each in (self.weight, self.bias))
        out, mean, scale = torch.native_group_norm(x, weight, bias, 1, rows, count, rows, self.eps)
        self.record_statistics(mean if shift is None else mean.view(shift.shape) + shift, scale, count)
        return out, mean, scale, weight

    def normalized_backward(
        self, grad: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor, factors: Tensor | None
    ) -> Tensor:
        """Write the parameters' gradients and return that of `x`, for the results of `normalized`.

        `grad` [K, C, B], contiguous, is the output's gradient without the `factors` [K, 1] of the members.
        """
        count, rows = x.shape[2], x.shape[0] * x.shape[1]
        if factors is not None:
            weight = (weight.view(x.shape[:2]) * factors).view(-1)
        out, *found = torch.ops.aten.native_group_norm_backward(
            grad, x, mean, scale, weight, 1, rows, count, rows, [True, True, True]
        )
        if factors is not None:
            found = [each.view(x.shape[:2]).mul_(factors) for each in found]
        self._write_gradients(*found)
        assert isinstance(out, Tensor)
        return out

    def _write_gradients(self, weight: Tensor, bias: Tensor) -> None:
        for slot, value in ((self.weight, weight), (self.bias, bias)):
            slot.write(partial(_copy, value))

    def require_several(self, x: Tensor) -> None:
        """Raise HpoError for a batch with one value per channel, `x` [K, ...]."""
        if x.numel() == self._mean.numel():
            raise HpoError(f"layer '{self._name}': a batch of one value cannot be normalized; use a larger batch")

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """Return [K, B, C, ...] for [K, B, C, ...] or [B, C, ...].

        Raises HpoError in training for a batch with one value per channel.
        """
        if not stacked:
            x = x.expand(len(self._mean), *x.shape)
        require(x.dim() - 1 in self._ranks, f"layer '{self._name}'", f"its input has {x.dim() - 1} dimensions")
        shape = (x.shape[0], 1, x.shape[2]) + (1,) * (x.dim() - 3)
        weight, bias = self.weight.value.view(shape), self.bias.value.view(shape)
        if training:
            self.require_several(x)
            if x.device.type == "cpu" and x.dim() > 3 and x.stride(0) == x.shape[2] * x.stride(2) > 0:
                return apply(_ImageBatchNormFunction, x, self)
            return apply(_BatchNormFunction, x, weight, bias, (self.weight, self.bias), self)
        scale, shift = (each.view(shape) for each in self.of_running_statistics(None))
        return (at_least_float32(x) * scale).add_(shift).to(x.dtype)

    def of_running_statistics(self, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the factor and the summand, [K, C], of batch norm outside of training.

        `before` [K, C] is what the input lacks: a bias before.
        """
        self._update_statistics()
        scale = self.weight.value * (self._variance + self.eps).rsqrt()
        mean = self._mean if before is None else self._mean - before
        return scale, self.bias.value - scale * mean


def _copy(value: Tensor, into: Tensor) -> None:
    into.copy_(value.view_as(into))


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is float64."""
    return x if x.dtype == torch.float64 else x.float()
