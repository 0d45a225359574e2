"""Scores of a network whose task is a regression, or has several labels: metrics, loss, and what the figure shows.

The study's metric has an interval by the bootstrap. Regressions are in the user's unit. Stores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpo.results.final_test.study_metric import StudyMetric
from hpo.training.tasks.metrics import FUNCTIONS
from hpo.training.tasks.task import Task

MAX_PAIRS = 1000
"""Maximum number of examples in the figure of true and predicted numbers."""


def target_scores(
    outputs: Tensor, targets: Tensor, task: Task, names: Sequence[str], metric: StudyMetric
) -> dict[str, Any]:
    """Return the scores of a network's outputs as JSON. `names` are those of labels, none for a regression."""
    predictions = task.predictions(outputs)
    found = {
        name: value if math.isfinite(value := float(function(predictions[None], targets))) else None
        for name, function in FUNCTIONS[task.kind].items()
    }
    shown = _label_counts(predictions, targets, names) if names else _pairs(predictions, targets)
    return {
        "images": len(targets),
        "loss": float(task.measures({})["loss"](outputs[None], targets)),
        "metric": metric.to_json(predictions, targets),
        "metrics": found,
        **shown,
    }


def _label_counts(outputs: Tensor, targets: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Return for each label the numbers of examples with and without it that are predicted correctly or not."""
    predicted, present = outputs > 0, targets > 0
    counts = {
        "true_positive": (predicted & present).sum(0),
        "false_negative": (~predicted & present).sum(0),
        "false_positive": (predicted & ~present).sum(0),
        "true_negative": (~predicted & ~present).sum(0),
    }
    rows = zip(*(each.tolist() for each in counts.values()), strict=True)
    return {
        "labels": [{"name": name, **dict(zip(counts, row, strict=True))} for name, row in zip(names, rows, strict=True)]
    }


def _pairs(predictions: Tensor, targets: Tensor) -> dict[str, Any]:
    """Return true and predicted numbers of at most `MAX_PAIRS` examples, one list of pairs for each column."""
    rows = np.unique(np.linspace(0, len(targets) - 1, MAX_PAIRS).round().astype(np.int64))
    both = torch.stack([targets[rows], predictions[rows]], 2)
    return {"pairs": both.transpose(0, 1).tolist()}
