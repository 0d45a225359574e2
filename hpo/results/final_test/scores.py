"""Scores of a network on labelled examples of any task, and of the mean of its random sub-networks.

Scores of classes are accuracy with its interval, loss, and confusion matrix; the predicted class is the most probable
one, the first of equals. Whatever a network raises, a user-defined module for instance, becomes an HpoError of one
line. Stores nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from hpo.results.final_test.study_metric import StudyMetric, metrics_of_test
from hpo.results.final_test.target_scores import target_scores
from hpo.results.selection import Selection
from hpo.search.plan import NetworkPlan
from hpo.studyfile import Study
from hpo.training.device_data import split_shape
from hpo.training.evaluation import has_dropout, network_outputs, subnetwork_outputs
from hpo.training.networks.builtin import build
from hpo.training.stack import EVALUATION_BATCH
from hpo.training.tasks.averaging import mean_outputs
from hpo.training.tasks.metrics import MetricFunction
from hpo.training.tasks.task import PREDICTIONS, Task, output_count
from hpo.training.tasks.trivial import mean_or_none
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
    task: Task,
    names: Sequence[str],
    metric: StudyMetric | None,
    subnetworks: int | None,
    seed: int,
) -> dict[str, Any]:
    """Return the network's scores as JSON, with those of random sub-networks. Raises HpoError for a loss of NaN.

    `names` are those of the classes or labels. `metric` is the study's metric, None where that is accuracy or loss.
    """
    inputs, targets = torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets)
    outputs = network_outputs(network, inputs)
    if task.kind == "classification":
        log_probs = torch.log_softmax(outputs, 1)
        found = scores(log_probs.numpy(), examples.targets.astype(np.int64)).to_json(names)
        if metric is not None:
            found["metric"] = metric.to_json(log_probs, targets)
    else:
        assert metric is not None, "only a classification may have no metric but accuracy and loss"
        found = target_scores(outputs, targets, task, names, metric)
    _check_loss(found["loss"])
    found["subnetworks"] = None
    if subnetworks is not None:
        each = subnetwork_outputs(network, inputs, subnetworks, seed)
        found["subnetworks"] = _subnetwork_scores(each, targets, task, metrics_of_test(metric, task), outputs)
    found["sha256"] = examples.content_sha256
    return found


def _check_loss(loss: float | None) -> None:
    if loss is None or not math.isfinite(loss):
        raise HpoError(f"its loss is {math.nan if loss is None else loss}")


def _subnetwork_scores(
    subnetworks: Iterable[Tensor], targets: Tensor, task: Task, metrics: Mapping[str, MetricFunction], whole: Tensor
) -> dict[str, Any]:
    """Compare the mean of random sub-networks' predictions with those of the `whole` network's outputs."""
    singles = list[dict[str, float | None]]()

    def measured(outputs: Tensor) -> dict[str, float | None]:
        values = {name: float(measure(outputs[None], targets)) for name, measure in task.measures(metrics).items()}
        _check_loss(values["loss"])
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def each() -> Iterator[Tensor]:
        for outputs in subnetworks:
            singles.append(measured(outputs))
            yield outputs

    averaged = mean_outputs(task, each())
    predictions, of_whole = (PREDICTIONS[task.kind](task.predictions(outputs)) for outputs in (averaged, whole))
    return {
        "count": len(singles),
        "mean": measured(averaged),
        "single": {name: mean_or_none([single[name] for single in singles]) for name in singles[0]},
        "difference": (predictions - of_whole).abs().mean().item(),
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
    label = f"the network of trial {selected.trial}"
    with network_errors(study, label, "training examples"):
        shape, outputs = split_shape(planned.split), output_count(study.task, planned.split)
        network = build(selected.config.network, shape, outputs, seed=0).to(planned.device)
    if subnetworks is not None and not has_dropout(network):
        raise HpoError(f"--subnetworks: trial {selected.trial} has no dropout layer, so it has no random sub-networks")
    with network_errors(study, label, "training examples"):
        inputs = torch.from_numpy(sample.inputs)
        network_outputs(network, inputs)
        if subnetworks is not None:
            list(subnetwork_outputs(network, inputs, subnetworks, 0))


@contextmanager
def network_errors(study: Study, label: str, data: str) -> Iterator[None]:
    """Turn any exception of the block into an HpoError of one line; `label` names the networks, `data` the examples."""
    try:
        yield
    except Exception as error:
        reason = str(error) if isinstance(error, HpoError) else one_line_error(error, study.folder)
        raise HpoError(f"study '{study.name}': {label} cannot be evaluated on {data}: {reason}") from error
