"""Greedy selection with replacement, against a slow reference, and the mean prediction against averaging by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from hpo.results.ensemble.greedy import Losses, greedy_picks, mean_of
from hpo.training.tasks.averaging import MeanPrediction, mean_outputs
from hpo.training.tasks.task import Task, classification

N, CLASSES = 12, 3


def averaged(outputs: list[NDArray[np.float64]], picks: list[int]) -> NDArray[np.float64]:
    """The mean probabilities of the picked networks."""
    each = [np.exp(outputs[pick]) / np.exp(outputs[pick]).sum(1, keepdims=True) for pick in picks]
    return np.mean(each, axis=0)


def reference(outputs: list[NDArray[np.float64]], targets: NDArray[np.int64], size: int) -> list[int]:
    """Caruana's selection written out: every ensemble is averaged anew, and rounded, so that equal ones are equal."""

    def losses(picks: list[int]) -> tuple[float, float]:
        found = averaged(outputs, picks)
        accuracy = float((found.argmax(1) == targets).mean())
        return -accuracy, round(-float(np.log(found[np.arange(N), targets]).mean()), 9)

    picks: list[int] = []
    ensembles = []
    for _ in range(size):
        picks = min(([*picks, i] for i in range(len(outputs))), key=lambda each: (losses(each), each[-1]))
        ensembles.append((losses(picks), len(picks), picks))
    return min(ensembles)[2]


def losses_of(targets: NDArray[np.int64]) -> Callable[[Tensor], Losses]:
    """Minus the accuracy, then the loss, rounded as in the reference."""
    labels, task = torch.from_numpy(targets), classification(CLASSES)
    measures = task.measures({})

    def losses(outputs: Tensor) -> Losses:
        accuracy, loss = (float(measures[name](outputs[None], labels)) for name in ("accuracy", "loss"))
        return -accuracy, round(loss, 9)

    return losses


@given(seed=st.integers(0, 10_000), networks=st.integers(1, 5), size=st.integers(1, 6))
def test_the_picks_are_those_of_the_reference(seed: int, networks: int, size: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, N)
    outputs = [random.normal(size=(N, CLASSES)) + 2 * np.eye(CLASSES)[targets] for _ in range(networks)]
    picks = greedy_picks(
        classification(CLASSES), [torch.from_numpy(each) for each in outputs], losses_of(targets), size
    )
    assert list(picks) == reference(outputs, targets, size)
    found = mean_of(classification(CLASSES), [torch.from_numpy(each) for each in outputs], picks)
    assert np.allclose(torch.softmax(found, 1).numpy(), averaged(outputs, list(picks)))


@given(seed=st.integers(0, 10_000), size=st.integers(1, 12))
def test_an_ensemble_is_never_worse_than_its_best_network_on_the_same_examples(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, N)
    outputs = [torch.from_numpy(random.normal(size=(N, CLASSES))) for _ in range(4)]
    losses = losses_of(targets)
    picks = greedy_picks(classification(CLASSES), outputs, losses, size)
    assert losses(mean_of(classification(CLASSES), outputs, picks)) <= min(map(losses, outputs))
    assert 1 <= len(picks) <= size


def test_of_equal_networks_the_first_is_picked_and_no_further_one() -> None:
    same = torch.from_numpy(np.random.default_rng(0).normal(size=(N, CLASSES)))
    targets = np.arange(N) % CLASSES
    assert greedy_picks(classification(CLASSES), [same, same, same], losses_of(targets), 5) == (0,)


def test_networks_whose_losses_are_undefined_are_never_picked() -> None:
    good = torch.from_numpy(np.random.default_rng(0).normal(size=(N, 1)))
    outputs = [torch.full((N, 1), torch.nan, dtype=torch.float64), good]

    def losses(found: Tensor) -> Losses:
        value = float(found.square().mean())
        return (np.inf if np.isnan(value) else value,)

    assert set(greedy_picks(Task("regression", 1, "mse"), outputs, losses, 4)) == {1}


@pytest.mark.parametrize(
    "task",
    [Task("classification", 4, "cross_entropy"), Task("multilabel", 4, "bce"), Task("regression", 4, "gaussian_nll")],
    ids=lambda task: task.kind,
)
def test_picks_are_weights(task: Task) -> None:
    first, second = torch.from_numpy(np.random.default_rng(1).normal(size=(2, N, 4)))
    found = MeanPrediction(task).add(first, 3).add(second).outputs()
    torch.testing.assert_close(found, mean_outputs(task, [first, second, first, first]))
