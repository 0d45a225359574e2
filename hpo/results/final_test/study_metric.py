"""The metric of a study on the test set, with an interval by the bootstrap over examples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpo.results.compare.statistics import CONFIDENCE, bootstrap
from hpo.results.ranking import metric_label
from hpo.studyfile import Study
from hpo.studyfile.metrics import DEFAULT_METRICS
from hpo.training.tasks.metrics import FUNCTIONS, MetricFunction
from hpo.training.tasks.task import Task


@dataclass(frozen=True)
class StudyMetric:
    """A metric of a study: its key without `val_`, and its function of outputs [K, N, outputs] and targets."""

    key: str
    function: MetricFunction

    @property
    def name(self) -> str:
        """The name in results."""
        return measure_label(self.key)

    def to_json(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        """Return the metric with its interval by the bootstrap as JSON; None for undefined values."""

        def value(rows: NDArray[np.int64]) -> float:
            return float(self.function(outputs[None, rows], targets[rows]))

        found, interval = value(np.arange(len(targets))), bootstrap(value, len(targets))
        return {
            "name": self.name,
            "value": found if math.isfinite(found) else None,
            "interval": None if interval is None else {"level": CONFIDENCE, "low": interval.low, "high": interval.high},
        }


def study_metric(study: Study, task: Task) -> StudyMetric | None:
    """Return the study's first metric for the test set; None where it is accuracy or loss, as every test has them.

    A task without an accuracy has its default metric in the place of the loss.
    """
    key = study.search.first_metric
    function = task.metrics.get(key)
    if function is None and task.kind != "classification":
        key = DEFAULT_METRICS[task.kind]
        function = FUNCTIONS[task.kind][key.removeprefix("val_")]
    return None if function is None else StudyMetric(key.removeprefix("val_"), function)


def metrics_of_test(metric: StudyMetric | None, task: Task) -> dict[str, MetricFunction]:
    """Return the metrics of a test besides accuracy and loss: the study's, and all of a task other than classes."""
    found = {} if metric is None else {metric.key: metric.function}
    return found if task.kind == "classification" else {**found, **FUNCTIONS[task.kind]}


def measure_label(key: str) -> str:
    """Return the short name of a metric on the test set; the key has no `val_`: `accuracy`, `f1`, `balanced acc`."""
    return key if key == "accuracy" else metric_label(f"val_{key}").removeprefix("val ")
