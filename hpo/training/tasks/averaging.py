"""The mean of several networks' predictions, in the form of the outputs of one network."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.training.tasks.task import Task

LEAST_VARIANCE = 1e-12
"""Of a mixture, in standardized units: differences of equal numbers can be negative by rounding."""


def mean_outputs(task: Task, networks: Iterable[Tensor]) -> Tensor:
    """Return the outputs [N, outputs] whose prediction is the mean of those of the networks' outputs.

    That is the mean probability of each class or label, and the mean number of a regression. With `gaussian_nll` the
    variance is that of the mixture of the networks' normal distributions.
    """
    has_logarithms = task.kind != "regression"
    add = torch.logaddexp if has_logarithms else torch.add
    count, total = 0, torch.tensor(-torch.inf if has_logarithms else 0.0, dtype=torch.float64)
    for outputs in networks:
        total = add(total, _terms(task, outputs))
        count += 1
    mean = total - math.log(count) if has_logarithms else total / count
    if task.kind == "multilabel":
        return mean[0] - mean[1]
    if task.loss == "gaussian_nll":
        center, square = mean.chunk(2, 1)
        return torch.cat([center, (square - center.square()).clamp(min=LEAST_VARIANCE).log()], 1)
    return mean


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
