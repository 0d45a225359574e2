"""Types of the values in a study file, marks on the fields of its models, and the base of the models.

Types are strict: an integer is a number, but "0.1", true, nan and inf are not.
"""

from __future__ import annotations

import keyword
import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, WithJsonSchema

from hpo.memory_code import is_in_memory

MAX_INT = 2**63 - 1  # the largest integer of SQL, NumPy and torch
MAX_DEPTH = 4  # of nested lists in an argument
MAX_LAYERS = 1000  # of each kind in a network
MAX_CHOICES = 1000  # of one value; also the maximum number of searched values. The check of each takes time
CURRENT_FOLDER = FilePath()


@dataclass(frozen=True)
class UsedBy:
    """Mark of a field that is used only if `key` of its section has one of these values."""

    values: tuple[str, ...]
    key: str = "kind"


@dataclass(frozen=True)
class NotSearchable:
    """Mark of a field in a searchable section that is equal in all trials, as it does not affect training."""


@dataclass(frozen=True)
class OpenTable:
    """Mark of a table with arbitrary keys in a searchable section; each of its values may be searched."""


Natural = Annotated[int, Field(ge=0, le=MAX_INT)]
Positive = Annotated[int, Field(ge=1, le=MAX_INT)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
AboveZero = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def checked_reference(text: str) -> str:
    """Return a reference to user code unchanged; raise ValueError if it is invalid."""
    file, colon, name = text.rpartition(":")
    if is_in_memory(text) and name.isidentifier():
        return text
    if not (colon and file.endswith(".py") and all(part.isidentifier() for part in name.split("."))):
        raise ValueError('must be FILE.py:NAME, such as "my_net.py:Net"')
    return text


REFERENCE_PATTERN = r"\.py:[^:]+$"
"""A superset of valid references in a file, for the JSON Schema."""

Reference = Annotated[
    str, AfterValidator(checked_reference), WithJsonSchema({"type": "string", "pattern": REFERENCE_PATTERN})
]
"""User code: a Python file, relative to the study file's folder, and a name in it (hpo/usercode.py)."""


def _argument_name(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError("is not a valid name of an argument in Python")
    return name


def _argument(value: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("is nested too deeply")
    if isinstance(value, list):
        return [_argument(each, depth + 1) for each in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise ValueError("is too large")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
    elif not isinstance(value, str):
        raise ValueError("must be a number, a string, true, false or a list of them")
    elif any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("must be a string of valid Unicode characters")
    return value


Arguments = dict[Annotated[str, AfterValidator(_argument_name)], Annotated[Any, AfterValidator(_argument)]]


def number_or(other: type, tag: str) -> Discriminator:
    """Select the branch of a union by the value's type, so that a wrong value is one error."""
    return Discriminator(lambda value: tag if isinstance(value, other) else "number")


STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def word_or_reference() -> Discriminator:
    """Select the branch of a union of known words and `FILE.py:NAME`; a list has a branch of its own."""
    return Discriminator(
        lambda value: "list" if isinstance(value, list) else "reference" if ":" in str(value) else "word"
    )


class Settings(BaseModel):
    """Base of all settings: frozen, strict, without unknown keys, nan and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, **STRICT)
