"""Stored attributes of a study, and the changes that `--extend` allows between two launches."""

from __future__ import annotations

import datetime
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from tiny import DECAY, after_epochs, check_whole, params, search, states, study_of, tree, trials_of, write_mnist

from hpo.errors import DataError, HpoError, StudyFileError, UsageError
from hpo.search.events import Note
from hpo.search.launch import submit
from hpo.search.options import LaunchOptions
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.study_records import any_stored_study
from hpo.storage import Storage, load_study, rename_study
from hpo.studyfile import Study, parse_study

NewStorage = Callable[[], Storage]
TWO_RATES = {"choices": [0.1, 0.2]}


def test_a_new_study_stores_its_resolved_file_data_record_and_run_settings(storage: Storage) -> None:
    study = study_of()
    search(study, storage)
    stored = optuna.load_study(study_name="tiny", storage=storage)
    attrs = stored.user_attrs
    assert json.loads(attrs["hpo:study"]) == study.resolved()
    data = attrs["hpo:data"]
    assert {key: data[key] for key in ("name", "train", "validation", "test")} == {
        "name": "digits",
        "train": 120,
        "validation": 30,
        "test": 359,
    }
    assert all(re.fullmatch("[0-9a-f]{64}", data[key]) for key in ("sha256", "split_sha256"))
    began = datetime.datetime.fromisoformat(attrs["hpo:run"].pop("began"))
    assert abs(datetime.datetime.now(datetime.UTC) - began) < datetime.timedelta(minutes=1)
    assert attrs["hpo:run"] == {"device": "cpu", "precision": "float64"}
    assert stored.metric_names == ["val_accuracy"]
    assert "a study of the tests" in storage.get_study_system_attrs(stored._study_id).values()  # note in the dashboard
    assert all(isinstance(trial.user_attrs["seed"], int) for trial in stored.trials)
    assert len({trial.user_attrs["seed"] for trial in stored.trials}) == 6
    json.dumps([stored.user_attrs, [t.user_attrs for t in stored.trials]], allow_nan=False)


def test_a_renamed_study_resumes_and_is_extended_under_its_new_name(storage: Storage) -> None:
    search(study_of(), storage, stop_at=after_epochs(1))
    rename_study(storage, load_study(storage, "tiny")._study_id, "renamed")
    search(study_of(name="renamed"), storage)
    check_whole(trials_of(storage, "renamed"), 6)
    search(study_of(name="renamed", search={"trials": 7}), storage, extend=True)
    stored = load_study(storage, "renamed")
    assert len(stored.trials) == 7
    assert [change["changed"] for change in stored.user_attrs["hpo:changes"]] == [["search.trials: 6 -> 7"]]
    assert any_stored_study(stored) == study_of(name="renamed", search={"trials": 7})


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"optimizer": {"lr": {"low": 1e-3, "high": 2.0, "log": True}}}, "optimizer.lr.high: 1.0 -> 2.0"),
        ({"search": {"trials": 7}}, "search.trials: 6 -> 7"),
        ({"description": "another"}, "description: 'a study of the tests' -> 'another'"),
        ({"data": {"validation": 0.3}}, "data.validation: 'auto' -> 0.3"),
        ({"data": {"split_seed": 1}}, "data.split_seed: 0 -> 1"),
        ({"network": {"hidden": [9]}}, "network.hidden: [8] -> [9]"),
    ],
)
def test_a_changed_study_file_is_refused_with_its_differences(
    changes: dict[str, Any], difference: str, storage: Storage
) -> None:
    search(study_of(), storage, stop_at=after_epochs(1))
    before = trials_of(storage), load_study(storage, "tiny").user_attrs
    with pytest.raises(UsageError) as caught:
        search(study_of(**changes), storage)
    message = str(caught.value)
    assert message.startswith("studies/tiny.toml: differs from the stored study 'tiny' in ")
    assert difference in message
    assert "--name" in message
    assert "--extend" in message
    assert "\n" not in message
    assert (trials_of(storage), load_study(storage, "tiny").user_attrs) == before
    search(study_of(**changes, name="other"), storage)
    check_whole(trials_of(storage, "other"), changes.get("search", {}).get("trials", 6))


COSINE = {"optimizer": {"schedule": "cosine"}}
MAYBE_COSINE = {"optimizer": {"schedule": {"choices": ["constant", "cosine"]}}}
NOT_COSINE = {"optimizer": {"schedule": {"choices": ["constant", "step"]}}}
ONECYCLE = {"optimizer": {"schedule": "onecycle"}}
DEPENDS = "the cosine schedule (optimizer.schedule) depends on the number of epochs"


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ({}, {"data": {"split_seed": 1}}, "data.split_seed: 0 -> 1"),
        ({}, {"data": {"train_size": 160}}, "data.train_size: 150 -> 160"),
        ({}, {"data": {"stratify": False}}, "data.stratify: 'auto' -> false"),
        ({}, {"data": {"order": "time"}}, "data.order: not set -> 'time'"),
        ({}, {"training": {"epochs": 1}}, "training.epochs: 2 -> 1: --extend can only raise the number of epochs"),
        ({}, {"training": {"epochs": {"choices": [2, 3]}}}, "training.epochs: 2 -> { choices = [2, 3] }"),
        (COSINE, {**COSINE, "training": {"epochs": 3}}, f"training.epochs: 2 -> 3: {DEPENDS}"),
        (ONECYCLE, {**ONECYCLE, "training": {"epochs": 3}}, "training.epochs: 2 -> 3: the onecycle schedule (opt"),
        (MAYBE_COSINE, {**MAYBE_COSINE, "training": {"epochs": 3}}, f"training.epochs: 2 -> 3: {DEPENDS}"),
        (MAYBE_COSINE, {**NOT_COSINE, "training": {"epochs": 3}}, f"training.epochs: 2 -> 3: {DEPENDS}"),
        ({}, {"training": {"precision": "float32"}}, "training.precision: 'float64' -> 'float32'"),
        ({}, {"search": {"metric": "val_loss"}}, "search.metric: 'val_accuracy' -> 'val_loss'"),
        ({}, {"search": {"score": "best"}}, "search.score: 'last' -> 'best'"),
        ({}, {"search": {"seed": 1}}, "search.seed: 0 -> 1"),
        ({}, {"optimizer": {"lr": 0.1}}, "optimizer.lr: "),
        ({}, {"optimizer": {"weight_decay": DECAY}}, "optimizer.weight_decay: 0.0 -> "),
        ({"optimizer": {"lr": 0.1}}, {"optimizer": {"lr": 0.2}}, "optimizer.lr: 0.1 -> 0.2"),
        ({}, {"optimizer": {"kind": "momentum"}}, "optimizer.kind: 'sgd' -> 'momentum'"),
        ({"optimizer": {"kind": "adam"}}, {"optimizer": {"kind": "adam", "eps": 0.1}}, "optimizer.eps: not set -> 0.1"),
        (
            {"optimizer": {"kind": {"choices": ["sgd"]}}},
            {"optimizer": {"kind": {"choices": ["sgd", "momentum"]}, "momentum": TWO_RATES}},
            "optimizer.momentum: not set -> ",
        ),
        (
            {"network": {"dropout": [{"low": 0.0, "high": 0.4}, 0.5], "hidden": [8, 8]}},
            {"network": {"dropout": [{"low": 0.0, "high": 0.4}, 0.4], "hidden": [8, 8]}},
            "network.dropout: ",
        ),
    ],
)
def test_changes_that_make_trials_incomparable_are_refused(
    before: dict[str, Any], after: dict[str, Any], difference: str, storage: Storage
) -> None:
    search(study_of(**before), storage, stop_at=after_epochs(1))
    with pytest.raises(UsageError, match=re.escape(f"studies/tiny.toml: {difference}")) as caught:
        search(study_of(**after), storage, extend=True)
    assert "--name" in str(caught.value)
    assert "hpo:changes" not in load_study(storage, "tiny").user_attrs


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"optimizer": {"lr": {"low": 1e-4, "high": 2.0, "log": True}}}),
        ({}, {"training": {"epochs": 3}}),
        ({}, {"search": {"sampler": "tpe", "pruner": "median", "population": 3}, "description": "now with tpe"}),
        ({"optimizer": {"lr": TWO_RATES}}, {"optimizer": {"lr": {"choices": [0.4, 0.2, 0.1]}}}),
        ({"optimizer": {"lr": TWO_RATES}}, {"optimizer": {"lr": {"low": 0.1, "high": 0.9}}}),
        (
            {"network": {"hidden": {"choices": [[8], [4, 4]]}}},
            {"network": {"hidden": {"choices": [[8], [4, 4], [2]]}}},
        ),
        (
            {"optimizer": {"kind": {"choices": ["sgd", "momentum"]}}},
            {"optimizer": {"kind": {"choices": ["sgd", "momentum", "adam"]}}},
        ),
        (
            {"network": {"dropout": [{"low": 0.0, "high": 0.4}, 0.5], "hidden": [8, 8]}},
            {"network": {"dropout": [{"low": 0.0, "high": 0.6}, 0.5], "hidden": [8, 8]}},
        ),
        (
            {"training": {"batch_size": {"low": 20, "high": 40, "step": 10}}},
            {"training": {"batch_size": {"low": 15, "high": 60, "step": 15}}},
        ),
    ],
)
def test_an_extended_study_resumes_and_stores_the_change(
    before: dict[str, Any], after: dict[str, Any], storage: Storage
) -> None:
    search(study_of(**before), storage, stop_at=after_epochs(3))  # four trials complete, two waiting
    earlier = trials_of(storage)
    after = {**after, "search": {"trials": 9, **after.get("search", {})}}
    study = study_of(**after)
    events = search(study, storage, extend=True)
    trials = trials_of(storage)
    assert TrialState.RUNNING not in states(trials)
    if not any(isinstance(event, Note) for event in events):  # a note means that the new space is exhausted
        assert len(trials) == 9
    assert params(trials)[: len(earlier)] == params(earlier)
    assert all(state == TrialState.COMPLETE for state in states(trials)) or study.search.pruner != "none"
    attrs = load_study(storage, "tiny").user_attrs
    assert json.loads(attrs["hpo:study"]) == study.resolved()
    (change,) = attrs["hpo:changes"]
    assert change["trials"] == len(earlier)
    assert change["changed"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", change["at"])
    search(study, storage, extend=True)
    assert len(load_study(storage, "tiny").user_attrs["hpo:changes"]) == 1
    assert trials_of(storage) == trials


def test_a_study_without_a_pruner_continues_with_the_default_pruner(storage: Storage) -> None:
    """The default was "none" before it became "auto"."""
    search(study_of(search={"pruner": "none"}), storage, stop_at=after_epochs(3))
    stored = load_study(storage, "tiny").user_attrs["hpo:study"]
    search(study_of(), storage)
    check_whole(trials_of(storage), 6)
    assert load_study(storage, "tiny").user_attrs["hpo:study"] == stored
    with pytest.raises(UsageError, match=re.escape("search.pruner: 'none' -> 'halving'")):
        search(study_of(search={"pruner": "halving"}), storage)


def test_a_study_of_the_time_before_stratified_splits_continues_with_its_split(storage: Storage) -> None:
    old = study_of(data={"stratify": False, "validation": 0.2})
    resolved = old.resolved()
    del resolved["data"]["stratify"]
    search(old, storage, stop_at=after_epochs(1))
    study_id = load_study(storage, "tiny")._study_id
    storage.set_study_attrs(study_id, {"hpo:study": json.dumps(resolved)})
    data = load_study(storage, "tiny").user_attrs["hpo:data"]
    assert any_stored_study(load_study(storage, "tiny")) == old
    search(study_of(), storage)
    check_whole(trials_of(storage), 6)
    attrs = load_study(storage, "tiny").user_attrs
    assert (json.loads(attrs["hpo:study"]), attrs["hpo:data"]) == (resolved, data)


def test_choices_that_would_be_misread_are_refused(storage: Storage, tmp_path: Path) -> None:
    """Neither the study nor one that starts from it may read the trial of a string as that of a list."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net(classes, a):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes))\n"
    )

    def study_of_choices(*choices: Any, **changes: Any) -> Study:
        network = {"module": "net.py:net", "args": {"a": {"choices": list(choices)}}}
        return parse_study({**tree(**changes), "network": network}, "tiny.toml", tmp_path)

    submit(study_of_choices("[8]", "x"), storage)
    misread = "network.args.a: the choice '[8]' of trials would be taken for [8]"
    with pytest.raises(UsageError, match=re.escape(f"tiny.toml: {misread}; start another study with --name")):
        submit(study_of_choices([8], "x"), storage, LaunchOptions(extend=True))
    with pytest.raises(
        StudyFileError, match=re.escape(f"the trials of 'tiny' are not comparable with these: {misread}")
    ):
        submit(study_of_choices([8], "x", name="next", search={"start_from": ["tiny"]}), storage)
    submit(study_of_choices("[8]", "x", "y"), storage, LaunchOptions(extend=True))


def test_trials_outside_the_new_space_do_not_count_for_it(storage: Storage) -> None:
    def study(low: int, trials: int) -> Any:
        steps = {"low": low, "high": low + 20, "step": 10}
        return study_of(optimizer={"lr": 0.1}, training={"batch_size": steps}, search={"trials": trials})

    search(study(20, 3), storage)
    search(study(25, 9), storage, extend=True)
    assert sorted(trial.params["batch_size"] for trial in trials_of(storage)) == [20, 25, 30, 35, 40, 45]


def test_samplers_learn_only_from_trials_inside_the_new_space(storage: Storage) -> None:
    old = study_of(training={"epochs": 1}, search={"trials": 12, "population": 12})
    search(old, storage)
    trials = trials_of(storage)

    def proposals(study: Any, *, forget: bool) -> list[Any]:
        for trial in trials:
            trial.state = TrialState.FAIL if forget else TrialState.COMPLETE
        return [values for _, values in SamplerHistory(study, trials).ask(4)]

    tpe = {"sampler": "tpe", "trials": 20}
    wider = study_of(optimizer={"lr": {"low": 1e-4, "high": 2.0, "log": True}}, search=tpe)
    assert proposals(wider, forget=False) != proposals(wider, forget=True)
    disjoint = study_of(optimizer={"lr": {"low": 1.5, "high": 2.0, "log": True}}, search=tpe)
    assert proposals(disjoint, forget=False) == proposals(disjoint, forget=True)


def test_a_waiting_trial_outside_the_new_space_is_trained_and_not_pruned(storage: Storage) -> None:
    search(study_of(), storage, stop_at=after_epochs(1))
    study = study_of(
        optimizer={"lr": {"low": 1.5, "high": 2.0, "log": True}}, search={"pruner": "hyperband", "trials": 8}
    )
    search(study, storage, extend=True)
    check_whole(trials_of(storage), 8)
    assert states(trials_of(storage))[:4] == [TrialState.COMPLETE] * 4


def test_changed_training_data_are_refused_and_a_missing_test_file_is_not(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data" / "mnist"
    study = study_of(data={"dataset": "mnist", "train_size": 50})
    write_mnist(folder)
    sealed = folder / "t10k-images-idx3-ubyte"
    sealed.write_bytes(struct.pack(">4I", 0x803, 5, 28, 28) + bytes(5 * 28 * 28))
    search(study, storage, stop_at=after_epochs(1))
    sealed.unlink()
    search(study, storage, stop_at=after_epochs(1))
    write_mnist(folder, seed=1)
    with pytest.raises(HpoError, match="the data of mnist are not those that the study was created with") as caught:
        search(study, storage)
    assert not isinstance(caught.value, UsageError)
    write_mnist(folder)
    search(study, storage)
    check_whole(trials_of(storage), 6)


def test_nothing_is_stored_if_the_file_data_or_device_is_invalid(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path))
    invalid: list[tuple[type[HpoError], dict[str, Any]]] = [
        (StudyFileError, {"data": {"train_size": 2000}}),
        (StudyFileError, {"data": {"train_size": 20, "validation": 0.9}}),
        (StudyFileError, {"training": {"batch_size": {"low": 1, "high": 2**60}}}),
        (HpoError, {"network": {"kind": "cnn"}}),
    ]
    for error, changes in invalid:
        with pytest.raises(error):
            search(study_of(**changes), storage)
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError):
        search(study_of(data={"dataset": "mnist"}), storage)
    for device in ("cuda:99", "tpu", "cpu:7"):
        with pytest.raises(UsageError):
            search(study_of(), storage, device=device)
    assert storage.get_all_studies() == []


def test_a_study_created_without_hpo_is_refused(storage: Storage) -> None:
    optuna.create_study(study_name="tiny", storage=storage)
    with pytest.raises(HpoError, match="study 'tiny' was not created by hpo"):
        search(study_of(), storage)
