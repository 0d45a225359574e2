"""Folds in a search: the score is the mean over folds, pruners judge by it, and all that follows a search serves it."""

from __future__ import annotations

import json
import re
import statistics
import threading
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from tiny import search, study_of, tree, trials_of

import hpo
from hpo.data import load_split
from hpo.errors import HpoError
from hpo.results.reproduce.verify import verify
from hpo.search.plan import plan
from hpo.search.study_records import CURVE
from hpo.storage import Storage

FOLDS = 3


def folded(**changes: Any) -> Any:
    changes["data"] = {"folds": FOLDS, **changes.get("data", {})}
    return study_of(**changes)


def assert_means_of_folds(trial: FrozenTrial) -> None:
    """Assert that a trial's curves are the means of those of its folds."""
    curve = trial.system_attrs[CURVE]
    for metric in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        of_folds = [curve[f"{metric}/{fold}"] for fold in range(1, FOLDS + 1)]
        assert curve[metric] == pytest.approx(list(map(statistics.fmean, zip(*of_folds, strict=True))), abs=1e-12)
    assert len(curve) == 4 * (1 + FOLDS)


@pytest.mark.parametrize("score", ["last", "best"])
def test_the_score_is_the_mean_over_folds_and_its_spread_is_stored(storage: Storage, score: str) -> None:
    study = folded(search={"score": score}, training={"epochs": 4})
    search(study, storage)
    for trial in trials_of(storage):
        assert_means_of_folds(trial)
        scores = trial.user_attrs["fold_scores"]
        assert len(scores) == FOLDS
        assert trial.value == pytest.approx(statistics.fmean(scores), abs=1e-12)
        curve = trial.system_attrs[CURVE]["val_accuracy"]
        assert trial.value == (curve[-1] if score == "last" else max(curve))


@pytest.mark.parametrize("pruner", ["median", "hyperband", "halving"])
def test_pruners_judge_by_means_of_all_folds(storage: Storage, pruner: str) -> None:
    study = folded(search={"pruner": pruner, "trials": 18, "rung": 1}, training={"epochs": 6})
    search(study, storage)
    pruned = [trial for trial in trials_of(storage) if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert_means_of_folds(trial)
        reported = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
        assert reported == trial.system_attrs[CURVE]["val_accuracy"]


def test_every_example_validates_once() -> None:
    split = load_split(folded())
    rows = [row.tobytes() for fold in split.folds for row in fold.validation.inputs]
    assert len(split.folds) == FOLDS
    assert len(rows) == len(set(rows)) == 150
    for fold in split.folds:
        assert not {row.tobytes() for row in fold.train.inputs} & {row.tobytes() for row in fold.validation.inputs}
        assert len(fold.train) + len(fold.validation) == 150


def test_folds_have_another_split_than_a_hold_out_and_than_other_folds() -> None:
    hashes = {load_split(study_of(data={"folds": folds} if folds else {})).split_sha256 for folds in (None, 2, 3)}
    assert len(hashes) == 3


def test_all_that_follows_a_search_serves_folds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tree(data={"dataset": "digits", "train_size": 150, "folds": FOLDS}, search={"trials": 4})
    found = hpo.launch(source, storage="sqlite:///f.db", progress="quiet")
    assert f"over {FOLDS} folds" in found.top_lines(1)[0]

    exported = found.export()
    assert len(exported["curve"]) == 4 * (1 + FOLDS)
    Path("best.json").write_text(json.dumps(exported))
    (run,) = hpo.replay("best.json").found.runs
    assert run.largest == dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), pytest.approx(0))
    assert found.verify(say=pytest.fail).found["score"] == pytest.approx(0, abs=1e-9)

    confirmation = found.confirm(top=2, seeds=2, progress="quiet").found
    assert len(confirmation.ranked) == 3
    tested = found.test(say=lambda line: None).found
    assert tested.result["weights"]["images"] == 150  # all folds together
    assert found.write_report().exists()


def test_lion_and_averaged_weights_on_folds_are_those_of_a_trial_alone(storage: Storage) -> None:
    lion = {"kind": "lion", "lr": {"low": 1e-3, "high": 0.1, "log": True}, "beta1": {"low": 0.8, "high": 0.99}}
    study = folded(optimizer=lion, training={"epochs": 4, "ema": {"low": 0.5, "high": 0.9}})
    search(study, storage)
    certificate = verify(storage, "tiny", 6, "cpu", threading.Event(), pytest.fail)
    assert len(certificate["trials"]) == 6
    assert max(certificate["largest"].values()) <= 1e-9
    assert len({tuple(trial.system_attrs[CURVE]["val_loss"]) for trial in trials_of(storage)}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"folds": 1}}, "data.folds: must be at least 2"),
        ({"data": {"folds": 5, "validation": 0.2}}, "data.folds: cannot be combined with validation"),
        ({"data": {"folds": 80, "stratify": False, "train_size": 60}}, "data.folds: must be at most 60"),
        ({"data": {"folds": 20, "stratify": True}}, "data.stratify: class '"),
        ({"data": {"folds": 3}, "training": {"keep": "best"}}, "training.keep: must be none with data.folds"),
    ],
)
def test_folds_that_cannot_be_trained_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(HpoError, match=re.escape(message)):
        plan(study_of(**changes), "cpu")
