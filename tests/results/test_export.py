"""Exports of one trial: their schema, their configuration, and their files."""

from __future__ import annotations

import csv
import io
import json
import threading
import tomllib
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from schemas import schema
from stored_studies import DROPOUT, LR, OWN, tree, trial
from tiny import search, study_of

from hpo.errors import HpoError, StudyFileError, UsageError
from hpo.files import write_atomically
from hpo.results.confirm.study import create_confirming_study
from hpo.results.export.best import export
from hpo.results.export.text import export_text
from hpo.results.ranking import top_lines
from hpo.results.reproduce.verify import verify
from hpo.storage import Storage, TrialResult
from hpo.studyfile import read_study

Store = Callable[..., optuna.Study]
Exported = Callable[..., dict[str, Any]]


@pytest.fixture
def exported_of(stored: Store, storage: Storage) -> Exported:
    """Store a study, and export it."""
    return lambda *args, **options: export(storage, stored(*args, **options).study_name)


def relaunched(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration as launching it would read it."""
    file = folder / "config.json"
    file.write_text(json.dumps(config))
    return read_study(file).resolved()


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema("best"))


def test_an_export_keeps_to_its_schema(exported_of: Exported) -> None:
    exported = exported_of([trial(0.5), trial(0.9), trial(0.99, state=TrialState.PRUNED)])
    jsonschema.validate(exported, schema("best"))
    assert exported["schema"] == "hpo.best/3"
    assert (exported["confirmed"], exported["verified"]) == (None, None)
    assert (exported["study"], exported["trial"], exported["seed"]) == ("digits", 1, 1234)
    assert (exported["metric"], exported["direction"], exported["value"]) == ("val_accuracy", "maximize", 0.9)
    assert exported["params"] == {"lr": 1e-3, "dropout": 0.25}
    assert exported["epochs"] == 3
    assert exported["trials"] == {"complete": 2, "pruned": 1, "failed": 0, "running": 0, "waiting": 0}
    assert (exported["precision"], exported["device"]) == ("float32", "cpu")
    assert exported["data"]["validation"] == 287
    assert datetime.fromisoformat(exported["created"]).utcoffset() is not None


def test_an_export_of_the_first_version_still_has_its_schema(exported_of: Exported) -> None:
    exported = exported_of([trial(0.5)])
    for key in ("curve", "confirmed", "verified"):
        del exported[key]
    del exported["config"]["search"]["limits"]
    jsonschema.validate({**exported, "schema": "hpo.best/1"}, schema("best-1"))


def test_an_export_of_the_second_version_still_has_its_schema(exported_of: Exported) -> None:
    jsonschema.validate({**exported_of([trial(0.5)]), "schema": "hpo.best/2"}, schema("best-2"))


def test_what_a_confirmation_and_a_verification_add_keeps_to_the_schema(storage: Storage) -> None:
    search(study_of(training={"epochs": 1}), storage)
    search(create_confirming_study(storage, "tiny", top=2, seeds=2), storage)
    certificate = verify(storage, "tiny", 1, "cpu", threading.Event(), pytest.fail)
    exported = export(storage, "tiny", confirmed=True)
    jsonschema.validate(exported, schema("best"))
    assert exported["verified"] == certificate
    assert len(exported["confirmed"]["scores"]) == 2
    assert len(exported["curve"]["val_accuracy"]) == 1
    toml = tomllib.loads(export_text(storage, "tiny", confirmed=True, form="toml"))
    assert {**toml, "created": 0} == {**without_nulls(exported), "created": 0}


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return value


def test_a_study_that_has_not_been_confirmed_has_no_winner(stored: Store, storage: Storage) -> None:
    stored([trial(0.9)])
    with pytest.raises(HpoError, match="has not been confirmed: run `hpo confirm` first"):
        export(storage, "digits", confirmed=True)


def test_the_device_is_that_of_the_best_trial(stored: Store, storage: Storage) -> None:
    study = stored([trial(0.5)])
    storage.set_device("cuda:1")
    (best,) = storage.create_trials(study._study_id, [trial(None, state=TrialState.RUNNING)])
    storage.finish([TrialResult(best._trial_id, TrialState.COMPLETE, (0.9,))])
    assert export(storage, "digits")["device"] == "cuda:1"


@pytest.mark.parametrize("missing", ["schema", "params", "config", "versions", "created"])
def test_the_schema_misses_every_key(exported_of: Exported, missing: str) -> None:
    exported = exported_of([trial(0.9)])
    del exported[missing]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(exported, schema("best"))


def test_the_schema_refuses_more_and_what_is_still_searched(exported_of: Exported) -> None:
    exported = exported_of([trial(0.9)])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**exported, "more": 1}, schema("best"))
    exported["config"]["optimizer"]["lr"] = {"low": 0.1, "high": 0.2}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(exported, schema("best"))


def test_the_configuration_is_a_study_of_one_trial(exported_of: Exported, tmp_path: Path) -> None:
    config = exported_of([trial(0.9)])["config"]
    assert config["name"] == "digits-best"
    assert config["search"]["trials"] == 1
    assert config["optimizer"]["lr"] == 1e-3
    assert config["network"]["dropout"] == 0.25
    assert relaunched(config, tmp_path) == config


@pytest.mark.parametrize("form", ["json", "toml"])
def test_a_whole_export_is_read_as_a_study_file(stored: Store, storage: Storage, tmp_path: Path, form: str) -> None:
    stored([trial(0.9)])
    file = tmp_path / f"best.{form}"
    write_atomically(export_text(storage, "digits", form=form), file)
    study = read_study(file)
    assert (study.name, study.parameters, study.search.trials) == ("digits-best", (), 1)


def test_a_configuration_leaves_out_what_the_best_kind_does_not_use(exported_of: Exported, tmp_path: Path) -> None:
    written = tree(optimizer={"kind": {"choices": ["sgd", "momentum"]}, "momentum": 0.8})
    params = {"lr": 1e-3, "dropout": 0.25, "optimizer.kind": "sgd"}
    distributions = {"lr": LR, "dropout": DROPOUT, "optimizer.kind": CategoricalDistribution(["sgd", "momentum"])}
    config = exported_of([trial(0.9, params=params, distributions=distributions)], written)["config"]
    assert config["optimizer"] == {
        "kind": "sgd",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup": 0.0,
    }
    assert relaunched(config, tmp_path) == config


def test_a_choice_that_is_a_list_is_a_list_again(exported_of: Exported, tmp_path: Path) -> None:
    written = tree(network={"hidden": {"choices": [[8], [16, 16]]}})
    choices = CategoricalDistribution(["[8]", "[16, 16]"])
    frozen = trial(
        0.9,
        params={"lr": 1e-3, "dropout": 0.25, "hidden": "[16, 16]"},
        distributions={"lr": LR, "dropout": DROPOUT, "hidden": choices},
    )
    exported = exported_of([frozen], written)
    jsonschema.validate(exported, schema("best"))
    assert exported["params"]["hidden"] == [16, 16]
    assert relaunched(exported["config"], tmp_path)["network"]["hidden"] == [16, 16]


def test_a_long_name_leaves_room_for_its_ending(exported_of: Exported, tmp_path: Path) -> None:
    config = exported_of([trial(0.9)], name="n" * 200)["config"]
    assert config["name"] == "n" * 195 + "-best"
    assert relaunched(config, tmp_path) == config


def test_no_completed_trial_is_nothing_to_export(exported_of: Exported) -> None:
    with pytest.raises(HpoError, match="study 'digits': no trial to rank: 1 pruned, so there is nothing to export"):
        exported_of([trial(0.9, state=TrialState.PRUNED)])


def test_an_objectives_numbers_that_json_lacks_are_words_in_every_form(stored: Store, storage: Storage) -> None:
    inf, nan = float("inf"), float("nan")
    study = stored([])
    study.set_user_attr("hpo:study", json.dumps(OWN))
    study.set_user_attr("hpo:code", {"folder": "/code", "files": {"objective.py": "0" * 64}})
    clip = CategoricalDistribution([None, inf])
    made = [
        trial(value, params={"clip": each}, distributions={"clip": clip}) for value, each in ((0.5, inf), (0.25, None))
    ]
    made[0].intermediate_values = {0: nan, 1: -inf, 2: 0.5}
    made[0].user_attrs = {"grad_norm": [inf, 1.0], "ok": True, "inf": "a text"}
    made[1].user_attrs = {"seen": [1, None]}
    study.add_trials(made)
    text = export_text(storage, "digits")
    exported = json.loads(text, parse_constant=pytest.fail)
    jsonschema.validate(exported, schema("objective"))
    assert exported["params"] == {"clip": "Infinity"}
    assert exported["user_attrs"] == {"grad_norm": ["Infinity", 1.0], "ok": True, "inf": "a text"}
    assert exported["curve"] == {"step": [0, 1, 2], "value": ["NaN", "-Infinity", 0.5]}
    toml = tomllib.loads(export_text(storage, "digits", form="toml"))
    assert {**exported, "created": 0} == {**export(storage, "digits"), "created": 0}
    assert {**toml, "created": 0} == {**without_nulls(exported), "created": 0}
    assert export(storage, "digits", trial=1)["params"] == {"clip": None}
    with pytest.raises(UsageError, match=r"params\.clip is null, which TOML cannot store: use json"):
        export_text(storage, "digits", form="toml", trial=1)


def test_the_best_trial_of_another_program_is_exported(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="plain")
    study.add_trials([trial(2.0), trial(1.0), trial(state=TrialState.FAIL), trial(0.5, state=TrialState.PRUNED)])
    exported = json.loads(export_text(storage, "plain"))
    jsonschema.validate(exported, schema("optuna"))
    assert (exported["trial"], exported["value"], exported["params"]) == (1, 1.0, {"lr": 1e-3, "dropout": 0.25})
    assert exported["trials"] == {"complete": 2, "pruned": 1, "failed": 1, "running": 0, "waiting": 0}
    assert json.loads(export_text(storage, "plain", trial=0))["value"] == 2.0
    rows = list(csv.DictReader(io.StringIO(export_text(storage, "plain", every=True, form="csv"))))
    assert [row["state"] for row in rows] == ["complete", "complete", "failed", "pruned"]
    assert [json.loads(line)["number"] for line in export_text(storage, "plain", top=2).splitlines()] == [1, 0]
    with pytest.raises(HpoError, match="study 'plain' was not created by hpo"):
        export_text(storage, "plain", confirmed=True)


def test_the_front_of_another_program_has_the_names_of_its_objectives(storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="plain", directions=["minimize", "maximize"])
    study.add_trials([optuna.trial.create_trial(values=values) for values in ([1.0, 1.0], [2.0, 2.0], [3.0, 1.0])])
    assert set(export(storage, "plain")["front"][0]["values"]) == {"value 0", "value 1"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names(["loss", "speed"])
    exported = json.loads(export_text(storage, "plain"))
    jsonschema.validate(exported, schema("front"))
    for each in exported["front"]:
        jsonschema.validate(each, schema("optuna"))
    assert exported["metrics"] == ["loss", "speed"]
    assert [each["values"] for each in exported["front"]] == [{"loss": 1.0, "speed": 1.0}, {"loss": 2.0, "speed": 2.0}]
    (first, *_) = top_lines(storage, "plain", 5)
    assert first == "Front-1 (trial 0) | loss: 1.0000, speed: 1.0000"


def test_an_export_of_another_program_cannot_be_launched(storage: Storage, tmp_path: Path) -> None:
    optuna.create_study(storage=storage, study_name="plain").add_trial(trial(2.0))
    (tmp_path / "plain.json").write_text(export_text(storage, "plain"))
    with pytest.raises(StudyFileError, match=r"plain.json: is the export of a trial of another program"):
        read_study(tmp_path / "plain.json")
