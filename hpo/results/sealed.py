"""`hpo test`: one look of a study at its sealed test set, by the network that its chosen configuration makes.

The network is trained on training and validation images together (or is a kept checkpoint), and its weights are written
before the test set is opened. That a look begins is stored before the first test file is opened, and what it saw after
that: nothing that happens in between can hide a look. No other command opens test files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpo.data import Images, SealedImages, check_test, load_test
from hpo.errors import HpoError
from hpo.results.checkpoint import Trained, from_checkpoint
from hpo.results.choice import Choice, chosen
from hpo.results.model_folder import WEIGHTS_FILE, check_free, put, sha256, write_file
from hpo.results.naming import file_stem
from hpo.results.scores import Logs, scores
from hpo.results.sealed_result import fill, result_of
from hpo.search.again import plan_again
from hpo.search.plan import Plan, on_device
from hpo.search.records import CODE, DATA, RUN, kept, precision_of, stored_study
from hpo.storage import IDENTITY, Storage, load_study
from hpo.storage.looks import Looking, begin_look, check_unseen, end_look, looks
from hpo.studyfile import Study
from hpo.training.devices import describe
from hpo.training.evaluation import drops_out, log_probabilities, of_subnetworks
from hpo.training.images import shape_of_images
from hpo.training.networks import build
from hpo.training.objective import Objective
from hpo.training.population import EpochResult
from hpo.training.seeds import derive_seed
from hpo.training.stack import Member
from hpo.training.weights import network_of, read, to_bytes

MESSAGES = 10  # about so many lines say how far the training is

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """How a study is to be tested, as the command line asks for it."""

    again: bool = False
    checkpoint: bool = False
    trial: int | None = None
    subnetworks: int | None = None
    device: str = "auto"
    folder: Path | None = None


def look(storage: Storage, name: str, wanted: Wanted, stop: threading.Event, say: Say) -> tuple[dict[str, Any], Path]:
    """Look at the test set of the study of that name; return the result, `hpo.test/1`, and the folder that holds it.

    Raises HpoError where the study has seen it and is not to see it again, and for whatever would keep the folder from
    being written, before the test set is opened. `stop` ends the training.
    """
    stored = load_study(storage, name)
    study, attrs = stored_study(stored), kept(stored)
    check_unseen(attrs, name, wanted.again)
    folder = wanted.folder or _default_folder(name, len(looks(attrs)) + 1)
    check_free(folder)
    choice = chosen(storage, name, wanted.trial)
    planned = plan_again(study, stored, wanted.device)
    if wanted.subnetworks is not None and not _drops_out(choice, planned):
        raise HpoError(f"--subnetworks: the configuration of trial {choice.trial} has no dropout, so it has none")
    check_test(study.data.dataset, study.folder)
    with put(folder) as filled:
        if wanted.checkpoint:
            trained = from_checkpoint(storage, stored, choice, planned)
        else:
            trained = _train(study, choice, precision_of(choice.config, attrs[RUN]["precision"]), planned, stop, say)
        weights = filled / WEIGHTS_FILE
        about = {"study": name, "trial": str(choice.trial), "data_sha256": planned.images.content_sha256}
        write_file(weights, to_bytes(trained.state, {"schema": "hpo.weights/1", **about}))
        state, _ = read(weights)
        shape = shape_of_images(planned.images.train.pixels.shape)
        network = network_of(weights, state, choice.config.network, shape, planned.images.classes)
        origin = {"trial": choice.trial, "from_checkpoint": wanted.checkpoint}
        looking = Looking(stored._study_id, name, attrs.get(IDENTITY))
        begun = begin_look(storage, looking, wanted.again, origin)
        images = load_test(planned.images)
        _check_same(study, attrs, images)
        saw = _saw(network.to(planned.device), images, planned.images.names, wanted.subnetworks, trained.seed)
        begun["looks"] = end_look(storage, looking, begun, saw)
        result = result_of(study, attrs[DATA], choice, trained, sha256(weights), begun, saw, attrs.get(CODE))
        form = {"shape": list(shape), "classes": planned.images.classes, "white": planned.images.white}
        try:
            fill(filled, result, form)
        except HpoError as error:
            took = f"the look was taken, and the study keeps what it saw (accuracy {saw['accuracy']:.4f})"
            raise HpoError(f"{error}; {took}") from error
    return result, folder


def _default_folder(name: str, look: int) -> Path:
    return Path(f"{file_stem(name)}-test" + ("" if look == 1 else f"-{look}"))


def _drops_out(choice: Choice, planned: Plan) -> bool:
    shape = shape_of_images(planned.images.train.pixels.shape)
    return drops_out(build(choice.config.network, shape, planned.images.classes, seed=0))


def _train(study: Study, choice: Choice, precision: str, planned: Plan, stop: threading.Event, say: Say) -> Trained:
    """Train the chosen configuration on all images that are not sealed, in the order of the split's shuffle."""
    split = planned.images
    whole = Images(
        np.concatenate([split.validation.pixels, split.train.pixels]),
        np.concatenate([split.validation.labels, split.train.labels]),
    )
    config = choice.config
    # Its schedule is that of all its epochs, wherever it is to end; and no image is left to lose patience with.
    config = config.model_copy(update={"training": config.training.model_copy(update={"patience": None})})
    seed = derive_seed("test", study.search.seed, choice.trial)
    images = on_device(study, replace(planned, images=replace(split, train=whole)))
    epochs = f"{choice.epochs} epoch{'s' if choice.epochs > 1 else ''}"
    say(f"{study.name}: trial {choice.trial} on {len(whole):,} images for {epochs}")

    def tell(result: EpochResult) -> None:
        if result.epoch % max(1, choice.epochs // MESSAGES) == 0 and choice.trial in result.metrics:
            loss = result.metrics[choice.trial]["train_loss"]
            say(f"{study.name}: epoch {result.epoch}/{choice.epochs}, training loss {loss:.4f}")

    objective = Objective(images, precision, say)
    member = Member(choice.trial, config, seed)
    metric, last = study.search.first_metric, choice.epochs
    outcomes = objective.run([member], metric=metric, stop=stop, last=last, keep=True, on_epoch=tell)
    outcome = outcomes[choice.trial]
    if outcome.state is None:
        raise HpoError(
            f"study '{study.name}': trained on all images, trial {choice.trial} {outcome.failed}; the test set was not "
            "opened: choose another one with --trial"
        )
    return Trained(outcome.state, choice.epochs, len(whole), seed, False, describe(planned.device), precision)


def _saw(
    network: nn.Module, images: SealedImages, names: Sequence[str], subnetworks: int | None, seed: int
) -> dict[str, Any]:
    """Return what the network makes of the test images."""
    pixels = torch.from_numpy(images.pixels)
    logs = log_probabilities(network, pixels)
    saw = scores(_array(logs), images.labels).to_json(names)
    saw["subnetworks"] = None if subnetworks is None else _averaged(network, pixels, images, logs, subnetworks, seed)
    saw["sha256"] = images.content_sha256
    return saw


def _averaged(
    network: nn.Module, pixels: Tensor, images: SealedImages, scaled: Tensor, count: int, seed: int
) -> dict[str, Any]:
    """Return how the mean of random sub-networks' outputs compares with the one scaled network's."""
    singles = []

    def note(logs: Tensor) -> None:
        one = scores(_array(logs), images.labels)
        singles.append((one.accuracy, one.loss))

    averaged = of_subnetworks(network, pixels, count, seed, note)
    mean = scores(_array(averaged), images.labels)
    accuracy, loss = (sum(values) / count for values in zip(*singles, strict=True))
    return {
        "count": count,
        "mean": {"accuracy": mean.accuracy, "loss": mean.loss},
        "single": {"accuracy": accuracy, "loss": loss},
        "difference": (averaged.exp() - scaled.exp()).abs().mean().item(),
    }


def _array(logs: Tensor) -> Logs:
    return logs.numpy()


def _check_same(study: Study, attrs: dict[str, Any], images: SealedImages) -> None:
    """Raise HpoError where an earlier look saw other images: figures of two test sets are not of one study."""
    for look in looks(attrs):
        if look["result"] is not None and look["result"]["sha256"] != images.content_sha256:
            raise HpoError(
                f"study '{study.name}': these are not the test images of look {look['look']} (their SHA-256 differs); "
                "bring them back"
            )
