"""Study files with an objective function: settings and errors."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest

from hpo.errors import StudyFileError, UsageError
from hpo.studyfile import ObjectiveStudy, parse_any_study, read_study
from hpo.studyfile.writing import study_text

TREE: dict[str, Any] = {"name": "own", "objective": "code/objective.py:objective", "search": {"trials": 4}}


def test_defaults_are_those_of_optunas_own_studies() -> None:
    study = parse_any_study(TREE, "own.toml")
    assert isinstance(study, ObjectiveStudy)
    assert study.resolved() == {
        "name": "own",
        "description": "",
        "objective": "code/objective.py:objective",
        "search": {
            "trials": 4,
            "direction": "minimize",
            "sampler": "tpe",
            "pruner": "median",
            "seed": 0,
            "retries": 0,
        },
    }
    assert parse_any_study(study.resolved(), "again") == study
    assert study.search.minimized


def test_points_repeats_and_a_baseline_are_in_the_file_where_there_are_any() -> None:
    search = {"trials": 4, "points": [{"x": None, "y": 1}, {}], "repeats": 2}
    study = parse_any_study({**TREE, "search": search, "baseline": {"x": None, "kind": "a"}}, "own.toml")
    tree = study.resolved()
    assert (tree["baseline"], tree["search"]["points"]) == ({"x": None, "kind": "a"}, search["points"])
    assert tree["search"]["repeats"] == 2
    assert parse_any_study(tree, "again") == study
    with pytest.raises(UsageError, match="a point or the baseline has None, which TOML does not have"):
        study_text(study)
    written = parse_any_study({**TREE, "search": {**search, "points": [{"x": 1.5}, {"x": 2.5}]}}, "own.toml")
    assert parse_any_study(tomllib.loads(study_text(written)), "own.toml") == written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "objective.py"}, "objective: must be FILE.py:NAME"),
        ({"objective": 3}, "objective: must be a string (got 3)"),
        (
            {"data": {"dataset": "digits"}},
            "data: cannot be used with objective: the function itself defines data, network and training",
        ),
        (
            {"network": {}},
            "network: cannot be used with objective: the function itself defines data, network and training",
        ),
        ({"baseline": 3}, "baseline: must be a table (got 3)"),
        ({"baseline": {"x": [1]}}, "baseline: must be a number, a string, true or false (got { x = [1] })"),
        ({"search": {"trials": 4, "points": {}}}, "search.points: must be a list (got {})"),
        (
            {"search": {"trials": 4, "points": [{"x": math.inf}]}},
            "search.points.0: must be a finite number (got { x = inf })",
        ),
        (
            {"search": {"trials": 4, "points": [{"x": 1, "y": 2}, {"y": 2, "x": 1}]}},
            "search.points: points 0 and 1 are the same; remove one",
        ),
        (
            {"search": {"trials": 4, "repeats": 2}},
            "search.repeats: repeats points only; give the configurations in search.points",
        ),
        (
            {"search": {"trials": 5, "points": [{"x": 1}, {"x": 2}], "repeats": 2}},
            "search.repeats: allows only repeated points: search.trials must be at most 4, the points times the "
            "repeats (got 5)",
        ),
        ({"search": {}}, "search.trials: missing"),
        ({"search": 3}, "search: must be a table (got 3)"),
        (
            {"search": {"trials": 4, "metric": "val_loss"}},
            "search.metric: not used with objective; known: trials, direction",
        ),
        ({"search": {"trials": 4, "population": 4}}, "search.population: not used with objective"),
        ({"search": {"trials": 4, "sampler": "grid"}}, "search.sampler: unknown sampler 'grid'; known: random, tpe"),
        ({"search": {"trials": 4, "direction": "max"}}, "search.direction: unknown direction 'max'"),
        ({"search": {"trials": 4, "dirction": "maximize"}}, "search.dirction: unknown key (did you mean 'direction'?)"),
        ({"objectiv": "x"}, "objectiv: unknown key (did you mean 'objective'?)"),
        ({"name": ""}, "name: must not be empty"),
        ({"name": "a\n"}, "name: must have printable characters only"),
    ],
)
def test_errors_of_objective_studies(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        parse_any_study({**TREE, **changes}, "own.toml")
    assert str(caught.value).startswith(f"own.toml: {said}")
    assert "\n" not in str(caught.value)


def test_a_file_is_read_with_changes_of_the_command(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('name = "own"\nobjective = "o.py:f"\n[search]\ntrials = 4\n')
    study = read_study(file, ["search.direction=maximize", "objective=o.py:g"], trials=7, name="other")
    assert isinstance(study, ObjectiveStudy)
    assert (study.name, study.objective, study.search.trials) == ("other", "o.py:g", 7)
    assert not study.search.minimized
    assert study.folder == tmp_path
    with pytest.raises(StudyFileError, match=r"--set search\.directio: unknown key \(did you mean 'direction'\?\)"):
        read_study(file, ["search.directio=maximize"])
    with pytest.raises(StudyFileError, match="--population: not used with objective"):
        read_study(file, population=3)
