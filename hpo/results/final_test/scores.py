"""What a network's answers to labelled images come to: accuracy with its interval, loss, and which classes it confuses.

Pure functions of numbers; an answer is the most probable class, the first one of equals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.results.compare.statistics import CONFIDENCE, wilson

Logs = NDArray[np.float64]
"""Logarithms of probabilities, [images, classes]."""

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Of `images` so many `right`; `loss` is the mean in nats; `confusion[a][b]` counts images of class a called b."""

    images: int
    right: int
    loss: float
    confusion: list[list[int]]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.images

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the scores as JSON, with the accuracy's interval and that of each class; null for an absent class.

        `names` are those of the classes.
        """
        interval = wilson(self.right, self.images)
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "interval": {"level": CONFIDENCE, "low": interval.low, "high": interval.high},
            "loss": self.loss,
            "classes": [
                {"class": i, "name": name, "images": sum(row), "accuracy": row[i] / sum(row) if sum(row) else None}
                for i, (name, row) in enumerate(zip(names, self.confusion, strict=True))
            ],
            "confusion": self.confusion,
        }


def scores(logs: Logs, labels: Labels) -> Scores:
    """Return what these log-probabilities come to on images with these labels."""
    count, classes = logs.shape
    answers = logs.argmax(1)
    confusion = np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)
    loss = -float(logs[np.arange(count), labels].mean())
    return Scores(count, int((answers == labels).sum()), loss, confusion.tolist())
