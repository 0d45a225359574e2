"""Searched values: how they are written, told from fixed ones, and checked by themselves.

In a searchable section every table in the place of a value is a searched value, `{ low, high, log?, step? }` or
`{ choices = [...] }`, and so is every table in a list, and every table in one that is `Open`. Whether the values suit
their key is for the concrete models to say; this module knows nothing of them but which sections can be searched.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError

from hpo.studyfile.cases import Condition, setting_of
from hpo.studyfile.keys import SEARCHABLE, names, open_tables
from hpo.studyfile.messages import faults_of, shown, unknown_key
from hpo.studyfile.models import Settings
from hpo.studyfile.trees import Path, same, value_at
from hpo.studyfile.values import LARGEST, MOST_CHOICES


@dataclass(frozen=True)
class Range:
    """Every number from `low` to `high`, both included; on a log scale, or in steps from `low` up."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def tree(self) -> dict[str, Any]:
        """Return the table that a study file has in its place."""
        tree: dict[str, Any] = {"low": self.low, "high": self.high, "log": self.log}
        return tree if self.step is None else {**tree, "step": self.step}


@dataclass(frozen=True)
class Choices:
    """One of these values, which are kept as a tuple."""

    choices: Sequence[Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))

    def tree(self) -> dict[str, Any]:
        """Return the table that a study file has in its place."""
        return {"choices": list(self.choices)}

    def faults(self) -> Iterator[tuple[Path, str]]:
        """Yield each choice that is stored as one before it is, so that nobody could tell what a trial had."""
        first: dict[object, int] = {}
        for index, choice in enumerate(self.choices):
            before = first.setdefault(encode(choice), index)  # to Optuna, and in a dict, 1 is true and 1.0
            if before != index:
                other = self.choices[before]
                told = "" if same(other, choice) else f" = {shown(other)} where it is stored"
                yield ("choices", index), f"is the same as choices.{before}{told} (got {shown(choice)})"


def encode(choice: Any) -> Any:
    """Return a choice as Optuna can store it: a list as its JSON text."""
    return json.dumps(choice) if isinstance(choice, list) else choice


@dataclass(frozen=True)
class Parameter:
    """A searched value, by the name it has in Optuna, in the dashboard and in an export.

    `path` is its place in the study file, `integer` says that a range holds whole numbers only, and `when` where it is
    searched, None for everywhere.
    """

    name: str
    path: Path
    searched: Range | Choices
    integer: bool
    when: Condition | None = None

    @property
    def setting(self) -> Path:
        """The setting that it is a value of, or an element of: its path, but for one of a case."""
        return setting_of(self.path)


def applicable(parameters: Sequence[Parameter], values: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the parameters that a trial with these values has, as a study file means them or as they are stored."""
    return tuple(each for each in parameters if each.when is None or each.when.holds(values.get(each.when.parameter)))


def parameter_name(path: Path) -> str:
    """Return `lr`; `dropout.1` for an element of a list; `network.kind` for a key that several sections own.

    One of an open table has its own key, `width`; or `args.dropout`, where a setting has that key.
    """
    if path[:2] in open_tables():
        owned = any(path[2] in field for field in names().values())
        return ".".join(map(str, path[1 if owned else 2 :]))
    short = next(name for name, field in names().items() if field == path[:2])
    return ".".join([short, *map(str, path[2:])])


def find_searched(tree: Mapping[str, Any]) -> dict[Path, dict[str, Any]]:
    """Return every searched value of a study's tree, sound or not, by path and in the order of the models."""
    found: dict[Path, dict[str, Any]] = {}
    for path in names().values():
        value = value_at(tree, path)
        if path in open_tables() and isinstance(value, dict):
            for key, each in value.items():
                found |= _found_in((*path, key), each)
        elif path[0] in SEARCHABLE:
            found |= _found_in(path, value)
    return found


def _found_in(path: Path, value: Any) -> dict[Path, dict[str, Any]]:
    places = {(*path, index): each for index, each in enumerate(value)} if isinstance(value, list) else {path: value}
    return {place: each for place, each in places.items() if isinstance(each, dict)}


def candidates(table: Mapping[str, Any]) -> dict[Path, Any]:
    """Return the values that stand for all of a sound searched value, by their place in its table."""
    if "choices" in table:
        return {("choices", index): choice for index, choice in enumerate(table["choices"])}
    return {("low",): table["low"], ("high",): table["high"]}


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    if not (math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST):
        raise ValueError("must be a finite number" if isinstance(value, float) else "is too large")
    return value


Number = Annotated[Any, AfterValidator(_number)]


class RangeTable(Settings):
    """A range as a study file writes it."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    def faults(self) -> Iterator[tuple[Path, str]]:
        """Yield each key that contradicts another, with what it must be."""
        if self.log and self.low <= 0:
            yield ("low",), "must be above 0 when log = true"
        elif self.low >= self.high:
            yield ("low",), f"must be below high = {shown(self.high)}"
        if self.step is None:
            return
        if self.log:
            yield ("step",), "cannot be used when log = true"
        elif self.step <= 0:
            yield ("step",), "must be above 0"
        elif self.step > (self.high - self.low) * (1 + 1e-9):  # 0.3 - 0.1 is a little less than 0.2
            yield ("step",), "must be at most high - low"


class ChoicesTable(Settings):
    """Choices as a study file writes them."""

    choices: Annotated[list[Any], Field(min_length=1, max_length=MOST_CHOICES)]


_KEYS = (*RangeTable.model_fields, *ChoicesTable.model_fields)


def table_faults(table: dict[str, Any]) -> dict[Path, str]:
    """Return what is wrong with a searched value by itself, by place in its table."""
    model = ChoicesTable if "choices" in table else RangeTable
    try:
        checked = model.model_validate(table)
        found = checked.faults() if isinstance(checked, RangeTable) else ()  # choices: once they are understood
        return {place: f"{problem} (got {shown(value_at(table, place))})" for place, problem in found}
    except ValidationError as error:
        faults = {place: fault.sentence for place, fault in faults_of(error, model, table).items()}
    for key in table.keys() - model.model_fields.keys():
        beside = f"cannot be given beside {', '.join(model.model_fields)}"
        faults[(key,)] = beside if key in RangeTable.model_fields else unknown_key(key, _KEYS)
    return faults
