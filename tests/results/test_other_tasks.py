"""Regression and several labels, from the data to the predictions of a tested network."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from schemas import schema
from sklearn.dummy import DummyRegressor
from sklearn.metrics import f1_score, r2_score, root_mean_squared_error
from tiny import search, tree, trials_of

from hpo.data import load_split
from hpo.data.user.arrays import ArrayPair, examples_from_arrays
from hpo.errors import DataError, HpoError, StudyFileError
from hpo.results.compare.runs import groups
from hpo.results.compare.table import compare, text
from hpo.results.confirm.result import find_confirmation
from hpo.results.confirm.study import create_confirming_study
from hpo.results.confirm.text import ConfirmationResult
from hpo.results.display.check import check_report
from hpo.results.export.best import export
from hpo.results.figures.comparison import comparison
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.predict import TargetPredictions, predictions
from hpo.results.final_test.result import SealedTestResult
from hpo.results.ranking import top_lines
from hpo.results.report import report
from hpo.results.reproduce.replay import replay
from hpo.search.plan import plan
from hpo.search.populations.population_run import CURVE
from hpo.storage import Storage
from hpo.studyfile import Study, parse_study

RNG = np.random.default_rng(3)
X = RNG.normal(size=(120, 4)).astype(np.float32)
NUMBERS = 5000 + 300 * (X @ np.array([1.0, -2.0, 0.5, 0.0])) + RNG.normal(size=120)
LABELS = np.stack([X[:, 0] > 0, X[:, 1] > 0.8], 1).astype(np.int64)
REST = 90
"""The first examples are for training and validation, the others for the test."""


def study_in(folder: Path, y: Any, task: dict[str, Any], more: dict[str, Any] | None = None, **of_search: Any) -> Study:
    np.savez(folder / "data.npz", x=X[:REST], y=y[:REST], x_test=X[REST:], y_test=y[REST:], **(more or {}))
    written = tree(
        data={"dataset": "npz:data.npz"},
        task=task,
        network={"dropout": 0.2},
        optimizer={"kind": "adam", "lr": {"low": 0.01, "high": 0.1, "log": True}},
        training={"epochs": 4, "batch_size": 20},
        search={"trials": 2, "population": 2, "pruner": "none", **of_search},
    )
    del written["data"]["train_size"]
    return parse_study(written, "tiny.toml", folder)


def test_a_regression_from_its_data_to_its_predictions(storage: Storage, tmp_path: Path) -> None:
    study, stop = study_in(tmp_path, NUMBERS, {"kind": "regression"}), threading.Event()
    assert ", 1 number to predict" in check_report(study, "cpu", False)
    search(study, storage)
    for trial in trials_of(storage):
        curve = trial.system_attrs[CURVE]
        assert list(curve) == ["train_loss", "val_loss", "val_rmse"]
        deviation = load_split(study).train.targets.std()
        assert curve["val_rmse"] == pytest.approx(np.sqrt(curve["val_loss"]) * deviation)
    lines = top_lines(storage, "tiny", 2)
    assert [float(line.split("val rmse: ")[1].split(" ")[0]) for line in lines] == sorted(
        round(float(trial.value or 0), 4) for trial in trials_of(storage)
    )
    exported = export(storage, "tiny")
    jsonschema.validate(exported, schema("best"))
    split, mean = load_split(study), DummyRegressor()
    mean.fit(split.train.inputs, split.train.targets)
    trivial = root_mean_squared_error(split.validation.targets, mean.predict(split.validation.inputs))
    assert exported["data"]["trivial"]["val_rmse"] == pytest.approx(trivial)
    (tmp_path / "best.json").write_text(json.dumps(exported))
    assert replay(tmp_path / "best.json", "cpu", stop, pytest.fail).runs[0].difference < 1e-6
    search(create_confirming_study(storage, "tiny", top=1, seeds=2), storage)
    confirmed = ConfirmationResult(find_confirmation(storage, "tiny"))
    assert "mean val rmse over 2 fresh seeds" in confirmed.lines()[0]
    baseline = f"trivial baseline: val rmse {trivial:.4f} (always the mean of the training targets)"
    assert any(line.endswith(f" better than the {baseline}") for line in confirmed.lines())
    assert confirmed.tree()["trivial"] == pytest.approx(trivial)
    both = groups(storage, ["tiny#0", "tiny#1"])
    assert "val rmse" in text(compare(both))
    assert "train loss" in text(compare(both))
    comparison(both)

    tested = evaluate_test_set(storage, "tiny", EvaluationOptions(device="cpu", folder=tmp_path / "out"), stop, print)
    jsonschema.validate(tested.result, schema("test"))
    np.save(tmp_path / "new.npy", X[REST:])
    found = predictions(tmp_path / "out", tmp_path / "new.npy", "cpu")
    assert isinstance(found, TargetPredictions)
    scores = tested.result["test"]
    assert scores["metric"]["value"] == pytest.approx(
        root_mean_squared_error(NUMBERS[REST:], found.values[:, 0]), rel=1e-6
    )
    assert scores["metrics"]["r2"] == pytest.approx(r2_score(NUMBERS[REST:], found.values[:, 0]), rel=1e-6)
    mean.fit(X[:REST], NUMBERS[:REST])
    trivial = root_mean_squared_error(NUMBERS[REST:], mean.predict(X[REST:]))
    assert scores["trivial"]["rmse"] == pytest.approx(trivial)
    assert SealedTestResult(tested).lines()[0].startswith("tiny: test rmse ")
    assert SealedTestResult(tested).lines()[2].startswith(f"trivial baseline: rmse {trivial:.4f}, mae ")
    assert (tmp_path / "out" / "predicted.html").exists()
    assert str(found).startswith("example,value\n0,")
    with pytest.raises(HpoError, match=r"has been evaluated on its test set once \(last with trial . at .*: rmse"):
        evaluate_test_set(storage, "tiny", EvaluationOptions(device="cpu"), stop, print)
    assert baseline in report(storage, "tiny")


def test_a_network_of_means_and_variances_predicts_several_columns(storage: Storage, tmp_path: Path) -> None:
    both = np.stack([NUMBERS, X[:, 2]], 1)
    study = study_in(tmp_path, both, {"kind": "regression", "loss": "gaussian_nll"}, metric=["val_r2", "val_mae"])
    search(study, storage)
    options = EvaluationOptions(device="cpu", folder=tmp_path / "out", subnetworks=5)
    tested = evaluate_test_set(storage, "tiny", options, threading.Event(), print)
    jsonschema.validate(tested.result, schema("test"))
    np.save(tmp_path / "new.npy", X[REST:])
    found = predictions(tmp_path / "out", tmp_path / "new.npy", "cpu")
    assert isinstance(found, TargetPredictions)
    assert found.values.shape == (30, 2)
    assert tested.result["test"]["metric"]["value"] == pytest.approx(r2_score(both[REST:], found.values), rel=1e-6)
    sub = tested.result["subnetworks"]
    assert sub["mean"].keys() == sub["single"].keys() == tested.result["test"]["trivial"].keys()
    # the mean of the predictions has at most the mean error of the single ones
    assert sub["mean"]["mae"] <= sub["single"]["mae"]
    assert 0 < sub["difference"] < 300
    assert re.search(
        r"mean of 5 random sub-networks: r2 .*, rmse .*; one by itself: r2 .* the mean's predictions differ",
        SealedTestResult(tested).lines()[3],
    )


def test_several_labels_from_the_data_to_the_predictions(storage: Storage, tmp_path: Path) -> None:
    names = {"classes": np.array(["high", "wide"])}
    study = study_in(tmp_path, LABELS, {"kind": "multilabel", "pos_weight": "balanced"}, names)
    search(study, storage)
    assert list(trials_of(storage)[0].system_attrs[CURVE]) == ["train_loss", "val_loss", "val_f1"]
    options = EvaluationOptions(device="cpu", folder=tmp_path / "out", subnetworks=5)
    tested = evaluate_test_set(storage, "tiny", options, threading.Event(), print)
    jsonschema.validate(tested.result, schema("test"))
    np.save(tmp_path / "new.npy", X[REST:])
    found = predictions(tmp_path / "out", tmp_path / "new.npy", "cpu")
    assert isinstance(found, TargetPredictions)
    assert found.names == ("high", "wide")
    expected = f1_score(LABELS[REST:], found.values > 0.5, average="macro", zero_division=0)
    assert tested.result["test"]["metric"]["value"] == pytest.approx(expected)
    assert [label["name"] for label in tested.result["test"]["labels"]] == ["high", "wide"]
    assert tested.result["subnetworks"]["mean"]["loss"] <= tested.result["subnetworks"]["single"]["loss"]
    assert "the mean's probabilities differ" in SealedTestResult(tested).lines()[3]


NAN = np.where(np.arange(120) == 7, np.nan, NUMBERS)


@pytest.mark.parametrize(
    ("y", "task", "problem"),
    [
        (NUMBERS.astype(str), {"kind": "regression"}, "y has type <U.*; the targets must be numbers"),
        (NAN, {"kind": "regression"}, "y: the target of example 7 is NaN or infinite; remove the example, or fill it"),
        (np.ones(120), {"kind": "regression"}, "the targets of all training examples are equal"),
        (LABELS + 1, {"kind": "multilabel"}, r"y: the labels of example \d+ must be 0 or 1, one column for each label"),
        (
            LABELS,
            {"kind": "multilabel", "pos_weight": [1.0]},
            "task.pos_weight: must have 2 numbers, one for each",
        ),
        (NUMBERS, {}, "For numbers or several labels, set `kind` of .task."),
    ],
)
def test_unfit_targets_are_one_line(y: Any, task: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, StudyFileError), match=problem):
        plan(study_in(tmp_path, y, task), "cpu")


def test_a_data_set_of_classes_has_no_other_task() -> None:
    with pytest.raises(
        DataError, match=r"digits: has classes; task.kind = regression needs table:FILE, npz:FILE or FILE.py:FUN"
    ):
        plan(parse_study(tree(task={"kind": "regression"}), "tiny.toml"), "cpu")


def test_a_regression_with_folds_is_tested_with_all_its_examples(storage: Storage, tmp_path: Path) -> None:
    study = study_in(tmp_path, NUMBERS, {"kind": "regression"}, trials=1, population=1)
    written = study.resolved()
    written["data"] = {"dataset": "npz:data.npz", "folds": 3}
    search(parse_study(written, "tiny.toml", tmp_path), storage)
    (trial,) = trials_of(storage)
    folds = [trial.system_attrs[CURVE][f"val_rmse/{fold}"][-1] for fold in (1, 2, 3)]
    assert trial.value == pytest.approx(np.mean(folds))
    tested = evaluate_test_set(
        storage, "tiny", EvaluationOptions(device="cpu", folder=tmp_path / "out"), threading.Event(), print
    )
    assert tested.result["weights"]["images"] == REST


def test_numbers_are_kept_beside_inputs_of_integers() -> None:
    ids, numbers = np.arange(12).reshape(6, 2), np.linspace(0.5, 3, 6)
    raw = examples_from_arrays(ArrayPair(ids, numbers, "ids.npz"), task="regression")
    examples = raw.take(np.arange(6))
    assert examples.inputs.dtype == np.int64
    assert examples.targets[:, 0].tolist() == numbers.tolist()
