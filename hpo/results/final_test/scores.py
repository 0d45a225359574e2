"""Scores of a network on labelled examples: accuracy with its interval, loss, and confusion matrix.

The predicted class is the most probable one, the first of equals. Whatever a network raises, a user-defined module for
instance, becomes an HpoError of one line. Stores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpo.data import Examples, SealedExamples, Split
from hpo.errors import HpoError
from hpo.results.compare.statistics import CONFIDENCE, wilson
from hpo.results.final_test.study_metric import StudyMetric
from hpo.results.selection import Selection
from hpo.search.plan import NetworkPlan
from hpo.studyfile import Study
from hpo.training.device_data import split_shape
from hpo.training.evaluation import has_dropout, log_probabilities, subnetwork_log_probabilities
from hpo.training.networks.builtin import build
from hpo.training.stack import EVALUATION_BATCH
from hpo.training.tasks.task import output_count
from hpo.usercode import one_line_error


@dataclass(frozen=True)
class Scores:
    """Scores on `images` examples, of which `right` were classified correctly.

    `loss` is the mean cross-entropy in nats; `confusion[a][b]` counts the examples of class a predicted as class b.
    """

    images: int
    right: int
    loss: float
    confusion: list[list[int]]

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions."""
        return self.right / self.images

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the scores as JSON, with the accuracy's interval and each class's accuracy (None without examples).

        `names` are the names of the classes.
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


def scores(log_probs: NDArray[np.float64], labels: NDArray[np.int64]) -> Scores:
    """Return the scores of log-probabilities, [N, classes], for examples with these labels."""
    count, classes = log_probs.shape
    predicted = log_probs.argmax(1)
    confusion = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    loss = -float(log_probs[np.arange(count), labels].mean())
    return Scores(count, int((predicted == labels).sum()), loss, confusion.tolist())


def evaluate_network(
    network: nn.Module,
    examples: SealedExamples,
    names: Sequence[str],
    subnetworks: int | None,
    seed: int,
    metric: StudyMetric | None = None,
) -> dict[str, Any]:
    """Return the network's scores as JSON, with those of random sub-networks. Raises HpoError for a loss of NaN.

    `metric` is the study's metric, unless that is accuracy or loss.
    """
    inputs = torch.from_numpy(examples.inputs)
    log_probs = log_probabilities(network, inputs)
    found = _finite_scores(log_probs, examples).to_json(names)
    if metric is not None:
        found["metric"] = metric.to_json(log_probs, torch.from_numpy(examples.targets))
    found["subnetworks"] = (
        None if subnetworks is None else _subnetwork_scores(network, inputs, examples, log_probs, subnetworks, seed)
    )
    found["sha256"] = examples.content_sha256
    return found


def _finite_scores(log_probs: Tensor, examples: Examples) -> Scores:
    found = scores(log_probs.numpy(), examples.targets.astype(np.int64))
    if not math.isfinite(found.loss):
        raise HpoError(f"its loss is {found.loss}")
    return found


def _subnetwork_scores(
    network: nn.Module, inputs: Tensor, examples: SealedExamples, whole: Tensor, count: int, seed: int
) -> dict[str, Any]:
    """Compare the mean of random sub-networks' probabilities with the `whole` network's."""
    singles = []

    def add(log_probs: Tensor) -> None:
        one = _finite_scores(log_probs, examples)
        singles.append((one.accuracy, one.loss))

    averaged = subnetwork_log_probabilities(network, inputs, count, seed, add)
    mean = _finite_scores(averaged, examples)
    accuracy, loss = (sum(values) / count for values in zip(*singles, strict=True))
    return {
        "count": count,
        "mean": {"accuracy": mean.accuracy, "loss": mean.loss},
        "single": {"accuracy": accuracy, "loss": loss},
        "difference": (averaged.exp() - whole.exp()).abs().mean().item(),
    }


def training_sample(split: Split, count: int) -> SealedExamples:
    """Return training examples for a dry run: enough for batches of the sizes that `count` test examples make."""
    needed = min(count, EVALUATION_BATCH + count % EVALUATION_BATCH)
    indices = np.arange(needed) % len(split.train)
    return SealedExamples(split.train.inputs[indices], split.train.targets[indices], split.content_sha256)


def check_untrained(
    study: Study, selected: Selection, planned: NetworkPlan, sample: Examples, subnetworks: int | None
) -> None:
    """Raise HpoError where an untrained network cannot be evaluated: training it would be wasted."""
    with network_errors(study, selected, "training examples"):
        shape, outputs = split_shape(planned.split), output_count(study.task, planned.split)
        network = build(selected.config.network, shape, outputs, seed=0).to(planned.device)
    if subnetworks is not None and not has_dropout(network):
        raise HpoError(f"--subnetworks: trial {selected.trial} has no dropout layer, so it has no random sub-networks")
    with network_errors(study, selected, "training examples"):
        inputs = torch.from_numpy(sample.inputs)
        log_probabilities(network, inputs)
        if subnetworks is not None:
            subnetwork_log_probabilities(network, inputs, subnetworks, 0, lambda log_probs: None)


@contextmanager
def network_errors(study: Study, selected: Selection, data: str) -> Iterator[None]:
    """Turn any exception of the block into an HpoError of one line; `data` names the examples."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, HpoError) else one_line_error(error, study.folder)
        raise HpoError(
            f"study '{study.name}': the network of trial {selected.trial} cannot be evaluated on {data}: {reason}"
        ) from error
