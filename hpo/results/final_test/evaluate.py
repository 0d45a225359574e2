"""`hpo test`: one look of a study at its sealed test set, by the network that its chosen configuration makes.

The test images are read first, and compared with the training images in form; nothing else is asked of them until the
network is trained, on training and validation images together (or is a kept checkpoint), its weights are written, and
the whole look has been rehearsed on training images. That it begins is stored before the network sees a test image; it
counts once the storage has what was seen, before anybody is told. No other command opens test files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpo.data import Examples, SealedExamples, check_test, load_test
from hpo.errors import HpoError, StorageError
from hpo.files import write_atomically
from hpo.results.final_test.checkpoint import Trained, from_checkpoint
from hpo.results.final_test.model_folder import WEIGHTS_FILE, check_free, put, sha256
from hpo.results.final_test.predictions import answers, evaluating, practice_images, rehearse
from hpo.results.final_test.result import Tested, fill, result_of
from hpo.results.naming import file_stem
from hpo.results.selection import Selection, select
from hpo.search.plan import NetworkPlan, plan_stored, to_planned_device
from hpo.search.study_records import CODE, DATA, RUN, precision_of, stored_study, user_attrs_of
from hpo.storage import IDENTITY, Storage, load_study
from hpo.storage.test_evaluations import (
    StudyRef,
    check_untested,
    complete_evaluation,
    completed,
    evaluations_of,
    fail_evaluation,
    start_evaluation,
)
from hpo.studyfile import Study
from hpo.training.device_split import example_shape
from hpo.training.devices import describe_device
from hpo.training.networks.weights import load_network, read_weights, weights_to_bytes
from hpo.training.population import EpochResult
from hpo.training.seeds import derive_seed
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

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


def look(storage: Storage, name: str, wanted: Wanted, stop: threading.Event, say: Say) -> Tested:
    """Look at the test set of the study of that name; return the result, `hpo.test/1`, and the folder that holds it.

    Raises HpoError where the study has seen it and is not to see it again, and for whatever fails: before the look as
    far as that can be known, and where it is after it, the error says so. `stop` ends the training.
    """
    stored = load_study(storage, name)
    study, attrs = stored_study(stored), user_attrs_of(stored)
    check_untested(attrs, name, wanted.again)
    folder = wanted.folder or _default_folder(name, len(completed(evaluations_of(attrs))) + 1)
    check_free(folder)
    selected = select(storage, name, wanted.trial)
    planned = plan_stored(study, stored, wanted.device)
    check_test(study.data.dataset, study.folder)
    images = load_test(planned.split)
    _check_same(study, attrs, images)
    names, practice = planned.split.names, practice_images(planned.split, len(images))
    few = None if wanted.subnetworks is None else 2
    rehearse(study, selected, planned, practice, few)
    seen_by_look: dict[str, Any] = {}
    with _said_of(seen_by_look), put(folder) as filled:
        if wanted.checkpoint:
            trained = from_checkpoint(storage, stored, selected, planned)
        else:
            trained = _train(
                study, selected, precision_of(selected.config, attrs[RUN]["precision"]), planned, stop, say
            )
        weights = filled / WEIGHTS_FILE
        about = {"study": name, "trial": str(selected.trial), "data_sha256": planned.split.content_sha256}
        write_atomically(weights_to_bytes(trained.state, {"schema": "hpo.weights/1", **about}), weights)
        state, _ = read_weights(weights)
        shape = example_shape(planned.split.train.pixels.shape)
        network = load_network(weights, state, selected.config.network, shape, len(names)).to(planned.device)
        form = {"shape": list(shape), "classes": len(names), "white": planned.split.white}

        def write_result(number: int, saw: dict[str, Any]) -> dict[str, Any]:
            result = result_of(study, attrs[DATA], selected, trained, sha256(weights), number, saw, attrs.get(CODE))
            fill(filled, result, form)
            return result

        with evaluating(study, selected, "training images"):
            rehearsed = answers(network, practice, names, few, trained.seed)
        write_result(1, rehearsed)  # so there is room for what the look will leave
        looking = StudyRef(stored._study_id, name, attrs.get(IDENTITY))
        origin = {"trial": selected.trial, "from_checkpoint": wanted.checkpoint}
        begun = start_evaluation(storage, looking, wanted.again, origin)
        try:
            with evaluating(study, selected, "the test images"):
                saw = answers(network, images, names, wanted.subnetworks, trained.seed)
        except HpoError as error:
            fail_evaluation(storage, looking, begun, str(error))
            raise HpoError(f"{error}; nothing was seen, so it does not count as a look") from error
        try:
            ended = complete_evaluation(storage, looking, begun, wanted.again, saw)
        except StorageError as error:
            raise StorageError(f"{error}; what the look saw is not shown, and it counts only if it was kept") from error
        seen_by_look.update(saw)
        result = write_result(ended["look"], saw)
    return Tested(result, folder)


@contextmanager
def _said_of(saw: dict[str, Any]) -> Iterator[None]:
    """Have an error that comes after the look say what that saw."""
    try:
        yield
    except HpoError as error:
        if not saw:
            raise
        took = f"the look was taken, and the study keeps what it saw (accuracy {saw['accuracy']:.4f})"
        raise HpoError(f"{error}; {took}") from error


def _default_folder(name: str, look: int) -> Path:
    return Path(f"{file_stem(name)}-test" + ("" if look == 1 else f"-{look}"))


def _train(
    study: Study, selected: Selection, precision: str, planned: NetworkPlan, stop: threading.Event, say: Say
) -> Trained:
    """Train the selected configuration on all images that are not sealed, in the order of the split's shuffle."""
    split = planned.split
    whole = Examples(
        np.concatenate([split.validation.pixels, split.train.pixels]),
        np.concatenate([split.validation.labels, split.train.labels]),
    )
    config = selected.config
    # Its schedule is that of all its epochs, wherever it is to end; and no image is left to lose patience with.
    config = config.model_copy(update={"training": config.training.model_copy(update={"patience": None})})
    seed = derive_seed("test", study.search.seed, selected.trial)
    images = to_planned_device(study, replace(planned, split=replace(split, train=whole)))
    epochs = f"{selected.epochs} epoch{'s' if selected.epochs > 1 else ''}"
    say(f"{study.name}: trial {selected.trial} on {len(whole):,} images for {epochs}")

    def tell(result: EpochResult) -> None:
        if result.epoch % max(1, selected.epochs // MESSAGES) == 0 and selected.trial in result.metrics:
            loss = result.metrics[selected.trial]["train_loss"]
            say(f"{study.name}: epoch {result.epoch}/{selected.epochs}, training loss {loss:.4f}")

    trainer = Trainer(images, precision, say)
    member = Member(selected.trial, config, seed)
    metric, last = study.search.first_metric, selected.epochs
    outcomes = trainer.run([member], metric=metric, stop=stop, last_epoch=last, with_weights=True, on_epoch=tell)
    outcome = outcomes[selected.trial]
    if outcome.state is None:
        raise HpoError(
            f"study '{study.name}': trained on all images, trial {selected.trial} {outcome.failed}; the test set was "
            "not opened: select another trial with --trial"
        )
    return Trained(outcome.state, selected.epochs, len(whole), seed, False, describe_device(planned.device), precision)


def _check_same(study: Study, attrs: dict[str, Any], images: SealedExamples) -> None:
    """Raise HpoError where an earlier look saw other images: figures of two test sets are not of one study."""
    for look in completed(evaluations_of(attrs)):
        if look["result"]["sha256"] != images.content_sha256:
            raise HpoError(
                f"study '{study.name}': these are not the test images of look {look['look']} (their SHA-256 differs); "
                "bring them back"
            )
