"""The mean of several networks' predictions, in the form of the outputs of one network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.training.tasks.task import Task

LEAST_VARIANCE = 1e-12
"""Of a mixture, in standardized units: differences of equal numbers can be negative by rounding."""


@dataclass(frozen=True, eq=False)
class MeanPrediction:
    """The mean prediction of the networks added so far: the mean probability of each class or label, or mean number.

    `count` is the number of networks, `total` the sum over them of what is averaged.
    """

    task: Task
    count: int = 0
    total: Tensor | None = None

    def add(self, outputs: Tensor, times: int = 1) -> MeanPrediction:
        """Return the mean with a further network's outputs [N, outputs], counted so many times."""
        terms = _terms(self.task, outputs)
        if self.task.kind == "regression":
            total = terms * times if self.total is None else self.total + terms * times
        else:
            terms = terms + math.log(times)
            total = terms if self.total is None else torch.logaddexp(self.total, terms)
        return MeanPrediction(self.task, self.count + times, total)

    def outputs(self) -> Tensor:
        """Return the outputs [N, outputs] whose prediction is the mean.

        With `gaussian_nll` the variance is that of the mixture of the networks' normal distributions.
        """
        assert self.total is not None, "the mean of no network"
        has_logarithms = self.task.kind != "regression"
        mean = self.total - math.log(self.count) if has_logarithms else self.total / self.count
        if self.task.kind == "multilabel":
            return mean[0] - mean[1]
        if self.task.loss == "gaussian_nll":
            center, square = mean.chunk(2, 1)
            return torch.cat([center, (square - center.square()).clamp(min=LEAST_VARIANCE).log()], 1)
        return mean


def mean_outputs(task: Task, networks: Iterable[Tensor]) -> Tensor:
    """Return the outputs [N, outputs] whose prediction is the mean of those of the networks' outputs."""
    mean = MeanPrediction(task)
    for outputs in networks:
        mean = mean.add(outputs)
    return mean.outputs()


def _terms(task: Task, outputs: Tensor) -> Tensor:
    """Return what is averaged: logarithms of probabilities, numbers, or first and second moments."""
    if task.kind == "classification":
        return F.log_softmax(outputs, 1)
    if task.kind == "multilabel":
        return torch.stack([F.logsigmoid(outputs), F.logsigmoid(-outputs)])
    if task.loss == "gaussian_nll":
        center, logarithm = outputs.chunk(2, 1)
        return torch.cat([center, logarithm.exp() + center.square()], 1)
    return outputs
