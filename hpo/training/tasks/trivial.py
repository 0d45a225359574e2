"""The trivial baseline: metrics of constant predictions, computed from targets alone, without a network.

    classification   the class frequencies as probabilities: the predicted class is the most frequent one
    multilabel       the frequency of each label as its probability
    regression       the mean of each target column; for the mean absolute error its median, the better constant

Frequencies, mean and median are those of the training targets. A network that learns from its inputs is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from hpo.data import Split
from hpo.data.examples import Targets
from hpo.studyfile.metrics import is_absolute_error
from hpo.training.devices import is_out_of_memory
from hpo.training.tasks.metrics import MetricFunction
from hpo.training.tasks.task import Task

MIN_LOG_PROBABILITY = -100.0
"""Logarithm of a frequency of 0, as in torch.nn.BCELoss: the loss stays finite."""

TrivialScores = dict[str, float | None]
"""Metric -> value of the trivial baseline; None where it is undefined."""


def trivial_baseline(folds: Sequence[Split], task_of: Callable[[Split], Task]) -> TrivialScores:
    """Return the metrics of the trivial baseline on the validation split, by key of learning curves.

    They are means over the folds, or splits, of which `task_of` returns the task.
    """
    of_folds = []
    for fold in folds:
        task = task_of(fold)
        metrics = {key.removeprefix("val_"): metric for key, metric in task.metrics.items()}
        of_folds.append(trivial_scores(task, fold.train.targets, fold.validation.targets, metrics))
    return {f"val_{name}": mean_or_none([each[name] for each in of_folds]) for name in of_folds[0]}


def trivial_scores(
    task: Task, training: Targets, targets: Targets, metrics: Mapping[str, MetricFunction]
) -> TrivialScores:
    """Return `metrics`, the accuracy of a classification, and the loss, of the trivial baseline for these targets."""
    expected = torch.from_numpy(targets)

    def value(name: str, measure: MetricFunction) -> float | None:
        outputs = _outputs(task, training, is_absolute_error(f"val_{name}", task.loss)).expand(1, len(expected), -1)
        try:
            found = float(measure(outputs, expected))
        except Exception as error:  # user code may refuse constant predictions: undefined
            if is_out_of_memory(error):
                raise
            return None
        return found if math.isfinite(found) else None

    return {name: value(name, measure) for name, measure in task.measures(metrics).items()}


def _outputs(task: Task, training: Targets, median: bool) -> Tensor:
    """Return the constant outputs of the baseline, [outputs], as a network would have them."""
    if task.kind == "classification":
        counts = torch.from_numpy(np.bincount(training.astype(np.int64), minlength=task.outputs))
        return (counts.double() / len(training)).log().clamp(min=MIN_LOG_PROBABILITY)
    if task.kind == "multilabel":
        frequency = torch.from_numpy(training.mean(0))
        present, absent = (each.log().clamp(min=MIN_LOG_PROBABILITY) for each in (frequency, 1 - frequency))
        return present - absent
    assert task.scaling is not None, "a regression has one"
    constant = np.median(training, 0) if median else training.mean(0)
    numbers = task.scaling.standardized(torch.from_numpy(constant))
    return torch.cat([numbers, torch.zeros(task.outputs - len(numbers), dtype=numbers.dtype)])  # a variance of 1


def mean_or_none(values: Sequence[float | None]) -> float | None:
    """Return the mean of values; None where one is undefined."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None
