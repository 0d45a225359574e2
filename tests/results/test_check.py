"""The report of `hpo check`."""

from __future__ import annotations

import json
import tomllib
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import DECAY, study_of

from hpo.errors import HpoError, StorageError, StudyFileError, UsageError
from hpo.results.display.check import check_report
from hpo.search.launch import submit
from hpo.storage import open_storage
from hpo.studyfile import parse_any_study, parse_study
from hpo.training.speed.choices import StackSize


def test_the_report_lists_search_space_sizes_and_resolved_file() -> None:
    study = study_of(
        network={"hidden": {"choices": [[8], [4, 4]]}, "dropout": {"low": 0.0, "high": 0.5, "step": 0.1}},
        optimizer={"weight_decay": DECAY},
        training={"batch_size": {"low": 20, "high": 60, "step": 20}, "epochs": {"low": 2, "high": 4, "log": True}},
    )
    report = check_report(study, "cpu", resolved=True)
    assert report.startswith("studies/tiny.toml: valid\n\nsearch space (infinitely many trials):\n")
    for line in (
        'sampler = "random"',
        'pruner = "auto"',
        "  hidden: one of [8], [4, 4]",
        "  dropout: 0 to 0.5, step 0.1",
        "  lr: 0.001 to 1, log scale",
        "  weight_decay: 1e-06 to 0.01, log scale",
        "  batch_size: 20 to 60, step 20, whole numbers",
        "  epochs: 2 to 4, log scale, whole numbers",
        "data: digits, 120 training and 30 validation examples of 1 x 8 x 8 pixels, 10 classes",
        "split: stratified by class, seed 0",
        "trivial baseline: val acc 0.1000 (always the most frequent class)",
        f"network: {64 * 8 + 8 + 8 * 10 + 10} parameters (at the first value of each range)",
        "population: 4 members, ",
        "frozen member: 5 KiB; ",
        "trials: 6 of at most 4 epochs",
    ):
        assert line in report
    summary = check_report(study, "cpu")
    assert report.startswith(summary + "\n\nname = ")
    assert parse_study(tomllib.loads(report.removeprefix(summary)), "resolved.toml") == study


def test_a_default_storage_that_cannot_be_read_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_STORAGE", f"sqlite:///{tmp_path}/missing.db")
    assert "\npruner: none (auto: 6 trials of 2 epochs; " in check_report(study_of(), "cpu")
    with pytest.raises(StorageError, match="no such file"):
        check_report(study_of(), "cpu", storage_url=f"sqlite:///{tmp_path}/missing.db")
    assert list(tmp_path.iterdir()) == []


def test_a_stored_study_has_its_stored_split(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hpo.db"
    with closing(open_storage(url)) as storage:
        submit(study_of(data={"stratify": False}), storage)
    assert "\nsplit: random, seed 0\n" in check_report(study_of(), "cpu", storage_url=url)


def test_further_splits_are_named() -> None:
    study = study_of(data={"splits": 3}, search={"trials": 6, "repeats": 3})
    line = "\nsplit: stratified by class, seed 0, and 2 further splits for the repeats, to seed 2\n"
    assert line in check_report(study, "cpu")


def test_the_resolved_file_of_a_json_file_is_json() -> None:
    study = replace(study_of(), source="studies/tiny.json")
    resolved = check_report(study, "cpu", resolved=True).removeprefix(check_report(study, "cpu"))
    assert json.loads(resolved) == study.resolved()


def test_the_trials_of_finite_search_spaces_are_counted() -> None:
    assert "search space (1 different trial):" in check_report(study_of(optimizer={"lr": 0.1}), "cpu")
    finite = study_of(optimizer={"lr": {"choices": [0.1, 0.2, 0.4]}}, training={"batch_size": {"low": 7, "high": 10}})
    assert "search space (12 different trials):" in check_report(finite, "cpu")
    vast = study_of(optimizer={"lr": 0.1}, network={"hidden": [{"low": 1, "high": 50}] * 200})
    assert "search space (more than 1,000,000,000,000,000 different trials):" in check_report(vast, "cpu")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"search": {"sampler": "cmaes"}}, StudyFileError),
        ({"data": {"train_size": 2000}}, StudyFileError),
        ({"optimizer": {"lr": {"low": 1e-3, "high": 1.0, "step": 1e-12}}}, StudyFileError),
        ({"network": {"kind": "cnn"}}, HpoError),
        ({"network": {"hidden": [10**6, 10**6]}}, StudyFileError),
        ({"network": {"hidden": [2**62]}}, StudyFileError),
        ({"training": {"shift": 8}}, StudyFileError),
        ({"training": {"shift": {"low": 0, "high": 8}}}, StudyFileError),
        ({"training": {"shift": {"choices": [0, 2, 9]}}}, StudyFileError),
    ],
)
def test_check_refuses_the_same_studies_as_a_launch(changes: dict[str, Any], error: type[HpoError]) -> None:
    with pytest.raises(error):
        check_report(study_of(**changes), "cpu")
    with pytest.raises(UsageError):
        check_report(study_of(), "cuda:99")


def test_the_speed_of_stacks_and_single_trials_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.training.speed.choices.choose_stack_size", lambda *given: StackSize(3, 3))
    study = study_of(search={"trials": 3, "population": 3}, training={"precision": "auto"})
    title, heading, *rows = check_report(study, "cpu", measure=True).splitlines()[-6:]
    assert title == "a step of one trial, in 8 chunks of 3 trials, in alternation on cpu:"
    assert heading.split() == ["way", "of", "training", "mean", "ms", "least", "quartiles", "speed"]
    ways = [f"{way}, {precision}" for precision in ("float32", "bfloat16") for way in ("one at a time", "stacks of 3")]
    assert [row[: len("one at a time, bfloat16")].strip() for row in rows] == ways
    speeds = [float(row.split()[-1]) for row in rows]
    assert speeds[0] == 1.0
    assert min(speeds) > 0


def test_objective_studies_are_not_measured() -> None:
    study = parse_any_study({"name": "own", "objective": "own.py:own", "search": {"trials": 1}}, "own.toml")
    with pytest.raises(UsageError, match=r"^--measure: an objective study trains its networks itself; remove"):
        check_report(study, "cpu", measure=True)
