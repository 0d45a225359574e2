"""Ranges and choices: the parameters of a study file, and the checks of a range or choices alone.

In a searchable section every table in place of a value is searched: `{ low, high, log?, step? }` or
`{ choices = [...] }`. So is every table in a list or in an `OpenTable`. The models check the values for their key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError

from hpo.studyfile.conditions import Condition, setting_path
from hpo.studyfile.keys import SEARCHABLE, open_tables, setting_paths
from hpo.studyfile.messages import dotted_key, format_value, study_file_error, unknown_key_text, validation_problems
from hpo.studyfile.trees import Path, equal_json, value_at
from hpo.studyfile.values import MAX_CHOICES, MAX_INT, Settings

NO_NUMBER = {"list_type", "literal_error", "bool_type", "string_type"}
"""pydantic's errors for a number where none is allowed: there, a range is not allowed either."""


@dataclass(frozen=True)
class Range:
    """A range of numbers, `low` and `high` included; linear, on a log scale, or in steps from `low`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        _check("hpo.Range", self.tree())

    @classmethod
    def converted(cls, low: float, high: float, log: bool, step: float | None) -> Self:
        """Return a range that was checked before its numbers were converted, which may make them equal."""
        made = cls.__new__(cls)
        for key, value in (("low", low), ("high", high), ("log", log), ("step", step)):
            object.__setattr__(made, key, value)
        return made

    def tree(self) -> dict[str, Any]:
        """Return the table for a study file."""
        tree: dict[str, Any] = {"low": self.low, "high": self.high, "log": self.log}
        return tree if self.step is None else {**tree, "step": self.step}


@dataclass(frozen=True)
class Choices:
    """Choices: one of these values, stored as a tuple."""

    choices: Sequence[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        _check("hpo.Choices", self.tree())

    def tree(self) -> dict[str, Any]:
        """Return the table for a study file."""
        return {"choices": list(self.choices)}

    def problems(self) -> Iterator[tuple[Path, str]]:
        """Yield the path and the problem of each choice that Optuna stores like an earlier one."""
        first: dict[object, int] = {}
        for index, choice in enumerate(self.choices):
            before = first.setdefault(encode_choice(choice), index)  # to Optuna, as in a dict, 1 equals true and 1.0
            if before != index:
                other = self.choices[before]
                stored = "" if equal_json(other, choice) else f" = {format_value(other)} when stored"
                yield ("choices", index), f"is the same as choices.{before}{stored} (got {format_value(choice)})"


def _check(source: str, table: dict[str, Any]) -> None:
    """Raise StudyFileError for the first problem of a range or choices that were built in Python."""
    for path, problem in table_problems(table).items():
        raise study_file_error(source, dotted_key(path), problem)


def encode_choice(choice: Any) -> Any:
    """Return a choice as Optuna stores it: a list as its JSON text."""
    return json.dumps(choice) if isinstance(choice, list) else choice


@dataclass(frozen=True)
class Parameter:
    """A parameter with its name in Optuna, in the dashboard and in exports.

    `path` is its path in the study file, `integer` is true for a range of whole numbers, and `when` is its condition.
    """

    name: str
    path: Path
    searched: Range | Choices
    integer: bool
    when: Condition | None = None

    @property
    def setting(self) -> Path:
        """The path of its setting; for a conditional parameter, not its path in the study file."""
        return setting_path(self.path)


def applicable_parameters(parameters: Sequence[Parameter], values: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the parameters of a trial with these values, decoded or as stored."""
    return tuple(each for each in parameters if each.when is None or each.when.is_met(values.get(each.when.parameter)))


_NAMES_OF_DATA = ("data", "dataset", "validation", "train_size", "split_seed")
"""Keys that are not parameter names of arguments. Later keys of `[data]`, such as `test`, are, as in stored studies."""


def parameter_name(path: Path) -> str:
    """Return `lr`; `dropout.1` for an element of a list; `network.kind` for a key that several sections have.

    In an open table it is the key, `width`; or `args.dropout`, if a setting of a searched section or `[search]` has
    that key.
    """
    if path[:2] in open_tables():
        fields = [field for field in setting_paths().values() if field[0] not in ("data", "task", "preprocess")]
        taken = path[2] in _NAMES_OF_DATA or any(path[2] in field for field in fields)
        return ".".join(map(str, path[1 if taken else 2 :]))
    short = next(name for name, field in setting_paths().items() if field == path[:2])
    return ".".join([short, *map(str, path[2:])])


def find_searched(tree: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Return every searched value of a study's tree, valid or not, by path and in the order of the models."""
    found: dict[Path, dict[str, Any]] = {}
    for path in setting_paths().values():
        value = value_at(tree, path)
        if path in open_tables() and isinstance(value, dict):
            for key, each in value.items():
                found |= _found_in((*path, key), each)
        elif path[0] in SEARCHABLE:
            found |= _found_in(path, value)
    return found


def _found_in(path: Path, value: Any) -> dict[Path, dict[str, Any]]:
    values = {(*path, index): each for index, each in enumerate(value)} if isinstance(value, list) else {path: value}
    return {at: each for at, each in values.items() if isinstance(each, dict)}


def candidates(table: Mapping[str, Any]) -> dict[Path, Any]:
    """Return the values to check for a valid searched value, by path in its table: all choices, or low and high."""
    if "choices" in table:
        return {("choices", index): choice for index, choice in enumerate(table["choices"])}
    return {("low",): table["low"], ("high",): table["high"]}


def searched_from(table: Mapping[str, Any], values: Sequence[Any], integer: bool) -> Range | Choices:
    """Return the range or the choices of a valid table, with `values` for its candidates."""
    if "choices" in table:
        return Choices(tuple(values))
    number: type[float] = int if integer else float
    low, high = map(number, values)
    step = table.get("step")
    return Range.converted(low, high, table.get("log", False), step if step is None else number(step))


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    if not (math.isfinite(value) if isinstance(value, float) else abs(value) <= MAX_INT):
        raise ValueError("must be a finite number" if isinstance(value, float) else "is too large")
    return value


Number = Annotated[Any, AfterValidator(_number)]


class RangeTable(Settings):
    """A range in a study file."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    def problems(self) -> Iterator[tuple[Path, str]]:
        """Yield the path and the problem of each key that contradicts another."""
        if self.log and self.low <= 0:
            yield ("low",), "must be above 0 when log = true"
        elif self.low >= self.high:
            yield ("low",), f"must be below high = {format_value(self.high)}"
        if self.step is None:
            return
        if self.log:
            yield ("step",), "cannot be used when log = true"
        elif self.step <= 0:
            yield ("step",), "must be above 0"
        elif self.step > (self.high - self.low) * (1 + 1e-9):  # 0.3 - 0.1 is slightly below 0.2
            yield ("step",), "must be at most high - low"


class ChoicesTable(Settings):
    """Choices in a study file."""

    choices: Annotated[list[Any], Field(min_length=1, max_length=MAX_CHOICES)]


_KEYS = (*RangeTable.model_fields, *ChoicesTable.model_fields)


def table_problems(table: dict[str, Any]) -> dict[Path, str]:
    """Return the problems of a range or choices alone, by path in its table."""
    model = ChoicesTable if "choices" in table else RangeTable
    try:
        checked = model.model_validate(table)
        found = checked.problems() if isinstance(checked, RangeTable) else ()  # choices are compared later, coerced
        return {at: f"{problem} (got {format_value(value_at(table, at))})" for at, problem in found}
    except ValidationError as error:
        problems = {at: problem.text for at, problem in validation_problems(error, model, table).items()}
    for key in table.keys() - model.model_fields.keys():
        beside = f"cannot be given beside {', '.join(model.model_fields)}"
        problems[(key,)] = beside if key in RangeTable.model_fields else unknown_key_text(key, _KEYS)
    return problems
