"""Ready studies of studies/digits_data.py: from the launch to the test in two epochs, and their sealed rows."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tiny import search, trials_of

from hpo.data import load_split, load_test
from hpo.data.splits import load_whole
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.result import SealedTestResult
from hpo.results.report import report
from hpo.search.populations.population_run import CURVE
from hpo.storage import Storage
from hpo.studyfile import Study, read_study

SMALL = ["training.epochs=2", "training.batch_size=128", "search.trials=2", "search.population=2"]


def ready_study(name: str) -> Study:
    return read_study(Path(__file__).parents[2] / f"studies/{name}.toml", SMALL)


@pytest.mark.parametrize(
    ("name", "metric", "first_line", "reported"),
    [
        ("digits-labels", "val_f1", "digits-labels: test f1 ", ">2: odd, 5 or more<"),
        ("rare-digit", "val_balanced_accuracy", "rare-digit: test balanced acc ", " over 5 folds<"),
    ],
)
def test_study_runs_to_its_report(
    name: str, metric: str, first_line: str, reported: str, storage: Storage, tmp_path: Path
) -> None:
    study = ready_study(name)
    search(study, storage)
    folds = [""] if study.data.folds is None else [f"/{fold + 1}" for fold in range(study.data.folds)]
    for trial in trials_of(storage, name):
        curve = trial.system_attrs[CURVE]
        assert trial.value == pytest.approx(np.mean([curve[f"{metric}{fold}"][-1] for fold in folds]))
    options = EvaluationOptions(device="cpu", folder=tmp_path / "out")
    tested = evaluate_test_set(storage, name, options, threading.Event(), print)
    assert SealedTestResult(tested).lines()[0].startswith(first_line)
    page = report(storage, name)
    assert reported in page
    assert first_line.removeprefix(f"{name}: test ") in page


@pytest.mark.parametrize(("name", "examples"), [("digits-labels", 1797), ("rare-digit", 1673)])
def test_sealed_examples_are_in_no_split(name: str, examples: int) -> None:
    whole = load_whole(ready_study(name))
    inputs = np.concatenate([whole.train.inputs, load_test(whole).inputs])
    assert len(np.unique(inputs, axis=0)) == len(inputs) == examples


def test_each_fold_has_the_same_share_of_the_rare_class() -> None:
    for fold in load_split(ready_study("rare-digit")).folds:
        assert fold.train.targets.sum() == 28
        assert fold.validation.targets.sum() == 7
