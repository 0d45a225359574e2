"""Study files with an objective function: settings and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpo.errors import StudyFileError
from hpo.studyfile import ObjectiveStudy, parse_any_study, read_study

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
        (
            {"baseline": {}},
            "baseline: cannot be used with objective: the function itself defines data, network and training",
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
