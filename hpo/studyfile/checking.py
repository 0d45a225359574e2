"""Checking a study's tree: `parse_study` returns a sound study or raises one error.

There is one mechanism for fixed and searched values. The concrete models see the tree with each searched value's first
candidate (low, or the first choice) in its place; then each other candidate is put in, all else at its first value. So
a searched value obeys exactly the rules that a fixed one does, and an error names the candidate: `optimizer.lr.low`,
`network.hidden.choices.1`. Of all problems the first in the file's order is raised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from hpo.errors import nearest
from hpo.studyfile.cases import Case, Condition, assembled, is_same, place_of, setting_of, split, written
from hpo.studyfile.keys import SEARCHABLE, SECTIONS, for_all, names, open_tables, possible_values, unused_keys
from hpo.studyfile.messages import Fault, dotted, faults_of, shown, study_file_error
from hpo.studyfile.models import Named, StudySettings
from hpo.studyfile.objective import KEY as OBJECTIVE
from hpo.studyfile.objective import ObjectiveStudy, parse_objective_study
from hpo.studyfile.searched import (
    Choices,
    Parameter,
    Range,
    applicable,
    candidates,
    find_searched,
    parameter_name,
    table_faults,
)
from hpo.studyfile.study import Study
from hpo.studyfile.trees import Path, first_in_order, is_under, replaced, value_at
from hpo.studyfile.values import HERE, MOST_CHOICES

AnyStudy = Study | ObjectiveStudy
"""A study of hpo's networks, or of the user's own objective."""

# Tables of the other sections, which are no searched values.
TABLES: tuple[Path, ...] = (("baseline",), ("search", "limits"))

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


def name_problem(name: object) -> str | None:
    """Return what is wrong with the name of a study, as a sentence without its subject; None for nothing."""
    try:
        Named.model_validate({"name": name})
    except ValidationError as error:
        return faults_of(error, Named, {"name": name})[("name",)].sentence
    return None


def _with_kind(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with the kind of a network that names a module and no kind."""
    network = tree["network"]
    if isinstance(network, dict) and "module" in network and "kind" not in network:
        return {**tree, "network": {"kind": "module", **network}}
    return tree


class _Check:
    """A tree under check. `problems` collects what is wrong, by path; the first found at a path stands.

    Conditional values are checked in a situation in which they hold: with certain choices, by the keys that make them.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.problems: dict[Path, str] = {}
        self.plain, self.cases = split(tree, self.add)
        self.sound: dict[Path, dict[str, Any]] = {}  # the searched values that are well formed
        self.broken: list[Path] = []  # the others: a None stands for each, and what the models say of it is not heard
        self.in_cases: set[Path] = set()  # what the models say of cases by themselves

    def run(self, source: str, folder: FilePath) -> Study | None:
        self.check_tables()
        self.check_unused()
        self.check_start()
        for path in self.broken:
            self.put(path, None)
        for path, table in self.sound.items():
            self.put(path, next(iter(candidates(table).values())))
        first = self.validated({})
        each_case = [self.validated({(case.section, case.key): case.value}) for case in self.cases]
        self.in_cases = {at for _, faults in each_case for at in faults if at != setting_of(at)}
        for _, faults in (first, *each_case):
            for path, fault in faults.items():
                if not any(is_under(path, searched) for searched in (*self.broken, *self.sound)):
                    self.add(path, fault.sentence)
        found = [self.check_searched(path, table) for path, table in self.sound.items()]
        parameters = tuple(sorted(filter(None, found), key=lambda parameter: parameter.when is not None))
        if first[0] is None:
            return None
        self.check_given(("baseline",), first[0].baseline, parameters)
        for index, point in enumerate(first[0].search.points):
            self.check_given(("search", "points", index), point, parameters, every=True)
        if self.problems:
            return None
        settings = [found.model_dump(exclude_none=True) for found, _ in each_case if found is not None]
        cases = [
            replace(case, table={key: tree[case.section][key] for key in case.table if key in tree[case.section]})
            for case, tree in zip(self.cases, settings, strict=True)
        ]
        return Study(source, parameters, first[0], self.outside_cases(first[0]), tuple(cases), folder)

    def add(self, path: Path, problem: str) -> None:
        self.problems.setdefault(path, problem)

    def put(self, path: Path, value: Any) -> None:
        """Put a value in the place of a searched one."""
        for index, case in enumerate(self.cases):
            if is_under(path, case.path):
                self.cases[index] = replace(case, table=replaced(case.table, path[4:], value))
                return
        self.plain = replaced(self.plain, path, value)

    def assembled(self, situation: Mapping[Path, Any], path: Path = (), value: Any = None) -> dict[str, Any]:
        """Return the settings in a situation, with a value in the place of the searched one at a path."""
        tree = self.plain
        for setting, choice in situation.items():
            tree = replaced(tree, setting, choice)
        if path and path == setting_of(path):
            tree = replaced(tree, path, value)
        tree = assembled(tree, self.cases)
        return replaced(tree, setting_of(path), value) if path != setting_of(path) else tree

    def validated(
        self, situation: Mapping[Path, Any], path: Path = (), value: Any = None
    ) -> tuple[StudySettings | None, dict[Path, Fault]]:
        """Return such settings as the models understand them, and the faults by their places in the file."""
        tree = self.assembled(situation, path, value)
        settings, faults = _validated(tree)
        return settings, {place_of(at, tree, self.cases): fault for at, fault in faults.items()}

    def condition(self, path: Path) -> tuple[Case, list[Any]] | None:
        """Return what the value at a path depends on: the case that gives it, or one that would give another.

        With the case come the choices with which the value holds; None where it holds with all.
        """
        setting = setting_of(path)
        giving = [case for case in self.cases if case.gives(setting)]
        if path != setting:
            return next((case, [case.value]) for case in giving if is_under(path, case.path))
        if not giving:
            return None
        choices = self.tree[giving[0].section][giving[0].key]["choices"]
        return giving[0], [each for each in choices if not any(is_same(each, case.value) for case in giving)]

    def situation(self, path: Path) -> dict[Path, Any]:
        """Return the situation in which the value at a path holds, {} where it always does."""
        found = self.condition(path)
        return {(found[0].section, found[0].key): found[1][0]} if found is not None and found[1] else {}

    def outside_cases(self, first: StudySettings) -> dict[str, Any]:
        """Return the settings as a tree, with the keys that cases give as they are where no case does."""
        tree = first.model_dump(exclude_none=True)
        for section in {case.section for case in self.cases}:
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

    def check_tables(self) -> None:
        """Tell sound searched values from broken ones, and find those that stand where nothing can be searched."""
        found = find_searched(self.plain)
        for case in self.cases:
            inside = find_searched({case.section: case.table})
            found |= {(*case.path, *path[1:]): table for path, table in inside.items()}
        for path, table in found.items():
            if path in for_all():
                self.add(path, f"cannot be searched: it is the same for all trials (got {shown(table)})")
                self.broken.append(path)
                continue
            faults = (
                table_faults(table)
                if len(self.sound) < MOST_CHOICES
                else {(): f"is one more than {MOST_CHOICES:,} searched values"}
            )
            for place, problem in faults.items():
                self.add((*path, *place), problem)
            if faults:
                self.broken.append(path)
            else:
                self.sound[path] = table
        for path in names().values():
            value = value_at(self.tree, path)
            if path[0] not in SEARCHABLE and path not in TABLES and isinstance(value, dict):
                sections = ", ".join(f"[{section}]" for section in SEARCHABLE)
                self.add(path, f"cannot be searched: only values in {sections} can (got {shown(value)})")

    def check_unused(self) -> None:
        """Find the keys that nothing a section's table may say uses: `momentum` with none of the kinds that do.

        And those of a section that every choice of another key gives otherwise.
        """
        for section in SEARCHABLE:
            values = self.plain[section]
            for key in values if isinstance(values, dict) else ():
                self.check_used(section, key, values, (section, key))
                found = self.condition((section, key))
                if found is not None and not found[1]:
                    self.add((section, key), f"is never used: every choice of {section}.{found[0].key} has its own")
        for case in self.cases:
            values = {**self.plain[case.section], case.key: case.value, **case.table}
            for key in case.table:
                self.check_used(case.section, key, values, (*case.path, key))

    def check_used(self, section: str, key: str, values: Mapping[str, Any], path: Path) -> None:
        if mark := unused_keys(section, values).get(key):
            given = _either(possible_values(section, mark.key, values))
            self.add(path, f"not used when {mark.key} = {given}, only with {_either(mark.values)}")

    def check_start(self) -> None:
        """Find the study itself among those that it starts from."""
        path: Path = ("search", "start_from")
        before = value_at(self.tree, path)
        for index, name in enumerate(before if isinstance(before, list) else ()):
            if name == value_at(self.tree, ("name",)):
                self.add((*path, index), f"is the study itself (got {shown(name)})")

    def check_searched(self, path: Path, table: dict[str, Any]) -> Parameter | None:
        """Put each candidate into the models; return the parameter, with the values as the models understood them."""
        values, situation, setting = [], self.situation(path), setting_of(path)
        known = {*self.validated(situation)[1], *self.in_cases}
        for place, candidate in candidates(table).items():
            settings, faults = self.validated(situation, path, candidate)
            for at, fault in faults.items():
                if at == path and "low" in table and fault.type in _NOT_NUMERIC:
                    self.add(path, "cannot be a range; give { choices = [...] }")
                elif is_under(at, path):
                    self.add((*path, *place, *at[len(path) :]), fault.sentence)
                elif at not in known and not any(is_under(at, each) for each in (*self.broken, *self.problems)):
                    relation = "needs" if fault.type == "missing" else "does not go with"
                    why = "" if fault.type == "missing" else f", which {fault.sentence}"
                    self.add((*path, *place), f"{relation} {dotted(at)}{why}")
            if settings is not None:
                values.append(value_at(settings.model_dump(), setting))
        integer = "low" in table and self.check_range(path, table)
        if len(values) < len(candidates(table)):
            return None
        searched = _searched(table, values, integer)
        for place, problem in searched.faults() if isinstance(searched, Choices) else ():
            self.add((*path, *place), problem)
        return self.parameter(path, searched, integer)

    def parameter(self, path: Path, searched: Range | Choices, integer: bool) -> Parameter:
        """Return the parameter; where a setting is searched in several places, each is named after its choice."""
        name, found = parameter_name(setting_of(path)), self.condition(path)
        if found is None:
            return Parameter(name, path, searched, integer)
        case = found[0]
        giving = parameter_name((case.section, case.key))
        if path == setting_of(path):
            others = tuple(each.value for each in self.cases if each.gives(path))
            return Parameter(name, path, searched, integer, Condition(giving, others, but=True))
        places = [place for place in self.sound if setting_of(place) == setting_of(path)]
        own = name if len(places) == 1 else f"{name}.{written(case.value)}"
        return Parameter(own, path, searched, integer, Condition(giving, (case.value,)))

    def check_given(
        self, path: Path, given: Mapping[str, Any], parameters: Sequence[Parameter], every: bool = False
    ) -> None:
        """Put values that the file gives for parameters, by name, into the models, all of them together.

        Where it gives none, the first candidate stands for what a trial may have: ranges ask nothing of other keys.
        With `every`, all parameters that apply have to be given.
        """
        known = {parameter.name: parameter for parameter in parameters}
        firsts = {each.name: each.searched.choices[0] for each in parameters if isinstance(each.searched, Choices)}
        applying = applicable(parameters, {**firsts, **given})
        for name in given:
            if name not in known:
                near = nearest(name, known) or f"; known: {', '.join(known) or 'none'}"
                self.add((*path, name), f"is not a searched parameter{near}")
            elif known[name] not in applying and (when := known[name].when) is not None:
                self.add((*path, name), f"is searched only where {when.words()}")
        values = [(each, given[each.name]) for each in applying if each.name in given]
        tree = replaced(self.plain, ("search", "points"), [])  # whose other points are checked for themselves
        for parameter, value in values:
            if parameter.path == parameter.setting:
                tree = replaced(tree, parameter.path, value)
        tree = assembled(tree, self.cases)
        for parameter, value in values:
            if parameter.path != parameter.setting:
                tree = replaced(tree, parameter.setting, value)
        for setting, fault in _validated(tree)[1].items():
            at = place_of(setting, tree, self.cases)
            owner = next((each for each, _ in values if is_under(at, each.path)), None)
            if owner is not None:
                self.add((*path, owner.name, *at[len(owner.path) :]), fault.sentence)
            elif at not in self.in_cases:
                self.add(path, f"does not go with {dotted(at)}, which {fault.sentence}")
        for parameter in applying if every else ():
            if parameter.name not in given:
                self.add(path, f"has no value for {parameter.name}, which is searched")

    def check_range(self, path: Path, table: dict[str, Any]) -> bool:
        """Check what depends on a range being of whole numbers, and say whether it is: the models refuse a fraction."""
        step = table.get("step")
        if (
            setting_of(path)[:2] in open_tables()
        ):  # nobody knows what the value is for: it is what its range is written as
            integer = all(isinstance(each, int) for each in (table["low"], table["high"], step or 1))
        else:
            _, faults = self.validated(self.situation(path), path, math.floor(table["low"]) + 0.5)
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
