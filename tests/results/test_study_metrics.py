"""Studies with a metric other than accuracy and loss, from the launch to the report: its name, direction and values."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from optuna.study import StudyDirection
from schemas import schema
from sklearn.metrics import f1_score
from tiny import search, tree, trials_of

from hpo.errors import StudyFileError
from hpo.results.compare.runs import groups
from hpo.results.compare.table import compare, comparison_tree, text
from hpo.results.confirm.result import find_confirmation
from hpo.results.confirm.study import create_confirming_study
from hpo.results.confirm.text import ConfirmationResult
from hpo.results.export.best import export
from hpo.results.figures.comparison import comparison
from hpo.results.figures.kinds import draw
from hpo.results.figures.source import read_source
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.result import SealedTestResult
from hpo.results.ranking import top_lines
from hpo.results.report import report
from hpo.results.reproduce.replay import ReplayResult, replay
from hpo.search.plan import plan
from hpo.search.populations.population_run import CURVE
from hpo.storage import Storage, load_study
from hpo.studyfile import Study, parse_study

CODE = """\
import numpy as np
import torch.nn.functional as F
from sklearn.metrics import zero_one_loss

def error(predictions, targets):
    return zero_one_loss(targets, predictions.argmax(1))

def loss(output, targets):
    return F.cross_entropy(output, targets, reduction="none")

def none(output, targets):
    raise ValueError("no loss today")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def study_in(folder: Path, task: dict[str, Any] | None = None, **of_search: Any) -> Study:
    changes: dict[str, Any] = {} if task is None else {"task": task}
    written = tree(search={"trials": 3, "population": 3, "pruner": "none", **of_search}, **changes)
    return parse_study(written, "tiny.toml", folder)


def test_a_study_of_f1_has_its_name_and_values_everywhere(storage: Storage, folder: Path) -> None:
    study = study_in(folder, {"class_weights": "balanced"}, metric="val_f1")
    search(study, storage)
    stop = threading.Event()
    for trial in trials_of(storage):
        curve = trial.system_attrs[CURVE]
        assert list(curve) == ["train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_f1"]
        assert trial.value == curve["val_f1"][-1]
    assert load_study(storage, "tiny").direction == StudyDirection.MAXIMIZE
    assert all("| val f1: 0." in line for line in top_lines(storage, "tiny", 3))

    exported = export(storage, "tiny")
    jsonschema.validate(exported, schema("best"))
    assert (exported["metric"], exported["config"]["task"]["class_weights"]) == ("val_f1", "balanced")
    (folder / "best.json").write_text(json.dumps(exported))
    repeated = replay(folder / "best.json", "cpu", stop, pytest.fail)
    assert repeated.runs[0].difference < 1e-9
    assert ReplayResult(repeated).lines()[0].startswith("val f1 0.")

    search(create_confirming_study(storage, "tiny", top=2, seeds=2), storage)
    assert "mean val f1 over 2 fresh seeds" in ConfirmationResult(find_confirmation(storage, "tiny")).lines()[0]

    tested = evaluate_test_set(storage, "tiny", EvaluationOptions(device="cpu", folder=folder / "out"), stop, print)
    jsonschema.validate(tested.result, schema("test"))
    found = tested.result["test"]["metric"]
    confusion = tested.result["test"]["confusion"]
    pairs = [(a, b) for a, row in enumerate(confusion) for b, count in enumerate(row) for _ in range(count)]
    expected = f1_score([a for a, _ in pairs], [b for _, b in pairs], average="macro", zero_division=0)
    assert (found["name"], found["value"]) == ("f1", pytest.approx(expected, rel=1e-9))
    assert found["interval"]["low"] < found["value"] < found["interval"]["high"]
    assert SealedTestResult(tested).lines()[0].startswith(f"tiny: test f1 {expected:.4f} (95% interval 0.")

    compared = compare(groups(storage, ["tiny#0", "tiny#1"]))
    assert "val f1" in text(compared).splitlines()[0]
    assert comparison_tree(compared)["groups"][0]["summary"]["final"].keys() >= {"val_f1", "val_accuracy"}
    assert comparison(groups(storage, ["tiny#0", "tiny#1"])).layout.title.text.startswith("tiny: F1 score and loss")
    assert "F1 score" in draw(read_source(storage, "tiny"))["curves"].layout.title.text
    page = report(storage, "tiny")
    assert "validation F1 score" in page
    assert "val f1" in page


def test_a_minimized_metric_and_a_loss_of_the_user(storage: Storage, folder: Path) -> None:
    study = study_in(folder, {"loss": "mine.py:loss"}, metric="mine.py:error", direction="minimize")
    search(study, storage)
    assert load_study(storage, "tiny").direction == StudyDirection.MINIMIZE
    lines = top_lines(storage, "tiny", 3)
    values = [float(line.split("val error: ")[1].split(" ")[0]) for line in lines]
    assert values == sorted(values)
    for trial in trials_of(storage):
        curve = trial.system_attrs[CURVE]
        assert curve["val_error"] == pytest.approx([1 - value for value in curve["val_accuracy"]])
    exported = export(storage, "tiny")
    jsonschema.validate(exported, schema("best"))
    assert exported["direction"] == "minimize"
    assert list(exported["code"]["files"]) == ["mine.py"]
    (folder / "best.json").write_text(json.dumps(exported))
    assert replay(folder / "best.json", "cpu", threading.Event(), pytest.fail).runs[0].difference < 1e-9


def test_errors_of_users_functions_are_found_by_the_plan(folder: Path) -> None:
    problem = r"task.loss: the function raised ValueError: no loss today \(mine.py, line 12, in none\)"
    with pytest.raises(StudyFileError, match=problem):
        plan(study_in(folder, {"loss": "mine.py:none"}), "cpu")
    with pytest.raises(StudyFileError, match=r"task\.class_weights: must have 10 numbers, one for each class"):
        plan(study_in(folder, {"class_weights": [1, 2]}), "cpu")
