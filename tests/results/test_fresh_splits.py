"""Runs on fresh splits: `data.splits` and `hpo confirm --splits`, their curves, intervals, exports and errors."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import t
from tiny import after_epochs, search, study_of, trials_of

from hpo.data import load_splits
from hpo.errors import HpoError, StudyFileError, UsageError
from hpo.results.compare.runs import groups
from hpo.results.compare.statistics import estimate, paired
from hpo.results.compare.table import compare
from hpo.results.confirm.result import Confirmation
from hpo.results.confirm.split_choice import SplitChoice, choose_splits
from hpo.results.confirm.study import CONFIRMS, create_confirming_study
from hpo.results.confirm.text import ConfirmationResult
from hpo.results.display.progress import QuietProgress
from hpo.results.export.best import export
from hpo.results.reproduce.replay import replay
from hpo.results.reproduce.verify import verify
from hpo.search.events import EpochEnded
from hpo.search.options import LaunchOptions
from hpo.search.study_records import CURVE
from hpo.service.confirming import confirm
from hpo.storage import Storage, load_study
from hpo.studyfile import Study

FLOAT64 = {"epochs": 2, "precision": "float64"}
LR = {"lr": 0.1}


def repeated(**data: Any) -> Study:
    return study_of(
        data={"dataset": "digits", "train_size": 120, **data},
        training=FLOAT64,
        search={"trials": 6, "sampler": "random", "repeats": 3, "points": [LR, {"lr": 0.01}], "pruner": "none"},
    )


def confirmed(storage: Storage, *, seeds: int = 4, splits: int | None = 2) -> Confirmation:
    return confirm(
        storage,
        "tiny",
        top=1,
        seeds=seeds,
        splits=splits,
        options=LaunchOptions(device="cpu"),
        display=lambda: QuietProgress(Console(stderr=True)),
        say=lambda found: None,
        stop=threading.Event(),
    )


def curves(storage: Storage, name: str) -> list[dict[str, list[float]]]:
    return [trial.system_attrs[CURVE] for trial in trials_of(storage, name)]


def test_a_repeat_has_the_curve_of_a_study_of_its_split_alone(storage: Storage) -> None:
    study = repeated(splits=2)
    search(study, storage)
    found = curves(storage, "tiny")
    for split in range(2):
        alone = study_of(
            name=f"alone-{split}",
            data={"dataset": "digits", "train_size": 120, "split_seed": split},
            training=FLOAT64,
            search=study.resolved()["search"],
        )
        search(alone, storage)
        for number, curve in enumerate(curves(storage, alone.name)):
            if number % 3 % 2 == split:
                for metric, values in curve.items():
                    assert np.allclose(found[number][metric], values, rtol=1e-9, atol=1e-9), (number, metric)
            else:
                assert not np.allclose(found[number]["val_loss"], curve["val_loss"], rtol=1e-3)
    certificate = verify(storage, "tiny", 6, "cpu", threading.Event(), print)
    assert certificate["score"] <= 1e-12


def test_an_interrupted_search_continues_on_splits_of_different_sizes(storage: Storage, tmp_path: Path) -> None:
    random, groups = np.random.default_rng(0), np.repeat(np.arange(12), [1, 9, 2, 8, 3, 7, 4, 6, 5, 5, 2, 8])
    np.savez(tmp_path / "grouped.npz", x=random.normal(size=(60, 4)), y=np.arange(60) % 2, g=groups)
    data = {
        "dataset": f"npz:{tmp_path / 'grouped.npz'}",
        "groups": "g",
        "validation": 0.3,
        "train_size": 60,
        "splits": 3,
    }
    settings = {"trials": 6, "repeats": 3, "sampler": "random", "pruner": "none", "population": 6}
    training = {"epochs": 4, "precision": "float64", "checkpoint": 1, "batch_size": 4}
    studies = [study_of(name=name, data=data, training=training, search=settings) for name in ("tiny", "whole")]
    assert len({len(split.train) for split in load_splits(studies[0])}) > 1
    events = search(studies[0], storage, stop_at=after_epochs(2)) + search(studies[0], storage)
    search(studies[1], storage)
    assert sum(isinstance(event, EpochEnded) for event in events) == 3 * 4  # the repeats of a split train together
    for found, expected in zip(curves(storage, "tiny"), curves(storage, "whole"), strict=True):
        assert found["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-9)


def test_a_confirmation_on_fresh_splits_has_the_corrected_interval(storage: Storage, tmp_path: Path) -> None:
    search(study_of(training=FLOAT64, search={"trials": 2, "pruner": "none"}), storage)
    found = confirmed(storage)
    confirming = found.study
    assert isinstance(confirming, Study)
    assert (confirming.data.splits, confirming.data.split_seed) == (2, 1)  # not the search's split, 0
    splits = load_splits(confirming)
    assert len({each.split_sha256 for each in splits}) == 2

    each = found.winner
    numbers = {trial.user_attrs["seed"]: trial.number for trial in trials_of(storage, confirming.name)}
    runs = np.array(
        [[score for seed, score in each.scores.items() if numbers[seed] % 4 % 2 == split] for split in range(2)]
    )
    means, of_means, of_seeds = runs.mean(axis=1), runs.mean(axis=1).var(ddof=1), runs.var(axis=1, ddof=1).mean() / 2
    overlap = len(splits[0].validation) / len(splits[0].train)
    reach = t.ppf(0.975, 1) * math.sqrt(of_means / 2 + overlap * max(0, of_means - of_seeds))
    assert each.estimate.mean == pytest.approx(np.mean(means))
    assert each.estimate.interval is not None
    assert each.estimate.interval.high == pytest.approx(np.mean(means) + reach)
    assert "over 4 fresh seeds on 2 fresh splits (as requested), best" in ConfirmationResult(found).lines()[0]

    path = tmp_path / "best.json"
    exported = export(storage, "tiny", confirmed=True)
    path.write_text(json.dumps(exported))
    assert sorted(set(exported["confirmed"]["split_seeds"])) == [1, 2]
    replayed = replay(path, "cpu", threading.Event(), print).runs
    assert [abs(run.difference) <= 1e-12 for run in replayed] == 4 * [True]


def test_an_export_of_a_run_is_replayed_on_its_split(storage: Storage, tmp_path: Path) -> None:
    search(repeated(splits=3), storage)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(export(storage, "tiny", trial=5)))
    (run,) = replay(path, "cpu", threading.Event(), print).runs
    assert run.largest["val_loss"] <= 1e-12


def test_comparisons_allow_for_the_overlap_of_splits(storage: Storage) -> None:
    search(repeated(splits=3), storage)
    found = groups(storage, ["tiny"])
    (row,) = (each for each in compare(found) if each.paired is not None)
    values = [[run.final["val_accuracy"] for run in group.runs] for group in (row.group, found[0])]
    share = 24 / 96  # validation by training examples
    assert row.paired is not None
    assert row.paired.t == pytest.approx(paired(*values, share).t)


def test_the_variance_of_values_on_random_splits_has_the_share_of_validation_examples() -> None:
    values = [0.7, 0.8, 0.9]
    plain, corrected = estimate(values), estimate(values, 0.25)
    assert plain.interval is not None
    assert corrected.interval is not None
    widths = [each.high - each.low for each in (plain.interval, corrected.interval)]
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(1 + 3 * 0.25))
    assert (plain.mean, plain.sd) == (corrected.mean, corrected.sd)


@pytest.mark.parametrize(
    ("data", "search_settings", "problem"),
    [
        ({"splits": 4}, {"repeats": 3}, r"data\.splits: must be at most search\.repeats, 3.* \(got 4\)"),
        ({"splits": 2, "order": "time"}, {"repeats": 2}, r"data\.splits: cannot be combined with order"),
    ],
)
def test_splits_that_no_repeat_can_have_are_refused(
    data: dict[str, Any], search_settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(StudyFileError, match=problem):
        study_of(data={"dataset": "digits", **data}, search={"trials": 4, **search_settings})


def test_more_splits_than_seeds_are_refused_before_anything_is_stored(storage: Storage) -> None:
    search(study_of(search={"trials": 1}), storage)
    with pytest.raises(UsageError, match=r"--splits: must be at most --seeds, 4 \(got 5\)"):
        confirmed(storage, splits=5)
    with pytest.raises(HpoError):
        load_study(storage, "tiny-confirm")


@pytest.mark.parametrize(
    ("data", "validation", "seeds", "given", "splits", "why"),
    [
        ({}, 4999, 10, None, 5, "only 4,999 validation examples"),
        ({}, 5000, 10, None, None, "5,000 validation examples"),
        ({}, 100, 9, None, None, "fewer than 10 seeds"),
        ({"order": "time"}, 100, 10, None, None, "the examples are in time order"),
        ({"folds": 3}, 100, 10, None, None, "together they validate on every training example"),
        ({}, 100, 10, 1, None, "as requested"),
        ({}, 5000, 4, 2, 2, "as requested"),
    ],
)
def test_splits_are_fresh_where_validation_examples_are_few(
    data: dict[str, Any], validation: int, seeds: int, given: int | None, splits: int | None, why: str
) -> None:
    study = study_of(data={"dataset": "digits", **data})
    assert choose_splits(study, {"validation": validation}, seeds, given) == SplitChoice(splits, why)


def test_a_confirmation_has_fresh_splits_by_default(storage: Storage) -> None:
    search(study_of(training={"epochs": 1}, search={"trials": 1}), storage)
    study = create_confirming_study(storage, "tiny", 1, 10)
    assert isinstance(study, Study)
    assert study.data.splits == 5
    assert create_confirming_study(storage, "tiny", 1, 10, 5).name == study.name  # the same runs
    alone = create_confirming_study(storage, "tiny", 1, 10, 1)
    assert isinstance(alone, Study)
    assert alone.data.splits is None


def test_data_with_a_validation_set_are_confirmed_on_it(storage: Storage, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 4)), np.arange(60) % 2
    np.savez(tmp_path / "own.npz", x=x[:40], y=y[:40], x_val=x[40:], y_val=y[40:])
    study = study_of(
        data={"dataset": f"npz:{tmp_path / 'own.npz'}", "train_size": 40}, training={"epochs": 1}, search={"trials": 1}
    )
    search(study, storage)
    with pytest.raises(StudyFileError, match=r"data\.splits: must not be given: npz:.* has a validation set \(got 2\)"):
        create_confirming_study(storage, "tiny", 1, 10, 2)
    study = create_confirming_study(storage, "tiny", 1, 10)
    assert isinstance(study, Study)
    assert study.data.splits is None
    assert load_study(storage, study.name).user_attrs[CONFIRMS]["splits_why"] == "the data have a validation set"
    (tmp_path / "own.npz").unlink()
    assert create_confirming_study(storage, "tiny", 1, 10).name == study.name  # needs no data
