"""Metrics and losses that a study file can name: of which tasks, and whether lower values of a metric are better.

A metric of the validation split is also a key of learning curves. A user-defined metric, `FILE.py:NAME`, has the key
`val_NAME` there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A metric of the validation split: the tasks that have it, and whether lower values are better."""

    tasks: tuple[str, ...]
    minimized: bool = False


TASKS = ("classification", "multilabel", "regression")

VALIDATION_METRICS: Mapping[str, Metric] = {
    "val_accuracy": Metric(("classification",)),
    "val_balanced_accuracy": Metric(("classification",)),
    "val_f1": Metric(("classification", "multilabel")),
    "val_f1_weighted": Metric(("classification",)),
    "val_auroc": Metric(("classification", "multilabel")),
    "val_top_k": Metric(("classification",)),
    "val_average_precision": Metric(("multilabel",)),
    "val_rmse": Metric(("regression",), minimized=True),
    "val_mae": Metric(("regression",), minimized=True),
    "val_r2": Metric(("regression",)),
    "val_loss": Metric(TASKS, minimized=True),
}
"""The metrics measured on the validation split after each epoch, if the study asks for them."""

DEFAULT_METRICS: Mapping[str, str] = {
    "classification": "val_accuracy",
    "multilabel": "val_f1",
    "regression": "val_rmse",
}
"""The metric of a study that names none."""

LOSSES: Mapping[str, tuple[str, ...]] = {
    "classification": ("cross_entropy",),
    "multilabel": ("bce",),
    "regression": ("mse", "mae", "huber", "gaussian_nll"),
}
"""The losses of each task, its default first."""

SUMS: Mapping[str, tuple[str, ...]] = {
    "classification": ("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
    "multilabel": ("train_loss", "val_loss"),
    "regression": ("train_loss", "val_loss"),
}
"""The metrics that every learning curve of a task has: sums over rows."""

TOP_K = "val_top_k"
"""The metric that needs `task.top_k`."""


def metrics_of_task(kind: str) -> list[str]:
    """Return the metrics of the validation split that a task has."""
    return [name for name, metric in VALIDATION_METRICS.items() if kind in metric.tasks]


def is_user_defined(metric: str) -> bool:
    """Return whether a metric of a study file is a reference to user code."""
    return ":" in metric


def is_absolute_error(metric: str, loss: str) -> bool:
    """Return whether a metric is the mean absolute error, as the loss is if it is `mae`."""
    return metric == "val_mae" or (metric == "val_loss" and loss == "mae")


def curve_key(metric: str) -> str:
    """Return the key of a metric in learning curves: `val_f2` for `my_metrics.py:f2`, and others as they are."""
    return f"val_{metric.rpartition(':')[2].rpartition('.')[2]}" if is_user_defined(metric) else metric


def curve_keys(task: str, metrics: Iterable[str]) -> tuple[str, ...]:
    """Return the keys of the learning curves of a task with these metrics of the study."""
    own = [curve_key(each) for each in metrics if is_user_defined(each) or each in VALIDATION_METRICS]
    return tuple(dict.fromkeys((*SUMS[task], *own)))
