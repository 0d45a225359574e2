"""Studies with conditional parameters in what comes out: trials that lack a parameter are no surprise anywhere."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from objectives import objective_study
from optuna.trial import FrozenTrial
from stored_studies import run, tree
from tiny import search

from hpo.data import load_split
from hpo.errors import UsageError
from hpo.results.compare.runs import groups, groups_by_value
from hpo.results.confirm.study import create_confirming_study
from hpo.results.edges import edge_warnings
from hpo.results.export.best import export
from hpo.results.export.text import csv_text
from hpo.results.export.trials import trial_records
from hpo.results.figures.importances import parameter_importances
from hpo.results.figures.kinds import draw
from hpo.results.figures.source import read_source
from hpo.results.narrow.next_study import propose
from hpo.results.ranking import top_lines
from hpo.search.points import points
from hpo.search.space import distributions
from hpo.storage import Storage, best_trials
from hpo.studyfile import parse_study

Stored = Callable[..., optuna.Study]

WRITTEN = tree(
    optimizer={
        "kind": {"choices": ["sgd", "adam"]},
        "when": {
            "kind": {"adam": {"beta1": {"low": 0.5, "high": 0.9}, "lr": {"low": 1e-4, "high": 1e-1, "log": True}}}
        },
    },
    training={"precision": "float32"},
)
STUDY = parse_study(WRITTEN, "digits.toml")


def trials() -> list[FrozenTrial]:
    """Twelve of each kind; adam with a large beta1 is best."""
    space, draws, made = distributions(STUDY), random.Random(2), list[FrozenTrial]()
    for number in range(24):
        own = {"dropout": draws.uniform(0, 0.6)}
        lr = 10 ** draws.uniform(-4, -1)
        if number % 2:
            beta1 = 0.9 if number == 7 else draws.uniform(0.5, 0.9)
            params: dict[str, Any] = {**own, "optimizer.kind": "adam", "lr.adam": lr, "beta1": beta1}
            score = 0.5 + 0.4 * beta1
        else:
            params, score = {**own, "optimizer.kind": "sgd", "lr": lr}, 0.3 + draws.uniform(0, 0.1)
        made.append(run(params, {name: space[name] for name in params}, seed=number, val=[0.1, score]))
    return made


@pytest.fixture
def name(stored: Stored) -> str:
    made, split = stored(trials(), WRITTEN), load_split(STUDY)
    same = {"sha256": split.content_sha256, "split_sha256": split.split_sha256}
    made.set_user_attr("hpo:data", {**made.user_attrs["hpo:data"], **same})
    return "digits"


def test_the_best_is_shown_and_exported_with_what_it_has(storage: Storage, name: str) -> None:
    assert "beta1: 0.9000" in top_lines(storage, name, 1)[0]
    exported = export(storage, name)
    assert exported["params"].keys() == {"dropout", "optimizer.kind", "lr.adam", "beta1"}
    assert exported["config"]["optimizer"]["lr"] == exported["params"]["lr.adam"]
    assert "when" not in exported["config"]["optimizer"]
    again = parse_study(json.loads(json.dumps(exported["config"])), "")
    assert again.parameters == ()
    best = best_trials(storage, name, 1)[0]
    assert [line for line in edge_warnings(STUDY, [best]) if "--set optimizer.when.kind.adam.beta1.high=" in line]


def test_a_table_of_trials_has_an_empty_cell_for_what_a_trial_lacks(storage: Storage, name: str) -> None:
    rows = list(trial_records(storage, name, every=True))
    assert {row["precision"] for row in rows} == {"float32"}  # each of them is whole
    text = csv_text(rows).splitlines()
    assert {"lr", "lr.adam", "beta1"} <= set(text[0].split(","))
    assert len({line.count(",") for line in text}) == 1


def test_ranges_are_narrowed_around_the_best_that_have_them(storage: Storage, name: str) -> None:
    study, reasons = propose(storage, name)
    lines = "\n".join(reasons)
    assert "beta1: 0.5..0.9 -> " in lines
    assert "\nlr: " not in lines  # none of the best is sgd's
    assert study.resolved()["optimizer"]["lr"] == STUDY.resolved()["optimizer"]["lr"]
    case = study.resolved()["optimizer"]["when"]["kind"]["adam"]
    assert case["beta1"]["low"] > 0.5


def test_the_best_are_confirmed_against_a_baseline_of_another_kind(storage: Storage, name: str) -> None:
    confirming = create_confirming_study(storage, name, 2, 3)
    given = points(confirming)
    assert [point["optimizer.kind"] for point in given] == [
        "adam",
        "adam",
        "sgd",
        "sgd",
    ]  # the last one is the first trial
    assert given[2].keys() == {"dropout", "optimizer.kind", "lr"}


def test_groups_are_told_apart_by_what_only_some_have(storage: Storage, name: str) -> None:
    found = groups(storage, [f"{name}#0", f"{name}#1", f"{name}#3"])
    parts = groups_by_value(found, "beta1")
    assert [(text.split(": ")[0], len(each)) for text, each in parts.items()] == [("beta1", 1)] * 3
    assert next(iter(parts)) == "beta1: none"
    with pytest.raises(UsageError, match="'momentum' is not searched"):
        groups_by_value(found, "momentum")


def test_figures_take_in_all_trials(storage: Storage, name: str) -> None:
    source = read_source(storage, name)
    assert source.conditional == {"lr", "lr.adam", "beta1"}
    parts = parameter_importances(source)
    assert isinstance(parts, dict)
    assert parts.keys() == {"dropout", "optimizer.kind", "lr", "lr.adam", "beta1"}
    assert parts["optimizer.kind"] > parts["dropout"]
    figures = draw(source)
    assert "dropout" in figures["landscape"].layout.xaxis.title.text  # every trial has it
    other = figures["landscape"].layout.yaxis.title.text
    assert figures["landscape"].layout.title.text.endswith(f", of the trials with {other}")
    assert len(figures["landscape"].data) >= 1


def test_an_objective_of_the_users_own_shows_by_its_trials_what_not_all_have(storage: Storage, tmp_path: Path) -> None:
    search(objective_study(tmp_path, trials=24, pruner="none"), storage, device="auto")
    source = read_source(storage, "own")
    assert source.conditional == {"shift"}
    figures = draw(source)
    assert figures["landscape"].layout.title.text == "own: value by x and shift, of the trials with shift"
    assert set(figures["importances"].data[0].y) == {"x", "kind", "shift"}
