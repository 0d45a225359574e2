"""Conditional parameters: settings for one value of a searched key, `[SECTION.when.KEY.VALUE]`.

KEY is searched as `{ choices = [...] }` in the section's own table. VALUE is one of the choices as a TOML key: a word,
or the choice as JSON, in which 0 equals 0.0. A value in a conditional table replaces the section's value. At most one
conditional table defines a key for a trial, and no conditional table decides whether another applies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpo.errors import nearest
from hpo.studyfile.keys import SEARCHABLE, SECTIONS, coerce, unsearchable_keys
from hpo.studyfile.messages import format_value, unknown_key_text
from hpo.studyfile.trees import MISSING, Path, replaced, value_at

WHEN = "when"

AddProblem = Callable[[Path, str], None]


@dataclass(frozen=True)
class ConditionalTable:
    """The values of `section` where its `key` has this `value`, which the study file spells `text`."""

    section: str
    key: str
    value: Any
    text: str
    table: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The table's path in the study file."""
        return (self.section, WHEN, self.key, self.text)

    def applies_to(self, tree: Mapping[str, Any]) -> bool:
        """Return whether the table applies in a tree of settings."""
        return equals_choice(value_at(tree, (self.section, self.key)), self.value)

    def defines(self, setting: Path) -> bool:
        """Return whether the table defines this setting or the value that contains it."""
        return len(setting) > 1 and setting[0] == self.section and setting[1] in self.table


@dataclass(frozen=True)
class Condition:
    """The condition of a parameter: another parameter has one of these values, or, if `negated`, none of them."""

    parameter: str
    values: tuple[Any, ...]
    negated: bool = False

    def is_met(self, value: Any) -> bool:
        """Return whether the condition is met with this value of the other parameter, decoded or as stored."""
        return any(equals_choice(value, each) for each in self.values) != self.negated

    def text(self) -> str:
        """Return `optimizer.kind is "adam"`."""
        return f"{self.parameter} is {'not ' * self.negated}{' or '.join(map(json.dumps, self.values))}"


def choice_key(value: Any) -> str:
    """Return a choice as the key of its table: `adam`, `true`, `[100, 100]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def find_choice(key: str, choices: Sequence[Any]) -> Any:
    """Return the choice for the key of a table: the same word, or a choice equal to the key's JSON; else MISSING."""
    try:
        value = json.loads(key)
    except (ValueError, RecursionError):
        value = key
    equal = (each for each in choices if each == value and isinstance(each, bool) == isinstance(value, bool))
    return key if key in choices else next(equal, MISSING)


def equals_choice(value: Any, choice: Any) -> bool:
    """Return whether a value, decoded or as Optuna stores it, equals this choice."""
    return bool(value == choice) or (isinstance(choice, list) and bool(value == json.dumps(choice)))


def setting_path(path: Path) -> Path:
    """Return the setting at a path of a study file: `optimizer.lr` for `optimizer.when.kind.adam.lr`."""
    return (path[0], *path[4:]) if path[1:2] == (WHEN,) else path


def split_conditional(tree: Mapping[str, Any], add: AddProblem) -> tuple[dict[str, Any], list[ConditionalTable]]:
    """Return a study's tree without its conditional tables, and the valid ones in the models' order.

    `add` is called with the path and the problem of each invalid one.
    """
    unconditional, tables = dict(tree), list[ConditionalTable]()
    for section in SEARCHABLE:
        values = tree[section]
        if isinstance(values, dict) and WHEN in values:
            rest = unconditional[section] = {key: value for key, value in values.items() if key != WHEN}
            found = list(_conditional_tables(section, rest, values[WHEN], add))
            tables += sorted(found, key=lambda table: _position(table, unconditional[table.section]))
    return unconditional, _without_conflicts(tables, add)


def _position(table: ConditionalTable, values: Mapping[str, Any]) -> tuple[int, int]:
    choices = _choices(table.section, table.key, values)
    return list(SECTIONS[table.section].model_fields).index(table.key), choices.index(table.value)


def _choices(section: str, key: str, values: Mapping[str, Any]) -> list[Any]:
    """Return the choices of a key in the type of the key; none if nothing may depend on it."""
    choices = value_at(values, (key, "choices"))
    searched = isinstance(choices, list) and (section, key) not in unsearchable_keys()
    return [coerce(section, key, choice) for choice in choices] if searched else []


def _conditional_tables(
    section: str, values: Mapping[str, Any], when: Any, add: AddProblem
) -> Iterator[ConditionalTable]:
    def is_table(path: Path, value: Any) -> bool:
        if not isinstance(value, dict):
            add(path, f"must be a table (got {format_value(value)})")
        return isinstance(value, dict)

    fields = SECTIONS[section].model_fields
    for key, tables in when.items() if is_table((section, WHEN), when) else ():
        path: Path = (section, WHEN, key)
        choices = _choices(section, key, values) if key in fields else []
        if key not in fields:
            add(path, unknown_key_text(key, fields))
        elif not choices:
            add(path, f"nothing can depend on {section}.{key}: it is not searched as {{ choices = [...] }}")
        elif is_table(path, tables):
            first = dict[str, str]()  # choice -> the first key for it
            for text, table in tables.items():
                value = find_choice(text, choices)
                if value is MISSING:
                    known = [choice_key(choice) for choice in choices]
                    near = nearest(text, known) or f"; known: {', '.join(known)}"
                    add((*path, text), f"is not a choice of {section}.{key}{near}")
                elif first.setdefault(choice_key(value), text) != text:
                    add((*path, text), f"is the same choice as {first[choice_key(value)]}")
                elif is_table((*path, text), table):
                    yield ConditionalTable(section, key, value, text, table)


def _without_conflicts(tables: Sequence[ConditionalTable], add: AddProblem) -> list[ConditionalTable]:
    """Return the tables without the keys that cannot be conditional, or that depend on two keys."""
    valid = []
    for table in tables:
        values = dict(table.table)
        for key in table.table:
            others = [each for each in tables if each.section == table.section and each.key != table.key]
            if any((each.section, each.key) == (table.section, key) for each in tables):
                problem = f"cannot depend on {table.key}, because other keys depend on {key}"
            elif other := next((each for each in others if key in each.table), None):
                problem = f"cannot depend on {table.key}, because it depends on {other.key} already"
            elif (table.section, key) in unsearchable_keys():
                problem = f"cannot depend on {table.key}, because it is the same for all trials"
            else:
                continue
            add((*table.path, key), problem)
            del values[key]
        valid.append(replace(table, table=values))
    return valid


def with_values(tree: dict[str, Any], tables: Sequence[ConditionalTable], values: Mapping[Path, Any]) -> dict[str, Any]:
    """Return a tree of settings with these values, by path in the study file, and those of the tables that apply in it.

    The values of unconditional settings decide which tables apply.
    """
    for path, value in values.items():
        if path == setting_path(path):
            tree = replaced(tree, path, value)
    for table in tables:
        if table.applies_to(tree):
            for key, value in table.table.items():
                tree = replaced(tree, (table.section, key), value)
    for path, value in values.items():
        if path != setting_path(path):
            tree = replaced(tree, setting_path(path), value)
    return tree


def file_path(setting: Path, tree: Mapping[str, Any], tables: Sequence[ConditionalTable]) -> Path:
    """Return the path in the study file that defines a setting of a tree from `with_values`."""
    defining = [table for table in tables if table.defines(setting) and table.applies_to(tree)]
    return (*defining[0].path, *setting[1:]) if defining else setting


def insert_conditional(tree: dict[str, Any], tables: Sequence[ConditionalTable]) -> dict[str, Any]:
    """Return a study's tree with its conditional tables at their paths."""
    whole = {section: dict(values) if isinstance(values, dict) else values for section, values in tree.items()}
    for table in tables:
        whole[table.section].setdefault(WHEN, {}).setdefault(table.key, {})[table.text] = dict(table.table)
    return whole
