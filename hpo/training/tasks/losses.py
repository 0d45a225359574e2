"""Losses of K members, one value for each row (example), equal to those of torch.nn.functional member by member.

Outputs are [K, B, outputs], targets [B, ...] are the same for all members. The mean over the rows of one member is the
loss that torch computes with `reduction="mean"`. bfloat16 outputs are converted to float32 first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.training.compiled.passes import Passes, passes_for


class RowLosses(NamedTuple):
    """Losses of a batch: `training` [K, B] to train on, `plain` [K, B] for learning curves, and `weights` of the rows.

    The weights are [B], or [K, B] where the targets are each member's own. The plain loss is without label smoothing
    and weights, so that losses of all trials can be compared. The training loss contains the weights already.
    """

    training: Tensor
    plain: Tensor
    weights: Tensor | None = None

    def member_means(self) -> Tensor:
        """Return the training loss of each member, [K]: its mean over rows, or its sum divided by the sum of weights.

        The second is the weighted mean of torch.nn.CrossEntropyLoss.
        """
        return self.training.mean(1) if self.weights is None else self.training.sum(1) / self.weights.sum(-1)


class _CrossEntropyFunction(torch.autograd.Function):
    """Losses [K, B] of logits [K, classes, B], and the numbers of correct labels, [K]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, passes: Passes) -> tuple[Tensor, Tensor]:
        losses, grads, correct = passes.cross_entropy(logits, labels, ctx.needs_input_grad[0])
        ctx.save_for_backward(*([] if grads is None else [grads]))
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (of_logits,) = ctx.saved_tensors
        return of_logits * grads[0].unsqueeze(1), None, None


def cross_entropy(
    outputs: Tensor, labels: Tensor, smoothing: Tensor | None = None, class_weights: Tensor | None = None
) -> tuple[RowLosses, Tensor]:
    """Return the cross-entropy of labels [B] or [K, B], and the numbers of correct labels, [K].

    `smoothing` is the label smoothing, [K, 1], `class_weights` are [classes].
    """
    # transposed: the order in which the last layer wrote the outputs to memory
    logits = in_float(outputs).transpose(1, 2)
    targets = labels.expand(len(logits), -1)
    passes = passes_for(logits) if labels.dtype == torch.int64 else None  # torch refuses other types
    if passes is not None and smoothing is None and class_weights is None:
        loss, correct = _CrossEntropyFunction.apply(logits.contiguous(), targets, passes)  # type: ignore[no-untyped-call]
        return RowLosses(loss, loss), correct
    return _cross_entropy_by_torch(logits, labels, smoothing, class_weights), correct_labels(logits, targets)


def correct_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the numbers of labels [K, B] that have the largest of logits [K, classes, B], [K]."""
    # max is many times as fast as argmax on a CPU, in this order of the dimensions
    return (logits.detach().max(1).indices == labels).sum(1)


def _cross_entropy_by_torch(
    logits: Tensor, labels: Tensor, smoothing: Tensor | None, class_weights: Tensor | None
) -> RowLosses:
    """Return the cross-entropy of labels [B] or [K, B] for logits [K, classes, B]."""
    targets = labels.expand(len(logits), -1)
    if smoothing is None and class_weights is None:
        loss = F.cross_entropy(logits, targets, reduction="none")
        return RowLosses(loss, loss)
    logarithms = F.log_softmax(logits, 1)
    loss = F.nll_loss(logarithms, targets, reduction="none")
    if class_weights is None:
        assert smoothing is not None
        return RowLosses(loss.lerp(-logarithms.mean(1), smoothing.to(loss.dtype)), loss)
    weights = class_weights.to(loss.dtype)
    of_rows = weights[labels]
    training = loss * of_rows
    if smoothing is not None:
        uniform = -(logarithms * weights[:, None]).mean(1)
        training = training.lerp(uniform, smoothing.to(loss.dtype))
    return RowLosses(training, loss, of_rows)


def bce(outputs: Tensor, targets: Tensor, pos_weight: Tensor | None = None) -> RowLosses:
    """Return the binary cross-entropy of targets of 0 and 1, the mean over labels; `pos_weight` is [L].

    Targets are [B, L], or [K, B, L].
    """
    logits = in_float(outputs)
    expected = targets.to(logits.dtype).expand_as(logits)
    loss = F.binary_cross_entropy_with_logits(logits, expected, reduction="none").mean(2)
    if pos_weight is None:
        return RowLosses(loss, loss)
    weighted = F.binary_cross_entropy_with_logits(
        logits, expected, reduction="none", pos_weight=pos_weight.to(logits.dtype)
    )
    return RowLosses(weighted.mean(2), loss)


def mse(outputs: Tensor, targets: Tensor) -> RowLosses:
    """Return the squared error of targets [B, D], the mean over D."""
    values, expected = _pair(outputs, targets)
    return _same(F.mse_loss(values, expected, reduction="none").mean(2))


def mae(outputs: Tensor, targets: Tensor) -> RowLosses:
    """Return the absolute error of targets [B, D], the mean over D."""
    values, expected = _pair(outputs, targets)
    return _same(F.l1_loss(values, expected, reduction="none").mean(2))


def huber(outputs: Tensor, targets: Tensor) -> RowLosses:
    """Return the Huber loss with delta = 1 of targets [B, D], the mean over D."""
    values, expected = _pair(outputs, targets)
    return _same(F.huber_loss(values, expected, reduction="none").mean(2))


def gaussian_nll(outputs: Tensor, targets: Tensor) -> RowLosses:
    """Return the negative log-likelihood of targets [B, D] under a normal distribution, the mean over D.

    The outputs [K, B, 2 D] are D means and then D logarithms of the variance. As in torch, the constant is left out,
    and variances are at least 1e-6.
    """
    values, logarithms = in_float(outputs).chunk(2, 2)
    expected = targets.to(values.dtype).expand_as(values)
    return _same(F.gaussian_nll_loss(values, expected, logarithms.exp(), reduction="none").mean(2))


def in_float(outputs: Tensor) -> Tensor:
    """Return bfloat16 outputs as float32, and others as they are."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


def _pair(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    values = in_float(outputs)
    return values, targets.to(values.dtype).expand_as(values)


def _same(loss: Tensor) -> RowLosses:
    return RowLosses(loss, loss)
