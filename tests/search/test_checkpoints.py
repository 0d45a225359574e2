"""Checkpoints of the best trials: which are stored, their match with the learning curves, and removal of others."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from optuna.artifacts import get_all_artifact_meta
from optuna.trial import TrialState
from tiny import search, states, study_of, tree, trials_of

from hpo.data import load_split
from hpo.results.copy import copy_line
from hpo.search.checkpoints import weights as checkpoints
from hpo.search.checkpoints.weights import WEIGHTS
from hpo.search.events import EpochEnded, Event, Note, PopulationEnded
from hpo.search.populations.population_run import CURVE
from hpo.search.space import config_of
from hpo.service.queue_control import delete
from hpo.storage import Storage, best_trials, identity, load_study, open_storage, rename_study, study_names
from hpo.storage.artifacts import CHECKPOINT_NAMES, artifact_folder, checkpoint_files, checkpoint_id, state_file_id
from hpo.studyfile import Study, parse_study
from hpo.training.device_data import example_shape
from hpo.training.early_stopping import has_stopped_improving
from hpo.training.networks.weights_file import load_network, read_weights

ROUGH = {"low": 0.5, "high": 30.0, "log": True}
"""Learning rates at which the lowest validation loss is often not the last epoch's."""


FILE_IDS = (checkpoint_id, state_file_id)


def study_with_checkpoints(keep: str, most: int = 3, trials: int = 8, name: str = "tiny", **search: object) -> Study:
    return study_of(
        name=name,
        network={"hidden": {"choices": [[8], [5, 5]]}, "dropout": 0.2, "batch_norm": True},
        optimizer={"lr": ROUGH},
        training={"epochs": 5, "keep": keep, "keep_trials": most},
        search={"trials": trials, "population": 4, "seed": 2, **search},
    )


def stored_study(storage: Storage, name: str = "tiny") -> tuple[int, str]:
    study = load_study(storage, name)
    return study._study_id, identity(study.user_attrs, name)


def files(storage: Storage) -> set[str]:
    folder = artifact_folder(storage.location)
    return set(os.listdir(folder)) if folder.exists() else set()


def check_checkpoints(study: Study, storage: Storage) -> None:
    """Check that the files are those of the best trials, each with the validation loss of its learning curve.

    With `keep = "last"` those that have not ended early have a training state, too.
    """
    study_id, own_id = stored_study(storage, study.name)
    settings, split = study.first_settings.training, load_split(study)
    best = [trial.number for trial in best_trials(storage, study.name, settings.keep_trials)]
    assert len(best) == min(settings.keep_trials, len(trials_of(storage, study.name)))
    stored = checkpoint_files(storage, study_id)
    assert sorted(file.number for file in stored) == sorted(best)
    assert {file.artifact_id for file in stored} == {checkpoint_id(own_id, number) for number in best}
    trials = trials_of(storage, study.name)
    for file in stored:
        trial, path = trials[file.number], artifact_folder(storage.location) / file.artifact_id
        (meta,) = get_all_artifact_meta(trial, storage=storage)
        assert (meta.artifact_id, meta.filename) == (file.artifact_id, CHECKPOINT_NAMES[settings.keep])
        state, metadata = read_weights(path)
        losses = trial.system_attrs[CURVE]["val_loss"]
        epoch = losses.index(min(losses)) + 1 if settings.keep == "best" else len(losses)
        assert (metadata["schema"], metadata["trial"], metadata["epoch"]) == (WEIGHTS, str(trial.number), str(epoch))
        assert float(metadata["val_loss"]) == losses[epoch - 1]
        shape = example_shape(split.validation.inputs)
        network = load_network(path, state, config_of(study, trial.params).network, shape, split.classes)
        with torch.no_grad():
            scores = network(torch.from_numpy(split.validation.inputs).double())
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(split.validation.targets))
        assert loss.item() == pytest.approx(losses[epoch - 1], rel=1e-9)
    metric, continue_later = study.search.first_metric, set()
    for number in best if settings.keep == "last" else ():
        curve = trials[number].system_attrs[CURVE][metric]
        if not has_stopped_improving(
            config_of(study, trials[number].params).training.patience, curve, study.search.minimized
        ):
            continue_later.add(number)
    with_state = {trial.number for trial in trials if state_file_id(own_id, trial.number) in files(storage)}
    assert with_state == continue_later


@pytest.mark.parametrize(("keep", "metric"), [("best", "val_loss"), ("last", "val_accuracy")])
def test_only_best_trials_have_checkpoints(keep: str, metric: str, storage: Storage) -> None:
    study = study_with_checkpoints(keep, metric=metric)
    search(study, storage)
    check_checkpoints(study, storage)
    before, count = files(storage), {"best": 3, "last": 6}[keep]  # with training states
    assert len(before) == count
    lowest = [losses.index(min(losses)) for t in trials_of(storage) for losses in [t.system_attrs[CURVE]["val_loss"]]]
    assert min(lowest) < 4  # "best" and "last" are not the same here
    more = study_with_checkpoints(keep, metric=metric, trials=20)
    search(more, storage, extend=True)
    check_checkpoints(more, storage)
    assert len(files(storage)) == count
    assert files(storage) != before


def test_no_training_state_is_written_without_training_checkpoints(storage: Storage) -> None:
    search(study_of(training={"keep": "last", "keep_trials": 2, "checkpoint": "none"}), storage)
    assert len(files(storage)) == 2


def test_no_checkpoints_by_default(storage: Storage) -> None:
    search(study_of(training={"checkpoint": "none"}), storage)  # states of unfinished trials are another key
    assert not artifact_folder(storage.location).exists()


def test_extension_can_change_the_number_of_checkpoints(storage: Storage) -> None:
    search(study_with_checkpoints("best", most=4), storage)
    fewer = study_with_checkpoints("best", most=2, trials=9)
    search(fewer, storage, extend=True)
    check_checkpoints(fewer, storage)
    assert len(files(storage)) == 2
    search(study_with_checkpoints("none", trials=10), storage, extend=True)
    assert len(files(storage)) == 2


def test_files_of_a_dead_process_are_overwritten_or_removed(storage: Storage) -> None:
    """A process may die after it writes the files and before it ends their trials."""
    study = study_with_checkpoints("best")
    stop_at_once: Callable[[Event], bool] = lambda event: isinstance(event, EpochEnded)  # noqa: E731
    search(study, storage, stop_at=stop_at_once)
    _, own_id = stored_study(storage)
    folder = artifact_folder(storage.location)
    folder.mkdir(exist_ok=True)
    for number in range(4):
        (folder / checkpoint_id(own_id, number)).write_bytes(b"cut short")
    search(study, storage)
    check_checkpoints(study, storage)
    assert len(files(storage)) == 3


@pytest.mark.parametrize(
    ("function", "call", "before"),
    [
        ("best_trials", 1, True),
        pytest.param("best_trials", 2, False, marks=pytest.mark.slow),
        pytest.param("checkpoint_files", 1, True, marks=pytest.mark.slow),
        ("checkpoint_files", 1, False),
    ],
)
def test_processes_that_share_a_study_store_the_best_trials(
    function: str, call: int, before: bool, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process trains other trials while the first one writes the files of its first population."""
    study, real, calls = study_with_checkpoints("best", trials=20), getattr(checkpoints, function), itertools.count(1)
    other = open_storage(storage.location.full_url)

    def others_are_done(event: Event) -> bool:
        return isinstance(event, PopulationEnded) and len(best_trials(other, "tiny", 20)) >= 16

    def interrupted(*args: object) -> object:
        at_call = next(calls) == call
        if at_call and before:
            search(study, other, stop_at=others_are_done)
        found = real(*args)
        if at_call and not before:
            search(study, other, stop_at=others_are_done)
        return found

    monkeypatch.setattr(checkpoints, function, interrupted)
    search(study, storage)
    other.close()
    check_checkpoints(study, storage)
    assert len(files(storage)) == 3


ODD_NETS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc = nn.Linear(64, classes)
        self.register_buffer("own", self.made())

    def forward(self, x):
        return self.fc(x.flatten(1)) * (1.0 if x.sum() > -1e9 else 0.0)


class Transposed(Net):
    def made(self):
        return torch.arange(6.0).reshape(2, 3).t()


class Sparse(Net):
    def made(self):
        return torch.eye(3).to_sparse()


class Extra(Transposed):
    def get_extra_state(self):
        return {"no": "tensor"}

    def set_extra_state(self, state):
        pass
"""


@pytest.mark.parametrize(
    ("net", "error"),
    [
        ("Transposed", None),
        ("Sparse", "'own' has type torch.float64, torch.sparse_coo, which no weights file stores; use another type"),
        ("Extra", "'_extra_state' is a dict: a weights file stores tensors only"),
    ],
)
def test_module_state_is_stored_or_gives_one_warning(
    net: str, error: str | None, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(ODD_NETS)
    study_tree = tree(
        network={"module": f"net.py:{net}"},
        training={"epochs": 1, "keep": "best"},
        search={"trials": 2},
    )
    del study_tree["network"]["kind"], study_tree["network"]["hidden"]
    events = search(parse_study(study_tree, "tiny.toml", tmp_path), storage)
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 2
    warnings = [event.text for event in events if isinstance(event, Note) and "weights" in event.text]
    if error is None:
        assert warnings == []
        state, _ = read_weights(artifact_folder(storage.location) / sorted(files(storage))[0])
        assert torch.equal(state["own"], torch.arange(6.0).reshape(2, 3).t().double())
    else:
        assert files(storage) == set()
        assert len(warnings) == 1
        assert f"({error}): the search continues without them" in warnings[0]


def test_unwritable_folder_gives_one_warning(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path / "file" / "folder"))
    events = search(study_with_checkpoints("best"), storage)
    warnings = [event.text for event in events if isinstance(event, Note) and event.level == "warning"]
    warnings = [text for text in warnings if not text.startswith("training checkpoints")]  # due after a second
    assert len(warnings) == 1
    assert f"checkpoints cannot be written in {tmp_path}/file/folder (Not a directory)" in warnings[0]
    assert all(trial.state.name == "COMPLETE" for trial in trials_of(storage))
    assert checkpoint_files(storage, stored_study(storage)[0]) == []


def test_copy_leaves_the_files_of_the_original_study(storage: Storage) -> None:
    study = study_with_checkpoints("last", metric="val_loss")
    search(study, storage)
    copy_line(storage, "tiny", storage.location.full_url, "other")
    longer = study_with_checkpoints("last", trials=20, name="other", metric="val_loss")
    search(longer, storage, extend=True)
    check_checkpoints(study, storage)
    of_copy = {make_id(stored_study(storage, "other")[1], n) for n in range(20) for make_id in FILE_IDS}
    assert 0 < len(files(storage) & of_copy) <= 6
    delete(storage, "other")
    check_checkpoints(study, storage)
    assert len(files(storage)) == 6
    delete(storage, "tiny")
    assert files(storage) == set()


def test_renamed_study_continues_with_its_own_files(storage: Storage) -> None:
    study = study_with_checkpoints("last", metric="val_loss")

    def rename(event: Event) -> bool:
        if isinstance(event, PopulationEnded) and study_names(storage) == ["tiny"]:
            rename_study(storage, stored_study(storage)[0], "renamed")
        return False

    search(study, storage, stop_at=rename)
    longer = study_with_checkpoints("last", trials=12, name="renamed", metric="val_loss")
    search(longer, storage, extend=True)
    check_checkpoints(longer, storage)
    assert len(files(storage)) == 6
    delete(storage, "renamed")
    assert files(storage) == set()
