"""Losses of K members: value and gradient of each equal those of torch.nn.functional for this member alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.training.compiled.passes import passes_for
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
    "cross_entropy": (lambda out: losses.cross_entropy(out, LABELS)[0], lambda out, k: F.cross_entropy(out, LABELS)),
    "smoothing": (
        lambda out: losses.cross_entropy(out, LABELS, SMOOTH)[0],
        lambda out, k: F.cross_entropy(out, LABELS, label_smoothing=SMOOTHING[k]),
    ),
    "class weights": (
        lambda out: losses.cross_entropy(out, LABELS, None, CLASS_WEIGHTS)[0],
        lambda out, k: F.cross_entropy(out, LABELS, CLASS_WEIGHTS),
    ),
    "class weights and smoothing": (
        lambda out: losses.cross_entropy(out, LABELS, SMOOTH, CLASS_WEIGHTS)[0],
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


@pytest.mark.parametrize("labels", [LABELS, LABELS.roll(1).expand(MEMBERS, -1), torch.stack([LABELS] * MEMBERS)])
@pytest.mark.parametrize("classes", [2, OUTPUTS])
def test_compiled_cross_entropy_is_that_of_torch(labels: Tensor, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = 5 * torch.randn(MEMBERS, 90 * ROWS, classes, generator=generator, dtype=torch.float64)
    labels = labels.repeat(*[1] * (labels.dim() - 1), 90) % classes

    def results() -> tuple[Tensor, Tensor, Tensor]:
        outputs = logits.clone().requires_grad_()
        rows, correct = losses.cross_entropy(outputs, labels)
        (rows.training * torch.arange(90 * ROWS)).sum().backward()
        assert outputs.grad is not None
        with torch.no_grad():
            assert torch.equal(losses.cross_entropy(outputs, labels)[0].plain, rows.plain)
        return rows.plain.detach(), outputs.grad, correct

    assert passes_for(logits) is not None
    found = results()
    monkeypatch.setattr(losses, "passes_for", lambda x: None)
    for ours, torchs in zip(found, results(), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


def test_compiled_cross_entropy_of_what_is_not_finite_or_no_class() -> None:
    logits = torch.tensor([[[0.0, 1.0], [torch.nan, 1.0], [1.0, torch.nan], [torch.inf, 0.0], [1.0, 1.0]]])
    rows, correct = losses.cross_entropy(logits, torch.tensor([2, 1, 0, 1, 0]))
    assert rows.plain[0].isnan().tolist() == [True, True, True, True, False]  # the fourth as by torch
    assert correct.tolist() == [1]  # the first of equal logits


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
    for loss, targets in ((losses.bce, ONES), (losses.mse, NUMBERS)):
        assert torch.equal(loss(outputs, targets).plain, loss(outputs.float(), targets).plain)
    found, expected = (losses.cross_entropy(each, LABELS)[0].plain for each in (outputs, outputs.float()))
    assert torch.equal(found, expected)
