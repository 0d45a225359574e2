"""The trivial baseline beside a study's scores: its value in words, and a warning where the best score is not better.

Its value of each metric is in the study's data record; older studies get one when they are launched again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.results.ranking import metric_label
from hpo.studyfile import AnyStudy, Study
from hpo.studyfile.metrics import is_absolute_error

PREDICTIONS = {
    "classification": "always the most frequent class",
    "multilabel": "always the frequency of each label",
    "regression": "always the mean of the training targets",
}
"""Task -> the constant predictions of the trivial baseline in words."""


@dataclass(frozen=True)
class TrivialBaseline:
    """The trivial baseline of a study in its first metric; `predictions` describes its constant predictions."""

    metric: str
    value: float
    minimized: bool
    predictions: str

    @property
    def text(self) -> str:
        """The value in words: `val acc 0.1017 (always the most frequent class)`."""
        return f"{metric_label(self.metric)} {self.value:.4f} ({self.predictions})"

    def is_worse_than(self, score: float) -> bool:
        """Return whether a score of the metric is better."""
        return score < self.value if self.minimized else score > self.value

    def warning(self, best: float) -> str:
        """Return a warning where the best score is not better than the baseline; "" where it is."""
        if self.is_worse_than(best):
            return ""
        problem = f"the best trial ({best:.4f}) is not better than the trivial baseline: {self.text}"
        return f"{problem}; check the inputs and targets, or widen the search space"


def trivial_baseline_of(study: AnyStudy, data: Mapping[str, Any]) -> TrivialBaseline | None:
    """Return the trivial baseline of a study with this data record; None without one, or where it is undefined."""
    metric, value = study.search.first_metric, data.get("trivial", {}).get(study.search.first_metric)
    if value is None or not isinstance(study, Study):
        return None
    return TrivialBaseline(metric, value, study.search.minimized, _predictions(study, metric))


def _predictions(study: Study, metric: str) -> str:
    if study.task.kind == "regression" and is_absolute_error(metric, study.task.used_loss):
        return "always the median of the training targets"
    return PREDICTIONS[study.task.kind]
