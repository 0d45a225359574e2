"""What a network makes of labelled images, as a look at the test set keeps it; and the same tried on training images.

Whatever a network raises, the user's own module say, is an HpoError of one line. Knows nothing of looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpo.data import Examples, SealedExamples, Split
from hpo.errors import HpoError
from hpo.results.final_test.scores import Scores, scores
from hpo.results.selection import Selection
from hpo.search.plan import NetworkPlan
from hpo.studyfile import Study
from hpo.training.device_split import example_shape
from hpo.training.evaluation import has_dropout, log_probabilities, subnetwork_log_probabilities
from hpo.training.networks.builtin import build
from hpo.training.stack import EVALUATION_BATCH
from hpo.usercode import one_line_error


def practice_images(split: Split, count: int) -> SealedExamples:
    """Return training images in the place of `count` test images, as many as make batches of the same sizes."""
    batches = min(count, EVALUATION_BATCH + count % EVALUATION_BATCH)
    chosen = np.arange(batches) % len(split.train)
    return SealedExamples(split.train.pixels[chosen], split.train.labels[chosen], split.content_sha256)


def rehearse(
    study: Study, selected: Selection, planned: NetworkPlan, practice: Examples, subnetworks: int | None
) -> None:
    """Have a fresh network do what the trained one is to do: much training is lost on one that cannot."""
    shape = example_shape(practice.pixels.shape)
    with evaluating(study, selected, "training images"):
        network = build(selected.config.network, shape, planned.split.classes, seed=0).to(planned.device)
    if subnetworks is not None and not has_dropout(network):
        raise HpoError(f"--subnetworks: trial {selected.trial} has no dropout layer, so it has no random sub-networks")
    with evaluating(study, selected, "training images"):
        pixels = torch.from_numpy(practice.pixels)
        log_probabilities(network, pixels)
        if subnetworks is not None:
            subnetwork_log_probabilities(network, pixels, subnetworks, 0, lambda logs: None)


@contextmanager
def evaluating(study: Study, selected: Selection, what: str) -> Iterator[None]:
    """Turn what a network raises, or has wrong, into an HpoError of one line."""
    try:
        yield
    except Exception as error:
        said = str(error) if isinstance(error, HpoError) else one_line_error(error, study.folder)
        raise HpoError(
            f"study '{study.name}': the network of trial {selected.trial} cannot be evaluated on {what}: {said}"
        ) from error


def answers(
    network: nn.Module, images: SealedExamples, names: Sequence[str], subnetworks: int | None, seed: int
) -> dict[str, Any]:
    """Return what the network makes of the images. Raises HpoError where that is no finite loss."""
    pixels = torch.from_numpy(images.pixels)
    logs = log_probabilities(network, pixels)
    found = _scores(logs, images)
    saw = found.to_json(names)
    saw["subnetworks"] = None if subnetworks is None else _averaged(network, pixels, images, logs, subnetworks, seed)
    saw["sha256"] = images.content_sha256
    return saw


def _scores(logs: Tensor, images: Examples) -> Scores:
    found = scores(logs.numpy(), images.labels)
    if not math.isfinite(found.loss):
        raise HpoError(f"its loss is {found.loss}")
    return found


def _averaged(
    network: nn.Module, pixels: Tensor, images: SealedExamples, scaled: Tensor, count: int, seed: int
) -> dict[str, Any]:
    """Return how the mean of random sub-networks' outputs compares with the one scaled network's."""
    singles = []

    def note(logs: Tensor) -> None:
        one = _scores(logs, images)
        singles.append((one.accuracy, one.loss))

    averaged = subnetwork_log_probabilities(network, pixels, count, seed, note)
    mean = _scores(averaged, images)
    accuracy, loss = (sum(values) / count for values in zip(*singles, strict=True))
    return {
        "count": count,
        "mean": {"accuracy": mean.accuracy, "loss": mean.loss},
        "single": {"accuracy": accuracy, "loss": loss},
        "difference": (averaged.exp() - scaled.exp()).abs().mean().item(),
    }
