"""The kinds of values that a study file's keys may have, and the marks that say more of a key than its kind.

Strict: an integer is accepted for a number, but "0.1", true, nan and inf are not. Knows no key.
"""

from __future__ import annotations

import keyword
import math
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
)

LARGEST = 2**63 - 1  # what SQL, NumPy and torch can hold
DEEPEST = 4  # lists in lists of an argument
MOST_LAYERS = 1000  # of one kind in a network
MOST_CHOICES = 1000  # of one value, and as many searched values: each is checked with all else that the file says
HERE = FilePath()
"""The current folder."""


@dataclass(frozen=True)
class UsedBy:
    """Marks a field that only these kinds of its section use, or only these values of another of its keys."""

    values: tuple[str, ...]
    key: str = "kind"


@dataclass(frozen=True)
class OneForAll:
    """Marks a field of a searchable section that is the same for all trials: it does not change what they learn."""


@dataclass(frozen=True)
class Open:
    """Marks a table of a searchable section whose keys are not the models': each of its values may be searched."""


Natural = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
AboveZero = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


def checked_reference(text: str) -> str:
    """Return a reference to the user's own code; raise ValueError where it is none."""
    file, colon, name = text.rpartition(":")
    if not (colon and file.endswith(".py") and all(part.isidentifier() for part in name.split("."))):
        raise ValueError('must be FILE.py:NAME, such as "my_net.py:Net"')
    return text


Reference = Annotated[str, AfterValidator(checked_reference)]
"""The user's own code: a Python file, relative to the study file's folder, and a name in it (hpo/usercode.py)."""


def _argument_name(name: str) -> str:
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError("is no name that an argument can have in Python")
    return name


def _argument(value: Any, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError("is nested too deeply")
    if isinstance(value, list):
        return [_argument(each, depth + 1) for each in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > LARGEST:
            raise ValueError("is too large")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("must be a finite number")
    elif not isinstance(value, str):
        raise ValueError("must be a number, a string, true, false or a list of them")
    elif any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError("must be a string of whole Unicode characters")
    return value


Arguments = dict[Annotated[str, AfterValidator(_argument_name)], Annotated[Any, AfterValidator(_argument)]]


def number_or(other: type, tag: str) -> Discriminator:
    """Pick the one branch of a union that a value is checked against, so that a wrong one makes one error."""
    return Discriminator(lambda value: tag if isinstance(value, other) else "number")


STRICT = ConfigDict(strict=True, allow_inf_nan=False)
