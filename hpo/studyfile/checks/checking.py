"""Validate the tree of a study file: return a study, or raise one error.

Fixed and searched values are checked alike. The models validate the tree with the first candidate of each searched
value (low, or the first choice) in its place. Then they validate each other candidate, with all other values at their
first. So searched and fixed values obey the same rules, and an error names the candidate: `optimizer.lr.low`,
`network.hidden.choices.1`. Of several problems, the first in the order of the file is raised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, Literal

from pydantic import ValidationError

from hpo.errors import nearest
from hpo.studyfile.checks.section_rules import settings_problems, study_problems, tree_problems
from hpo.studyfile.conditions import (
    Condition,
    ConditionalTable,
    choice_key,
    equals_choice,
    file_path,
    setting_path,
    split_conditional,
    with_values,
)
from hpo.studyfile.data_settings import DEFAULT_VALIDATION
from hpo.studyfile.keys import (
    SEARCHABLE,
    SECTIONS,
    open_tables,
    possible_words,
    setting_paths,
    unsearchable_keys,
    unused_keys,
)
from hpo.studyfile.messages import Problem, dotted_key, format_value, study_file_error, validation_problems
from hpo.studyfile.metrics import DEFAULT_METRICS
from hpo.studyfile.models import NamedSettings, StudySettings
from hpo.studyfile.objective import KEY as OBJECTIVE
from hpo.studyfile.objective import ObjectiveStudy, parse_objective_study
from hpo.studyfile.searched import (
    NO_NUMBER,
    Choices,
    Parameter,
    Range,
    applicable_parameters,
    candidates,
    find_searched,
    parameter_name,
    searched_from,
    table_problems,
)
from hpo.studyfile.study import Study
from hpo.studyfile.trees import Path, first_path, is_under, replaced, value_at
from hpo.studyfile.values import CURRENT_FOLDER, MAX_CHOICES

AnyStudy = Study | ObjectiveStudy
"""A network study or an objective study."""

# Tables outside the searchable sections that are not searched values.
_TABLES: tuple[Path, ...] = (("baseline",), ("search", "limits"))


def parse_study(tree: Mapping[str, Any], source: str, folder: FilePath = CURRENT_FOLDER) -> Study:
    """Return the study of a tree; raise StudyFileError for its first problem in the order of the file.

    `folder` has the files that it refers to, which are not opened.
    """
    if not isinstance(tree, Mapping):
        raise study_file_error(source, "", f"must be a table (got {format_value(tree)})")
    # The keys of an absent section are reported as missing.
    absent: dict[str, Any] = {section: {} for section in SECTIONS if section not in tree}
    check = _Check(_with_former_defaults(_with_kind({**tree, **absent})))
    study = check.run(source, folder)
    if study is None or check.problems:
        path = first_path(dict(tree), check.problems)
        raise study_file_error(source, dotted_key(path), check.problems[path])
    return study


def parse_any_study(tree: Mapping[str, Any], source: str, folder: FilePath = CURRENT_FOLDER) -> AnyStudy:
    """Return the study of a tree, a network study or an objective study, as `parse_study` does."""
    if isinstance(tree, Mapping) and OBJECTIVE in tree:
        return parse_objective_study(tree, source, folder)
    return parse_study(tree, source, folder)


def name_problem(name: object) -> str | None:
    """Return the problem with a study's name, such as `must not be empty`; None for a valid name."""
    try:
        NamedSettings.model_validate({"name": name})
    except ValidationError as error:
        return validation_problems(error, NamedSettings, {"name": name})[("name",)].text
    return None


def _with_kind(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with kind = "module" for a network with a module and no kind, and with the task's metric."""
    task, search = tree["task"], tree["search"]
    kind = task.get("kind") if isinstance(task, dict) else None
    if isinstance(search, dict) and "metric" not in search and isinstance(kind, str) and kind in DEFAULT_METRICS:
        tree = {**tree, "search": {**search, "metric": DEFAULT_METRICS[kind]}}
    network = tree["network"]
    if isinstance(network, dict) and "module" in network and "kind" not in network:
        return {**tree, "network": {"kind": "module", **network}}
    return tree


FORMER_DEFAULTS: Mapping[tuple[Literal["data", "search"], str], Any] = {
    ("search", "pruner"): "none",
    ("data", "stratify"): False,
    ("data", "validation"): DEFAULT_VALIDATION,
}
"""The defaults, by section and key, of the time before "auto"."""

_ALWAYS_RESOLVED: dict[str, set[str]] = {
    "data": {"validation", "split_seed"},
    "search": {"sampler", "pruner", "metric", "score", "population", "seed", "repeat"},
}
"""Keys with a default that every resolved file has had since the first version."""


def _with_former_defaults(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree of a resolved file with the former defaults of keys that it lacks, such as `stratify = false`.

    A resolved file has every key, so one without a key is of the time before it: its study keeps the split of then.
    """
    tables = {section: tree[section] for section in _ALWAYS_RESOLVED}
    if "description" not in tree or not all(isinstance(table, dict) for table in tables.values()):
        return tree
    if not all(keys <= tables[section].keys() for section, keys in _ALWAYS_RESOLVED.items()):
        return tree
    for (section, key), former in FORMER_DEFAULTS.items():
        tables[section] = {key: former, **tables[section]}
    return {**tree, **tables}


class _Check:
    """The check of one tree. `problems` collects problems by path; the first one found at a path stays.

    Conditional values are checked in a situation in which they apply: a choice for each deciding key, by path.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.problems: dict[Path, str] = {}
        self.unconditional, self.tables = split_conditional(tree, self.add)
        self.valid: dict[Path, dict[str, Any]] = {}  # the well-formed searched values
        self.invalid: list[Path] = []  # the others; None replaces each, and model errors about it are ignored
        self.in_tables: set[Path] = set()  # paths of model errors about conditional tables themselves

    def run(self, source: str, folder: FilePath) -> Study | None:
        """Run all checks; return the study, or None after problems."""
        self.check_searched_tables()
        self.check_unused()
        self.add_all(tree_problems(self.tree, folder))
        for path in self.invalid:
            self.put(path, None)
        for path, table in self.valid.items():
            self.put(path, next(iter(candidates(table).values())))
        first = self.validated({})
        each_table = [self.validated({(table.section, table.key): table.value}) for table in self.tables]
        self.in_tables = {at for _, problems in each_table for at in problems if at != setting_path(at)}
        for _, problems in (first, *each_table):
            for path, problem in problems.items():
                if not any(is_under(path, searched) for searched in (*self.invalid, *self.valid)):
                    self.add(path, problem.text)
        found = [self.check_candidates(path, table) for path, table in self.valid.items()]
        parameters = tuple(sorted(filter(None, found), key=lambda parameter: parameter.when is not None))
        if first[0] is None:
            return None
        self.check_params(("baseline",), first[0].baseline, parameters)
        for index, point in enumerate(first[0].search.points):
            self.check_params(("search", "points", index), point, parameters, complete=True)
        self.add_all(settings_problems(first[0]))
        if self.problems:
            return None
        settings = [found.model_dump(exclude_none=True) for found, _ in each_table if found is not None]
        tables = [
            replace(table, table={key: tree[table.section][key] for key in table.table if key in tree[table.section]})
            for table, tree in zip(self.tables, settings, strict=True)
        ]
        study = Study(source, parameters, first[0], self.outside_tables(first[0]), tuple(tables), folder)
        self.add_all(study_problems(study))
        return study

    def add(self, path: Path, problem: str) -> None:
        """Add a problem unless there is one at the path."""
        self.problems.setdefault(path, problem)

    def add_all(self, problems: Iterable[tuple[Path, str]]) -> None:
        """Add each problem at a path without one."""
        for path, problem in problems:
            self.add(path, problem)

    def put(self, path: Path, value: Any) -> None:
        """Replace the searched value at a path."""
        for index, table in enumerate(self.tables):
            if is_under(path, table.path):
                self.tables[index] = replace(table, table=replaced(table.table, path[4:], value))
                return
        self.unconditional = replaced(self.unconditional, path, value)

    def validated(
        self, situation: Mapping[Path, Any], path: Path = (), value: Any = None
    ) -> tuple[StudySettings | None, dict[Path, Problem]]:
        """Return the validated settings in a situation, and the problems by path in the file.

        At `path`, if given, `value` is in place of the searched value.
        """
        tree = with_values(self.unconditional, self.tables, {**situation, **({path: value} if path else {})})
        settings, problems = _validated(tree)
        return settings, {file_path(at, tree, self.tables): problem for at, problem in problems.items()}

    def condition(self, path: Path) -> tuple[ConditionalTable, list[Any]] | None:
        """Return the condition of the value at a path; None if it always applies.

        That is the conditional table that has the value or replaces it, and the choices with which the value applies.
        """
        setting = setting_path(path)
        defining = [table for table in self.tables if table.defines(setting)]
        if path != setting:
            return next((table, [table.value]) for table in defining if is_under(path, table.path))
        if not defining:
            return None
        choices = self.tree[defining[0].section][defining[0].key]["choices"]
        return defining[0], [
            choice for choice in choices if not any(equals_choice(choice, table.value) for table in defining)
        ]

    def situation(self, path: Path) -> dict[Path, Any]:
        """Return a situation in which the value at a path applies; {} if it always does."""
        found = self.condition(path)
        return {(found[0].section, found[0].key): found[1][0]} if found is not None and found[1] else {}

    def outside_tables(self, first: StudySettings) -> dict[str, Any]:
        """Return the settings as a tree, in which conditional keys have their values outside conditional tables."""
        tree = first.model_dump(exclude_none=True)
        for section in {table.section for table in self.tables}:
            values = dict(tree[section])
            for key in SECTIONS[section].model_fields:
                found = self.condition((section, key))
                settings = None if found is None else self.validated(self.situation((section, key)))[0]
                if found is not None and (settings is None or not found[1]):
                    values.pop(key, None)
                elif settings is not None:
                    values[key] = getattr(getattr(settings, section), key)
            tree[section] = {key: value for key, value in values.items() if value is not None}
        return tree

    def check_searched_tables(self) -> None:
        """Separate valid searched values from invalid ones, and find those where nothing can be searched."""
        found = find_searched(self.unconditional)
        for table in self.tables:
            inner = find_searched({table.section: table.table})
            found |= {(*table.path, *path[1:]): searched for path, searched in inner.items()}
        for path, searched in found.items():
            if path in unsearchable_keys():
                problems: dict[Path, str] = {
                    (): f"cannot be searched: it is the same for all trials (got {format_value(searched)})"
                }
            elif len(self.valid) >= MAX_CHOICES:
                problems = {(): f"too many searched values: the maximum is {MAX_CHOICES:,}"}
            else:
                problems = table_problems(searched)
            for at, problem in problems.items():
                self.add((*path, *at), problem)
            if problems:
                self.invalid.append(path)
            else:
                self.valid[path] = searched
        for path in setting_paths().values():
            value = value_at(self.tree, path)
            if path[0] not in SEARCHABLE and path not in _TABLES and isinstance(value, dict):
                sections = ", ".join(f"[{section}]" for section in SEARCHABLE)
                self.add(path, f"cannot be searched: only values in {sections} can (got {format_value(value)})")

    def check_unused(self) -> None:
        """Find keys that are unused with all possible values of their table, such as `momentum` with adam.

        And find unconditional values that conditional tables replace for every choice.
        """
        for section in SEARCHABLE:
            values = self.unconditional[section]
            for key in values if isinstance(values, dict) else ():
                self.check_used(section, key, values, (section, key))
                found = self.condition((section, key))
                if found is not None and not found[1]:
                    other = f"{section}.{found[0].key}"
                    self.add((section, key), f"is never used: every choice of {other} has its own {key}")
        for table in self.tables:
            values = {**self.unconditional[table.section], table.key: table.value, **table.table}
            for key in table.table:
                self.check_used(table.section, key, values, (*table.path, key))

    def check_used(self, section: str, key: str, values: Mapping[str, Any], path: Path) -> None:
        """Find a key that is unused with these values."""
        if mark := unused_keys(section, values).get(key):
            words = _alternatives(possible_words(section, mark.key, values))
            self.add(path, f"not used when {mark.key} = {words}, only with {_alternatives(mark.values)}")

    def check_candidates(self, path: Path, table: dict[str, Any]) -> Parameter | None:
        """Validate each candidate of a searched value; return the parameter, with the values that the models return."""
        values, situation, setting = [], self.situation(path), setting_path(path)
        known = {*self.validated(situation)[1], *self.in_tables}
        for place, candidate in candidates(table).items():
            settings, problems = self.validated(situation, path, candidate)
            for at, problem in problems.items():
                if at == path and "low" in table and problem.type in NO_NUMBER:
                    self.add(path, "cannot be a range; use { choices = [...] }")
                elif is_under(at, path):
                    self.add((*path, *place, *at[len(path) :]), problem.text)
                elif at not in known and not any(is_under(at, each) for each in (*self.invalid, *self.problems)):
                    if problem.type == "missing":
                        self.add((*path, *place), f"needs {dotted_key(at)}")
                    else:
                        self.add((*path, *place), f"conflicts with {dotted_key(at)}, which {problem.text}")
            if settings is not None:
                values.append(value_at(settings.model_dump(), setting))
        integer = "low" in table and self.check_range(path, table)
        if len(values) < len(candidates(table)):
            return None
        searched = searched_from(table, values, integer)
        for place, text in searched.problems() if isinstance(searched, Choices) else ():
            self.add((*path, *place), text)
        return self.parameter(path, searched, integer)

    def parameter(self, path: Path, searched: Range | Choices, integer: bool) -> Parameter:
        """Return the parameter; if a setting is searched for several choices, its names end with the choice."""
        name, found = parameter_name(setting_path(path)), self.condition(path)
        if found is None:
            return Parameter(name, path, searched, integer)
        table = found[0]
        deciding = parameter_name((table.section, table.key))
        if path == setting_path(path):
            others = tuple(each.value for each in self.tables if each.defines(path))
            return Parameter(name, path, searched, integer, Condition(deciding, others, negated=True))
        paths = [each for each in self.valid if setting_path(each) == setting_path(path)]
        unique = name if len(paths) == 1 else f"{name}.{choice_key(table.value)}"
        return Parameter(unique, path, searched, integer, Condition(deciding, (table.value,)))

    def check_params(
        self, path: Path, params: Mapping[str, Any], parameters: Sequence[Parameter], complete: bool = False
    ) -> None:
        """Validate a baseline or a point: values by parameter name, all of them together.

        A parameter without a value has its first candidate; other keys do not depend on values in a range. With
        `complete`, every applicable parameter must have a value.
        """
        known = {parameter.name: parameter for parameter in parameters}
        firsts = {each.name: each.searched.choices[0] for each in parameters if isinstance(each.searched, Choices)}
        applicable = applicable_parameters(parameters, {**firsts, **params})
        for name in params:
            if name not in known:
                near = nearest(name, known) or f"; known: {', '.join(known) or 'none'}"
                self.add((*path, name), f"is not a searched parameter{near}")
            elif known[name] not in applicable and (when := known[name].when) is not None:
                self.add((*path, name), f"is searched only where {when.text()}")
        given = [each for each in applicable if each.name in params]
        tree = replaced(self.unconditional, ("search", "points"), [])  # other points are checked separately
        tree = with_values(tree, self.tables, {each.path: params[each.name] for each in given})
        for setting, problem in _validated(tree)[1].items():
            at = file_path(setting, tree, self.tables)
            owner = next((each for each in given if is_under(at, each.path)), None)
            if owner is not None:
                self.add((*path, owner.name, *at[len(owner.path) :]), problem.text)
            elif at not in self.in_tables:
                self.add(path, f"conflicts with {dotted_key(at)}, which {problem.text}")
        for parameter in applicable if complete else ():
            if parameter.name not in params:
                self.add(path, f"has no value for the searched parameter {parameter.name}")

    def check_range(self, path: Path, table: dict[str, Any]) -> bool:
        """Check the step of a range; return whether its values are whole numbers, because the model refuses others."""
        step = table.get("step")
        if setting_path(path)[:2] in open_tables():  # without a model, the numbers of the range decide
            integer = all(isinstance(each, int) for each in (table["low"], table["high"], step or 1))
        else:
            _, problems = self.validated(self.situation(path), path, math.floor(table["low"]) + 0.5)
            integer = path in problems and problems[path].type == "int_type"
        if integer and isinstance(step, float):
            self.add((*path, "step"), f"must be a whole number (got {format_value(step)})")
        if not integer and step is None and value_at(self.tree, ("search", "sampler")) == "grid":
            self.add(path, 'must have a step, or be { choices = [...] }, when sampler = "grid"')
        return integer


def _alternatives(words: Iterable[str]) -> str:
    return " or ".join(f'"{word}"' for word in words)


def _validated(tree: dict[str, Any]) -> tuple[StudySettings | None, dict[Path, Problem]]:
    try:
        return StudySettings.model_validate(tree), {}
    except ValidationError as error:
        return None, validation_problems(error, StudySettings, tree)
