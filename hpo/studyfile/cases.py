"""Cases: what a section says only where one of its searched keys has a certain value, `[SECTION.when.KEY.VALUE]`.

KEY is searched with `{ choices = [...] }` in the section's own table, and VALUE is one of them as its TOML key: a word,
or its JSON, in which 0 is 0.0. What a case gives stands in the place of what the section gives. Promises: at most one
case gives a key to a trial, and no case decides whether another holds. Knows nothing of the models but their sections,
keys and choices.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpo.errors import nearest
from hpo.studyfile.keys import SEARCHABLE, SECTIONS, for_all, understood
from hpo.studyfile.messages import shown, unknown_key
from hpo.studyfile.trees import MISSING, Path, replaced, value_at

WHEN = "when"


@dataclass(frozen=True)
class Case:
    """`table` is what `section` says where its `key` is `value`, which the file writes as `text`; searched values in it
    as they are told apart."""

    section: str
    key: str
    value: Any
    text: str
    table: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Where a study file has it."""
        return (self.section, WHEN, self.key, self.text)

    def holds(self, tree: Mapping[str, Any]) -> bool:
        """Return whether it holds in a tree of settings."""
        return is_same(value_at(tree, (self.section, self.key)), self.value)

    def gives(self, setting: Path) -> bool:
        """Return whether it gives this setting, or what it is a part of."""
        return len(setting) > 1 and setting[0] == self.section and setting[1] in self.table


@dataclass(frozen=True)
class Condition:
    """Where a parameter is searched: where another, by name, has one of these values; `but` where it has none."""

    parameter: str
    values: tuple[Any, ...]
    but: bool = False

    def holds(self, value: Any) -> bool:
        """Return whether it holds where the other has this value, as a study file means it or as it is stored."""
        return any(is_same(value, each) for each in self.values) != self.but

    def words(self) -> str:
        """Return `optimizer.kind is "adam"`."""
        return f"{self.parameter} is {'not ' * self.but}{' or '.join(map(json.dumps, self.values))}"


def written(value: Any) -> str:
    """Return a choice as the key of its table: `adam`, `true`, `[100, 100]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def meant(text: str, choices: Sequence[Any]) -> Any:
    """Return the choice that the key of a table means, or MISSING: the word, or what is equal to its JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    same = (each for each in choices if each == value and isinstance(each, bool) == isinstance(value, bool))
    return text if text in choices else next(same, MISSING)


def is_same(value: Any, choice: Any) -> bool:
    """Return whether a value, as a study file means it or as Optuna stores it, is this choice."""
    return bool(value == choice) or (isinstance(choice, list) and bool(value == json.dumps(choice)))


def setting_of(path: Path) -> Path:
    """Return the setting that a path of a study file is about: that of `optimizer.when.kind.adam.lr` is the lr."""
    return (path[0], *path[4:]) if path[1:2] == (WHEN,) else path


def split(tree: Mapping[str, Any], add: Callable[[Path, str], None]) -> tuple[dict[str, Any], list[Case]]:
    """Return a study's tree without its cases, and the sound ones in the models' order; `add` is told of the others."""
    plain, cases = dict(tree), list[Case]()
    for section in SEARCHABLE:
        table = tree[section]
        if isinstance(table, dict) and WHEN in table:
            plain[section] = {key: value for key, value in table.items() if key != WHEN}
            found = list(_cases(section, plain[section], table[WHEN], add))
            cases += sorted(found, key=lambda case: _place(case, plain[section]))
    return plain, _without_conflicts(cases, add)


def _place(case: Case, table: Mapping[str, Any]) -> tuple[int, int]:
    choices = _choices(case.section, case.key, table)
    return list(SECTIONS[case.section].model_fields).index(case.key), choices.index(case.value)


def _choices(section: str, key: str, table: Mapping[str, Any]) -> list[Any]:
    """Return the choices of a key that something may depend on, as its model understands them."""
    choices = value_at(table, (key, "choices"))
    searched = isinstance(choices, list) and (section, key) not in for_all()
    return [understood(section, key, choice) for choice in choices] if searched else []


def _cases(section: str, table: Mapping[str, Any], when: Any, add: Callable[[Path, str], None]) -> Iterator[Case]:
    def is_table(path: Path, value: Any) -> bool:
        if not isinstance(value, dict):
            add(path, f"must be a table (got {shown(value)})")
        return isinstance(value, dict)

    fields = SECTIONS[section].model_fields
    for key, tables in when.items() if is_table((section, WHEN), when) else ():
        path: Path = (section, WHEN, key)
        choices = _choices(section, key, table) if key in fields else []
        if key not in fields:
            add(path, unknown_key(key, fields))
        elif not choices:
            add(path, f"nothing can depend on {section}.{key}: it is not searched as {{ choices = [...] }}")
        elif is_table(path, tables):
            first = dict[str, str]()  # choice -> the key that names it
            for text, given in tables.items():
                value = meant(text, choices)
                if value is MISSING:
                    known = [written(choice) for choice in choices]
                    near = nearest(text, known) or f"; known: {', '.join(known)}"
                    add((*path, text), f"is not a choice of {section}.{key}{near}")
                elif first.setdefault(written(value), text) != text:
                    add((*path, text), f"is the same as {first[written(value)]}")
                elif is_table((*path, text), given):
                    yield Case(section, key, value, text, given)


def _without_conflicts(cases: Sequence[Case], add: Callable[[Path, str], None]) -> list[Case]:
    """Return the cases without the keys that cannot depend on anything, or depend on two keys."""
    sound = []
    for case in cases:
        table = dict(case.table)
        for key in case.table:
            others = [each for each in cases if each.section == case.section and each.key != case.key]
            if any((each.section, each.key) == (case.section, key) for each in cases):
                problem = f"cannot depend on {case.key}: what else holds depends on it"
            elif other := next((each for each in others if key in each.table), None):
                problem = f"cannot depend on {case.key}: it depends on {other.key} already"
            elif (case.section, key) in for_all():
                problem = f"cannot depend on {case.key}: it is the same for all trials"
            else:
                continue
            add((*case.path, key), problem)
            del table[key]
        sound.append(replace(case, table=table))
    return sound


def assembled(tree: dict[str, Any], cases: Sequence[Case]) -> dict[str, Any]:
    """Return a tree of settings with what the cases give that hold in it."""
    for case in cases:
        if case.holds(tree):
            for key, value in case.table.items():
                tree = replaced(tree, (case.section, key), value)
    return tree


def place_of(setting: Path, tree: Mapping[str, Any], cases: Sequence[Case]) -> Path:
    """Return where a study file says what stands at a setting of an assembled tree."""
    giving = [case for case in cases if case.gives(setting) and case.holds(tree)]
    return (*giving[0].path, *setting[1:]) if giving else setting


def with_cases(tree: dict[str, Any], cases: Sequence[Case]) -> dict[str, Any]:
    """Return a study's tree with its cases in their places."""
    whole = {section: dict(table) if isinstance(table, dict) else table for section, table in tree.items()}
    for case in cases:
        whole[case.section].setdefault(WHEN, {}).setdefault(case.key, {})[case.text] = dict(case.table)
    return whole
