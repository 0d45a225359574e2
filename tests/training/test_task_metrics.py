"""Metrics of K members equal those of scikit-learn for each member, also for equal scores and absent classes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk
from torch import Tensor

from hpo.training.tasks import metrics

Arrays = tuple[Tensor, Tensor]


def sk_auroc(y: NDArray[np.int64], logits: NDArray[np.float64]) -> float:
    """Return scikit-learn's value, NaN where it warns that the area is undefined.

    The mean over classes is taken here, as scikit-learn's takes probabilities only, of which more are equal.
    """
    classes = logits.shape[1]
    if len(set(y)) < classes:
        return math.nan
    if classes == 2:
        return float(sk.roc_auc_score(y, logits[:, 1] - logits[:, 0]))
    scores = torch.log_softmax(torch.from_numpy(logits), 1).numpy()
    return float(np.mean([sk.roc_auc_score(y == c, scores[:, c]) for c in range(classes)]))


CLASSIFICATION: dict[str, Callable[[NDArray[np.int64], NDArray[np.float64]], float]] = {
    "balanced_accuracy": lambda y, out: sk.balanced_accuracy_score(y, out.argmax(1)),
    "f1": lambda y, out: sk.f1_score(y, out.argmax(1), average="macro", zero_division=0),
    "f1_weighted": lambda y, out: sk.f1_score(y, out.argmax(1), average="weighted", zero_division=0),
    "auroc": sk_auroc,
}
MULTILABEL: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]] = {
    "f1": lambda y, out: sk.f1_score(y, out > 0, average="macro", zero_division=0),
    "auroc": lambda y, out: (
        sk.roc_auc_score(y, out, average="macro") if (y.mean(0) > 0).all() and (y.mean(0) < 1).all() else math.nan
    ),
    "average_precision": lambda y, out: sk.average_precision_score(y, out, average="macro"),
}
REGRESSION: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]] = {
    "rmse": sk.root_mean_squared_error,
    "mae": sk.mean_absolute_error,
    "r2": sk.r2_score,
}


@st.composite
def outputs_with_labels(draw: st.DrawFn, classes: int | None = None) -> Arrays:
    """Draw logits of few different values, so that many are equal, and labels, of which some classes may be absent."""
    classes = draw(st.integers(2, 5)) if classes is None else classes
    rows, seed = draw(st.integers(1, 30)), draw(st.integers(0, 10**6))
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randint(-2, 3, (3, rows, classes), generator=generator).double()
    if draw(st.booleans()):
        outputs += torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    return outputs, torch.randint(draw(st.integers(1, classes)), (rows,), generator=generator)


def assert_equal_members(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12, equal_nan=True
    )


@pytest.mark.parametrize("name", CLASSIFICATION)
@settings(max_examples=25, deadline=None)
@given(outputs_with_labels())
def test_classification_metric_equals_scikit_learn(name: str, arrays: Arrays) -> None:
    outputs, labels = arrays
    found = metrics.FUNCTIONS["classification"][name](outputs, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal_members(found, [CLASSIFICATION[name](labels.numpy(), out.numpy()) for out in outputs])


@pytest.mark.parametrize("k", [1, 2, 3])
@settings(max_examples=25, deadline=None)
@given(outputs_with_labels(classes=4))
def test_top_k_equals_scikit_learn(k: int, arrays: Arrays) -> None:
    outputs, labels = arrays
    expected = [sk.top_k_accuracy_score(labels, out, k=k, labels=range(4)) for out in outputs]
    assert_equal_members(metrics.top_k(outputs, labels, k), expected)


@pytest.mark.parametrize("name", MULTILABEL)
@settings(max_examples=25, deadline=None)
@given(outputs_with_labels(), st.integers(0, 3))
def test_multilabel_metric_equals_scikit_learn(name: str, arrays: Arrays, least: int) -> None:
    outputs, _ = arrays
    generator = torch.Generator().manual_seed(outputs.shape[1])
    targets = (torch.randint(4, outputs.shape[1:], generator=generator) >= least).double()
    found = metrics.FUNCTIONS["multilabel"][name](outputs, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal_members(found, [MULTILABEL[name](targets.numpy(), out.numpy()) for out in outputs])


@pytest.mark.parametrize("name", REGRESSION)
@settings(max_examples=25, deadline=None)
@given(outputs_with_labels(), st.booleans())
def test_regression_metric_equals_scikit_learn(name: str, arrays: Arrays, constant: bool) -> None:
    outputs, _ = arrays
    generator = torch.Generator().manual_seed(outputs.shape[1])
    targets = torch.randn(outputs.shape[1:], generator=generator, dtype=torch.float64)
    if constant:
        targets[:, 0] = 1.0
    found = metrics.FUNCTIONS["regression"][name](outputs, targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_equal_members(found, [REGRESSION[name](targets.numpy(), out.numpy()) for out in outputs])


def test_r2_of_exact_predictions_of_a_constant_is_one() -> None:
    targets = torch.full((4, 1), 2.5, dtype=torch.float64)
    assert metrics.r2(torch.stack([targets, targets + 1]), targets).tolist() == [1.0, 0.0]
