"""Checking a study's tree: `parse_study` returns a sound study or raises one error.

There is one mechanism for fixed and searched values. The concrete models see the tree with each searched value's first
candidate (low, or the first choice) in its place; then each other candidate is put in, all else at its first value. So
a searched value obeys exactly the rules that a fixed one does, and an error names the candidate: `optimizer.lr.low`,
`network.hidden.choices.1`. Of all problems the first in the file's order is raised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from hpo.errors import nearest
from hpo.studyfile.messages import Fault, dotted, faults_of, shown, study_file_error
from hpo.studyfile.models import (
    HERE,
    SEARCHABLE,
    SECTIONS,
    StudySettings,
    for_all,
    names,
    open_tables,
    possible_values,
    unused_keys,
)
from hpo.studyfile.objective import KEY as OBJECTIVE
from hpo.studyfile.objective import ObjectiveStudy, parse_objective_study
from hpo.studyfile.searched import (
    Choices,
    Parameter,
    Range,
    candidates,
    find_searched,
    parameter_name,
    table_faults,
)
from hpo.studyfile.study import Study
from hpo.studyfile.trees import Path, first_in_order, is_under, replaced, value_at

AnyStudy = Study | ObjectiveStudy
"""A study of hpo's networks, or of the user's own objective."""

# What is wrong with a number that stands where no number can: no range is possible there.
_NOT_NUMERIC = {"list_type", "literal_error", "bool_type", "string_type"}


def parse_study(tree: Mapping[str, Any], source: str, folder: FilePath = HERE) -> Study:
    """Check a study's tree; raise StudyFileError for its first problem in the order of the file.

    Files that it refers to lie in `folder`; nothing is looked for there yet.
    """
    if not isinstance(tree, Mapping):
        raise study_file_error(source, "", f"must be a table (got {shown(tree)})")
    absent: dict[str, Any] = {section: {} for section in SECTIONS if section not in tree}  # their keys will be missing
    check = _Check(_with_kind({**tree, **absent}))
    study = check.run(source, folder)
    if study is None or check.problems:
        path = first_in_order(dict(tree), check.problems)
        raise study_file_error(source, dotted(path), check.problems[path])
    return study


def parse_any_study(tree: Mapping[str, Any], source: str, folder: FilePath = HERE) -> AnyStudy:
    """Check the tree of a study of either kind, as `parse_study` does."""
    if isinstance(tree, Mapping) and OBJECTIVE in tree:
        return parse_objective_study(tree, source, folder)
    return parse_study(tree, source, folder)


def _with_kind(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with the kind of a network that names a module and no kind."""
    network = tree["network"]
    if isinstance(network, dict) and "module" in network and "kind" not in network:
        return {**tree, "network": {"kind": "module", **network}}
    return tree


class _Check:
    """A tree under check. `problems` collects what is wrong, by path; the first found at a path stands."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.problems: dict[Path, str] = {}
        self.sound: dict[Path, dict[str, Any]] = {}  # the searched values that are well formed
        self.broken: list[Path] = []  # the others: a None stands for each, and what the models say of it is not heard

    def run(self, source: str, folder: FilePath) -> Study | None:
        self.check_tables()
        self.check_unused()
        self.check_start()
        base = self.tree
        for path in self.broken:
            base = replaced(base, path, None)
        for path, table in self.sound.items():
            base = replaced(base, path, next(iter(candidates(table).values())))
        first, faults = _validated(base)
        for path, fault in faults.items():
            if not any(is_under(path, searched) for searched in (*self.broken, *self.sound)):
                self.add(path, fault.sentence)
        found = [self.check_searched(path, table, base, faults) for path, table in self.sound.items()]
        parameters = tuple(filter(None, found))
        if first is None:
            return None
        self.check_given(("baseline",), first.baseline, parameters, base, faults)
        for index, point in enumerate(first.search.points):
            self.check_given(("search", "points", index), point, parameters, base, faults)
            for parameter in parameters:
                if parameter.name not in point:
                    self.add(("search", "points", index), f"has no value for {parameter.name}, which is searched")
        return Study(source, parameters, first, folder)

    def add(self, path: Path, problem: str) -> None:
        self.problems.setdefault(path, problem)

    def check_tables(self) -> None:
        """Tell sound searched values from broken ones, and find those that stand where nothing can be searched."""
        for path, table in find_searched(self.tree).items():
            if path in for_all():
                self.add(path, f"cannot be searched: it is the same for all trials (got {shown(table)})")
                self.broken.append(path)
                continue
            faults = table_faults(table)
            for place, problem in faults.items():
                self.add((*path, *place), problem)
            if faults:
                self.broken.append(path)
            else:
                self.sound[path] = table
        for path in names().values():
            value = value_at(self.tree, path)
            if path[0] not in SEARCHABLE and path != ("baseline",) and isinstance(value, dict):
                sections = ", ".join(f"[{section}]" for section in SEARCHABLE)
                self.add(path, f"cannot be searched: only values in {sections} can (got {shown(value)})")

    def check_unused(self) -> None:
        """Find the keys that nothing a section's table may say uses: `momentum` with none of the kinds that do."""
        for section in SEARCHABLE:
            values = self.tree[section]
            for key, mark in unused_keys(section, values).items() if isinstance(values, dict) else ():
                if key in values:
                    given = _either(possible_values(section, mark.key, values))
                    self.add((section, key), f"not used when {mark.key} = {given}, only with {_either(mark.values)}")

    def check_start(self) -> None:
        """Find the study itself among those that it starts from."""
        path: Path = ("search", "start_from")
        before = value_at(self.tree, path)
        for index, name in enumerate(before if isinstance(before, list) else ()):
            if name == value_at(self.tree, ("name",)):
                self.add((*path, index), f"is the study itself (got {shown(name)})")

    def check_searched(
        self, path: Path, table: dict[str, Any], base: dict[str, Any], base_faults: Mapping[Path, Fault]
    ) -> Parameter | None:
        """Put each candidate into the models; return the parameter, with the values as the models understood them."""
        values = []
        for place, candidate in candidates(table).items():
            settings, faults = _validated(replaced(base, path, candidate))
            for at, fault in faults.items():
                if at == path and "low" in table and fault.type in _NOT_NUMERIC:
                    self.add(path, "cannot be a range; give { choices = [...] }")
                elif is_under(at, path):
                    self.add((*path, *place, *at[len(path) :]), fault.sentence)
                elif at not in base_faults and not any(is_under(at, broken) for broken in self.broken):
                    self.add((*path, *place), f"does not go with {dotted(at)}, which {fault.sentence}")
            if settings is not None:
                values.append(value_at(settings.model_dump(), path))
        integer = "low" in table and self.check_range(path, table, base)
        if len(values) < len(candidates(table)):
            return None
        return Parameter(parameter_name(path), path, _searched(table, values, integer), integer)

    def check_given(
        self,
        path: Path,
        given: Mapping[str, Any],
        parameters: Sequence[Parameter],
        base: dict[str, Any],
        base_faults: Mapping[Path, Fault],
    ) -> None:
        """Put values that the file gives for parameters, by name, into the models, all of them together.

        Where it gives none, the first candidate stands for what a trial may have: ranges ask nothing of other keys.
        """
        known = {parameter.name: parameter.path for parameter in parameters}
        tree = base
        for name, value in given.items():
            if name in known:
                tree = replaced(tree, known[name], value)
            else:
                near = nearest(name, known) or f"; known: {', '.join(known) or 'none'}"
                self.add((*path, name), f"is not a searched parameter{near}")
        _, faults = _validated(tree)
        for at, fault in faults.items():
            owner = next((name for name in given if name in known and is_under(at, known[name])), None)
            if owner is not None:
                self.add((*path, owner, *at[len(known[owner]) :]), fault.sentence)
            elif at not in base_faults:
                self.add(path, f"does not go with {dotted(at)}, which {fault.sentence}")

    def check_range(self, path: Path, table: dict[str, Any], base: dict[str, Any]) -> bool:
        """Check what depends on a range being of whole numbers, and say whether it is: the models refuse a fraction."""
        step = table.get("step")
        if path[:2] in open_tables():  # nobody knows what the value is for: it is what its range is written as
            integer = all(isinstance(each, int) for each in (table["low"], table["high"], step or 1))
        else:
            _, faults = _validated(replaced(base, path, math.floor(table["low"]) + 0.5))
            integer = path in faults and faults[path].type == "int_type"
        if integer and isinstance(step, float):
            self.add((*path, "step"), f"must be a whole number (got {shown(step)})")
        if not integer and step is None and value_at(self.tree, ("search", "sampler")) == "grid":
            self.add(path, 'must have a step, or be { choices = [...] }, when sampler = "grid"')
        return integer


def _searched(table: Mapping[str, Any], values: list[Any], integer: bool) -> Range | Choices:
    if "choices" in table:
        return Choices(tuple(values))
    number: type[float] = int if integer else float
    low, high = map(number, values)
    step = table.get("step")
    return Range(low, high, table.get("log", False), step if step is None else number(step))


def _either(kinds: Iterable[str]) -> str:
    return " or ".join(f'"{kind}"' for kind in kinds)


def _validated(tree: dict[str, Any]) -> tuple[StudySettings | None, dict[Path, Fault]]:
    try:
        return StudySettings.model_validate(tree), {}
    except ValidationError as error:
        return None, faults_of(error, StudySettings, tree)
