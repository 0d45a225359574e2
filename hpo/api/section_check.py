"""Check one section of a study by itself, as Python code makes it: each value against the type and limits of its key.

Rules between keys are left to the check of the whole study, because a section may be a part of `when`. `[data]`,
`[task]` and `[preprocess]`, which cannot be one, are checked completely.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from hpo.studyfile.conditions import WHEN
from hpo.studyfile.keys import SEARCHABLE, SECTIONS, open_tables, sections, unsearchable_keys
from hpo.studyfile.messages import Problem, dotted_key, format_value, study_file_error, validation_problems
from hpo.studyfile.objective import ObjectiveStudySettings
from hpo.studyfile.searched import NO_NUMBER, candidates, table_problems
from hpo.studyfile.trees import Path, is_under, replaced
from hpo.studyfile.values import Settings

Models = Sequence[type[Settings]]


def check_section(section: str, tree: Mapping[str, Any], source: str) -> None:
    """Raise StudyFileError for the first invalid value of a section, in the order of its keys."""
    models = [models[section] for models in (SECTIONS, sections(ObjectiveStudySettings)) if section in models]
    by_key = section in (*SEARCHABLE, "search")
    for each in [{key: tree[key]} for key in tree if key != WHEN] if by_key else [dict(tree)]:
        if found := _first_problem(section, each, models, by_key):
            raise study_file_error(source, dotted_key(found[0]), found[1])


def _first_problem(section: str, tree: dict[str, Any], models: Models, by_key: bool) -> tuple[Path, str] | None:
    """Return the path and text of the first problem that all models have with a tree, `by_key` only with its keys."""
    searched = _searched(section, tree) if section in SEARCHABLE else {}
    first: Any = tree
    for path, table in searched.items():
        if (section, path[0]) in unsearchable_keys():
            return path, f"cannot be searched: it is the same for all trials (got {format_value(table)})"
        for below, text in table_problems(table).items():
            return (*path, *below), text
        first = replaced(first, path, next(iter(candidates(table).values())))
    attempts: list[tuple[Path, Path, Any]] = [
        (path, place, replaced(first, path, candidate))
        for path, table in searched.items()
        for place, candidate in candidates(table).items()
    ]
    for path, place, attempt in attempts or [((), (), tree)]:
        found = [_problems(model, attempt) for model in models]
        if by_key:
            found = [{at: each for at, each in problems.items() if at[0] in tree} for problems in found]
        if not all(found):
            continue
        at, problem = max((next(iter(each.items())) for each in found), key=lambda each: len(each[0]))
        if path and is_under(at, path):
            if "low" in searched[path] and problem.type in NO_NUMBER:
                return path, "cannot be a range; use { choices = [...] }"
            return (*path, *place, *at[len(path) :]), problem.text
        if not any(is_under(at, each) for each in searched):  # the problem of another candidate comes later
            return at, problem.text
    return None


def _searched(section: str, tree: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Return the searched values of a section by path."""
    found: dict[Path, dict[str, Any]] = {}
    for key, value in tree.items():
        inner: dict[Path, Any] = {(key,): value}
        if isinstance(value, list):
            inner = {(key, index): each for index, each in enumerate(value)}
        elif (section, key) in open_tables() and isinstance(value, dict):
            inner = {(key, name): each for name, each in value.items()}
        found |= {path: each for path, each in inner.items() if isinstance(each, dict)}
    return found


def _problems(model: type[Settings], tree: dict[str, Any]) -> dict[Path, Problem]:
    """Return the problems that a model has with a tree."""
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return validation_problems(error, model, tree)
    return {}
