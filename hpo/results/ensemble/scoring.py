"""The score of predictions on labelled examples in a study's first metric."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from hpo.errors import HpoError
from hpo.studyfile import Study
from hpo.training.devices import is_out_of_memory
from hpo.training.tasks.metrics import MetricFunction
from hpo.training.tasks.task import Task
from hpo.usercode import one_line_error

SUMS = {"val_accuracy": "accuracy", "val_loss": "loss"}
"""The metrics of every learning curve by the names of a task's measures."""


@dataclass(frozen=True)
class Scorer:
    """A study's first metric and its loss, as functions of outputs [1, N, outputs] and targets [N, ...]."""

    study: Study
    metric: MetricFunction
    loss: MetricFunction

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric of outputs [N, outputs]; NaN where it is undefined."""
        return self._value(self.metric, outputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Return the metric, negative where higher values are better, and the loss; infinity where undefined."""
        sign = 1 if self.study.search.minimized else -1
        found = (sign * self.score(outputs, targets), self._value(self.loss, outputs, targets))
        first, second = (math.inf if math.isnan(each) else each for each in found)
        return first, second

    def _value(self, function: MetricFunction, outputs: Tensor, targets: Tensor) -> float:
        try:
            return float(function(outputs[None], targets))
        except Exception as error:  # user code
            if isinstance(error, HpoError) or is_out_of_memory(error):
                raise
            reason = one_line_error(error, self.study.folder)
            raise HpoError(
                f"study '{self.study.name}': the ensemble's predictions cannot be scored: {reason}"
            ) from error


def make_scorer(study: Study, task: Task) -> Scorer:
    """Return the scorer of a study. Raises HpoError for a metric that is not one of predictions."""
    measures = task.measures(task.metrics)
    metric = measures.get(SUMS.get(study.search.first_metric, study.search.first_metric))
    if metric is None:
        problem = f"its first metric, {study.search.first_metric}, is not one of predictions"
        raise HpoError(f"study '{study.name}': {problem}: an ensemble needs another first metric in search.metric")
    return Scorer(study, metric, measures["loss"])
