"""Losses of K members: value and gradient of each equal those of torch.nn.functional for this member alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.training.tasks import losses
from hpo.training.tasks.losses import RowLosses

MEMBERS, ROWS, OUTPUTS = 3, 7, 4
SMOOTHING = (0.0, 0.1, 0.4)
CLASS_WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 7.0], dtype=torch.float64)
POS_WEIGHT = torch.tensor([1.0, 3.0, 0.2, 10.0], dtype=torch.float64)

generator = torch.Generator().manual_seed(1)
LABELS = torch.randint(OUTPUTS, (ROWS,), generator=generator)
ONES = torch.randint(2, (ROWS, OUTPUTS), generator=generator).double()
NUMBERS = torch.randn(ROWS, OUTPUTS, generator=generator, dtype=torch.float64) * 2
SMOOTH = torch.tensor(SMOOTHING, dtype=torch.float64)[:, None]

CASES: dict[str, tuple[Callable[[Tensor], RowLosses], Callable[[Tensor, int], Tensor]]] = {
    "cross_entropy": (lambda out: losses.cross_entropy(out, LABELS), lambda out, k: F.cross_entropy(out, LABELS)),
    "smoothing": (
        lambda out: losses.cross_entropy(out, LABELS, SMOOTH),
        lambda out, k: F.cross_entropy(out, LABELS, label_smoothing=SMOOTHING[k]),
    ),
    "class weights": (
        lambda out: losses.cross_entropy(out, LABELS, None, CLASS_WEIGHTS),
        lambda out, k: F.cross_entropy(out, LABELS, CLASS_WEIGHTS),
    ),
    "class weights and smoothing": (
        lambda out: losses.cross_entropy(out, LABELS, SMOOTH, CLASS_WEIGHTS),
        lambda out, k: F.cross_entropy(out, LABELS, CLASS_WEIGHTS, label_smoothing=SMOOTHING[k]),
    ),
    "bce": (lambda out: losses.bce(out, ONES), lambda out, k: F.binary_cross_entropy_with_logits(out, ONES)),
    "pos_weight": (
        lambda out: losses.bce(out, ONES, POS_WEIGHT),
        lambda out, k: F.binary_cross_entropy_with_logits(out, ONES, pos_weight=POS_WEIGHT),
    ),
    "mse": (lambda out: losses.mse(out, NUMBERS), lambda out, k: F.mse_loss(out, NUMBERS)),
    "mae": (lambda out: losses.mae(out, NUMBERS), lambda out, k: F.l1_loss(out, NUMBERS)),
    "huber": (lambda out: losses.huber(out, NUMBERS), lambda out, k: F.huber_loss(out, NUMBERS)),
    "gaussian_nll": (
        lambda out: losses.gaussian_nll(out, NUMBERS[:, :2]),
        lambda out, k: F.gaussian_nll_loss(out[:, :2], NUMBERS[:, :2], out[:, 2:].exp()),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_of_each_member_equal_those_of_torch(name: str) -> None:
    ours, torchs = CASES[name]
    outputs = torch.randn(MEMBERS, ROWS, OUTPUTS, generator=generator, dtype=torch.float64).requires_grad_()
    found = ours(outputs)
    means = found.member_means()
    means.sum().backward()
    assert found.training.shape == found.plain.shape == (MEMBERS, ROWS)
    assert outputs.grad is not None
    for k in range(MEMBERS):
        alone = outputs[k].detach().clone().requires_grad_()
        expected = torchs(alone, k)
        expected.backward()
        torch.testing.assert_close(means[k], expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(outputs.grad[k], alone.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["smoothing", "class weights", "class weights and smoothing"])
def test_plain_loss_is_without_smoothing_and_weights(name: str) -> None:
    outputs = torch.randn(MEMBERS, ROWS, OUTPUTS, generator=generator, dtype=torch.float64)
    for k, rows in enumerate(CASES[name][0](outputs).plain):
        torch.testing.assert_close(rows, F.cross_entropy(outputs[k], LABELS, reduction="none"))


def test_bfloat16_outputs_are_converted_first() -> None:
    outputs = torch.randn(MEMBERS, ROWS, OUTPUTS, generator=generator).bfloat16()
    for loss, targets in ((losses.cross_entropy, LABELS), (losses.bce, ONES), (losses.mse, NUMBERS)):
        assert torch.equal(loss(outputs, targets).plain, loss(outputs.float(), targets).plain)
