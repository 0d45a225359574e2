"""The export: its schema, its configuration, and the file it is written to."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from stored_studies import DROPOUT, LR, tree, trial

from hpo.errors import HpoError
from hpo.results.export import export, export_text, schema, write
from hpo.storage import Ending, Storage
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
    jsonschema.Draft202012Validator.check_schema(schema())


def test_an_export_keeps_to_its_schema(exported_of: Exported) -> None:
    exported = exported_of([trial(0.5), trial(0.9), trial(0.99, state=TrialState.PRUNED)])
    jsonschema.validate(exported, schema())
    assert exported["schema"] == "hpo.best/1"
    assert (exported["study"], exported["trial"], exported["seed"]) == ("digits", 1, 1234)
    assert (exported["metric"], exported["direction"], exported["value"]) == ("val_accuracy", "maximize", 0.9)
    assert exported["params"] == {"lr": 1e-3, "dropout": 0.25}
    assert exported["epochs"] == 3
    assert exported["trials"] == {"complete": 2, "pruned": 1, "failed": 0, "running": 0, "waiting": 0}
    assert (exported["precision"], exported["device"]) == ("float32", "cpu")
    assert exported["data"]["validation"] == 287
    assert datetime.fromisoformat(exported["created"]).utcoffset() is not None


def test_the_device_is_that_of_the_best_trial(stored: Store, storage: Storage) -> None:
    study = stored([trial(0.5)])
    storage.works_on("cuda:1")
    (best,) = storage.create_trials(study._study_id, [trial(None, state=TrialState.RUNNING)])
    storage.finish([Ending(best._trial_id, TrialState.COMPLETE, 0.9)])
    assert export(storage, "digits")["device"] == "cuda:1"


@pytest.mark.parametrize("missing", ["schema", "params", "config", "versions", "created"])
def test_the_schema_misses_every_key(exported_of: Exported, missing: str) -> None:
    exported = exported_of([trial(0.9)])
    del exported[missing]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(exported, schema())


def test_the_schema_refuses_more_and_what_is_still_searched(exported_of: Exported) -> None:
    exported = exported_of([trial(0.9)])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**exported, "more": 1}, schema())
    exported["config"]["optimizer"]["lr"] = {"low": 0.1, "high": 0.2}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(exported, schema())


def test_the_configuration_is_a_study_of_one_trial(exported_of: Exported, tmp_path: Path) -> None:
    config = exported_of([trial(0.9)])["config"]
    assert config["name"] == "digits-best"
    assert config["search"]["trials"] == 1
    assert config["optimizer"]["lr"] == 1e-3
    assert config["network"]["dropout"] == 0.25
    assert relaunched(config, tmp_path) == config


def test_a_whole_export_is_read_as_a_study_file(stored: Store, storage: Storage, tmp_path: Path) -> None:
    stored([trial(0.9)])
    file = tmp_path / "best.json"
    write(export_text(storage, "digits"), file)
    study = read_study(file)
    assert (study.name, study.parameters, study.search.trials) == ("digits-best", (), 1)


def test_a_configuration_leaves_out_what_the_best_kind_does_not_use(exported_of: Exported, tmp_path: Path) -> None:
    written = tree(optimizer={"kind": {"choices": ["sgd", "momentum"]}, "momentum": 0.8})
    params = {"lr": 1e-3, "dropout": 0.25, "optimizer.kind": "sgd"}
    distributions = {"lr": LR, "dropout": DROPOUT, "optimizer.kind": CategoricalDistribution(["sgd", "momentum"])}
    config = exported_of([trial(0.9, params=params, distributions=distributions)], written)["config"]
    assert config["optimizer"] == {"kind": "sgd", "lr": 1e-3, "weight_decay": 0.0}
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
    jsonschema.validate(exported, schema())
    assert exported["params"]["hidden"] == [16, 16]
    assert relaunched(exported["config"], tmp_path)["network"]["hidden"] == [16, 16]


def test_a_long_name_leaves_room_for_its_ending(exported_of: Exported, tmp_path: Path) -> None:
    config = exported_of([trial(0.9)], name="n" * 200)["config"]
    assert config["name"] == "n" * 195 + "-best"
    assert relaunched(config, tmp_path) == config


def test_no_finished_trial_is_nothing_to_export(exported_of: Exported) -> None:
    with pytest.raises(HpoError, match="study 'digits': no finished trial yet"):
        exported_of([trial(0.9, state=TrialState.PRUNED)])


def test_a_study_by_another_program_is_refused(storage: Storage) -> None:
    optuna.create_study(storage=storage, study_name="plain").add_trial(trial(2.0))
    with pytest.raises(HpoError, match="study 'plain' was not made by hpo"):
        export_text(storage, "plain")


def test_a_written_file_is_whole_and_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    before = os.umask(0o022)
    try:
        write("new\n", file)
    finally:
        os.umask(before)
    assert file.read_text() == "new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_replaced_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    file, link = tmp_path / "best.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    write("new\n", link)
    assert link.is_symlink()
    assert file.read_text() == "new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write("text\n", pipe)
        assert os.read(reader, 100) == b"text\n"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("place", ["missing/best.json", "."])
def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    with pytest.raises(HpoError, match="cannot be written") as caught:
        write("new\n", tmp_path / place)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
