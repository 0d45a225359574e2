"""`hpo test` and `hpo predict`: result, folder, predictions, errors and Ctrl-C."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import optuna
import pytest
from command import Outcome, Running
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from schemas import schema
from tiny import sealed_digits

from hpo.storage import load_study, open_storage
from hpo.storage.test_evaluations import evaluations_of

Run = Callable[..., Outcome]
Start = Callable[..., Running]


def test_a_study_is_tested_once_and_its_network_predicts(hpo: Run, launched: None, folder: Path) -> None:
    outcome = hpo("test", "tiny", "--device", "cpu", "--subnetworks", "5")
    assert outcome.status == 0
    first, second, trivial, third, last = outcome.out.splitlines()
    assert first.startswith("tiny: test accuracy 0.")
    assert first.endswith("on 359 examples")
    assert ") of the search, not confirmed; trained on 200 examples, epoch 2" in second
    assert third.startswith("mean of 5 random sub-networks: accuracy 0.")
    assert trivial.startswith("trivial baseline: accuracy 0.")
    assert last == "folder: tiny-test"
    assert "tiny: epoch 2/2, training loss " in outcome.err
    result = json.loads((folder / "tiny-test" / "result.json").read_text())
    jsonschema.validate(result, schema("test"))

    np.save("images.npy", sealed_digits().inputs)
    outcome = hpo("predict", "tiny-test", "images.npy", "--device", "cpu")
    assert (outcome.status, outcome.err) == (0, "")
    heading, *rows = outcome.out.splitlines()
    assert heading == "image,class,probability"
    correct = [int(row.split(",")[1]) for row in rows] == sealed_digits().targets
    assert correct.mean() == result["test"]["accuracy"]
    assert hpo("predict", "tiny-test", "images.npy", "-o", "answers.csv") == (0, "", "")
    assert (folder / "answers.csv").read_text() == outcome.out

    refused = hpo("test", "tiny")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("hpo: study 'tiny' has been evaluated on its test set once (last with trial ")
    assert refused.err.count("\n") == 1
    again = hpo("test", "tiny", "--again", "--json", "-o", "again")
    assert again.status == 0
    found = json.loads(again.out)
    assert (found["look"], found["looks"], found["test"]) == (2, 2, result["test"])
    assert json.loads((folder / "again" / "result.json").read_text()) == found


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["test", "tiny"], 1, "hpo: sqlite:///hpo.db: no such file; "),
        (["test"], 2, "hpo: Missing argument 'NAME'"),
        (["test", "tiny", "--subnetworks", "0"], 2, "hpo: Invalid value for '--subnetworks'"),
        (["predict", "nowhere", "images.npy"], 1, "hpo: nowhere/card.json: cannot be read (No such file or directory)"),
        (["predict", "nowhere"], 2, "hpo: Missing argument 'FILE'"),
    ],
)
def test_an_error_is_one_line(hpo: Run, args: list[str], status: int, message: str) -> None:
    outcome = hpo(*args)
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith(message)
    assert outcome.err.count("\n") == 1


def test_ctrl_c_during_training_does_not_count_as_a_test(hpo: Run, process: Start, folder: Path) -> None:
    hpo("submit", "tiny.toml", "--set", "training.epochs=1000000", "--trials", "1")
    storage = open_storage(None)
    stored = optuna.load_study(study_name="tiny", storage=storage)
    stored.set_user_attr("hpo:run", {"precision": "float32", "device": "cpu"})
    space = {"dropout": FloatDistribution(0, 0.5), "lr": FloatDistribution(1e-3, 0.5, log=True)}
    stored.add_trial(create_trial(value=0.5, params={"dropout": 0.25, "lr": 0.1}, distributions=space))
    running = process("test", "tiny", "--device", "cpu")
    assert running.process.stderr is not None
    assert running.process.stderr.readline().startswith(b"tiny: trial 0 on 200 examples for 1000000 epochs")
    running.process.send_signal(signal.SIGINT)
    outcome = running.outcome()
    assert (outcome.status, outcome.out) == (130, "")
    assert outcome.err == "hpo: stopped before the training finished; its results are discarded\n"
    assert evaluations_of(load_study(storage, "tiny").user_attrs) == []
    assert not list(folder.glob("*tiny-test*"))
    storage.close()


def test_an_ensemble_is_selected_confirmed_tested_exported_and_predicts(hpo: Run, folder: Path) -> None:
    keep = ("--set", "training.keep=last", "--set", "training.keep_trials=3")
    assert hpo("launch", "tiny.toml", "--quiet", *keep).status == 0
    refused = hpo("test", "tiny", "--ensemble")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err == "hpo: study 'tiny' has no ensemble: select one with `hpo ensemble tiny`\n"

    outcome = hpo("ensemble", "tiny", "--size", "4", "--device", "cpu")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("tiny: ensemble of trial")
    assert outcome.out.splitlines()[-1].endswith("hpo confirm tiny --ensemble")
    found = json.loads(hpo("ensemble", "tiny", "--size", "4", "--json").out)
    assert found["candidates"] == 3
    assert hpo("top", "tiny").out.splitlines()[-1].startswith("ensemble of trial")

    outcome = hpo("confirm", "tiny", "--ensemble", "--top", "1", "--seeds", "2", "--device", "cpu")
    assert outcome.status == 0
    assert sum(line.startswith("ensemble ") for line in outcome.out.splitlines()) == 1
    assert "trainings under 2 fresh seeds" in outcome.err
    exported = json.loads(hpo("export", "tiny", "--ensemble").out)
    jsonschema.validate(exported, schema("ensemble"))
    assert exported["confirmed"]["study"] == "tiny-confirm"

    outcome = hpo("test", "tiny", "--ensemble", "--device", "cpu")
    assert outcome.status == 0
    assert outcome.out.splitlines()[1].startswith("ensemble of trial")
    result = json.loads((folder / "tiny-test" / "result.json").read_text())
    jsonschema.validate(result, schema("ensemble_test"))
    np.save("images.npy", sealed_digits().inputs)
    _, *rows = hpo("predict", "tiny-test", "images.npy", "--device", "cpu").out.splitlines()
    correct = [int(row.split(",")[1]) for row in rows] == sealed_digits().targets
    assert correct.mean() == result["test"]["accuracy"]
    assert "last with ensemble of trial" in hpo("test", "tiny").err


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["ensemble", "tiny", "--size", "0"], 2, "hpo: Invalid value for '--size'"),
        (["ensemble", "tiny"], 1, "hpo: study 'tiny': no trial has stored weights: "),
        (["test", "tiny", "--ensemble", "--trial", "0"], 2, "hpo: --trial excludes --ensemble: give one of them"),
        (["export", "tiny", "--ensemble", "--format", "csv"], 2, "hpo: --format csv is for several trials, but"),
        (["export", "tiny", "--ensemble", "--format", "parquet", "-o", "x"], 2, "hpo: --format parquet is for several"),
        (["export", "tiny", "--ensemble", "--to", "mlflow"], 2, "hpo: --ensemble: cannot be combined with --to"),
        (["confirm", "tiny", "--ensemble"], 1, "hpo: study 'tiny' has no ensemble: "),
    ],
)
def test_an_invalid_use_of_ensembles_is_one_line(
    hpo: Run, launched: None, args: list[str], status: int, message: str
) -> None:
    outcome = hpo(*args)
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith(message)
    assert outcome.err.count("\n") == 1
