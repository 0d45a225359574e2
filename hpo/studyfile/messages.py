"""Error messages about study files: one printable line with the file, the key, what is allowed and what was found.

This module converts pydantic's errors into messages. It uses the models' keys to suggest the nearest correct one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hpo.errors import StudyFileError, nearest
from hpo.studyfile.keys import open_tables, setting_paths
from hpo.studyfile.trees import MISSING, Path, value_at
from hpo.text import printable

WIDTH = 60  # maximum characters of a value or key in a message


@dataclass(frozen=True)
class Problem:
    """A problem at one path: pydantic's error type, and the message."""

    type: str
    text: str


def study_file_error(source: str, key: str, problem: str) -> StudyFileError:
    """Return the error as one printable line."""
    return StudyFileError(printable(source), key, printable(problem))


def truncate(text: str) -> str:
    """Return text cut to the width of a value in a message."""
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def format_value(value: object) -> str:
    """Return a value similar to TOML, printable and short whatever its size or depth."""
    return truncate(printable(_toml(value, depth=3)))


def _toml(value: object, depth: int) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value[:WIDTH])
    if isinstance(value, int) and value.bit_length() > 4 * WIDTH:  # Python refuses to convert longer ones to decimal
        return f"{'-' * (value < 0)}{hex(abs(value) >> (value.bit_length() - 4 * WIDTH))}"
    if isinstance(value, Mapping | list | tuple) and depth == 0:
        return "..."
    if isinstance(value, Mapping):
        pairs = [f"{format_key(key)} = {_toml(value[key], depth - 1)}" for key in list(value)[:WIDTH]]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(element, depth - 1) for element in value[:WIDTH])}]"
    return str(value)


def format_key(key: object) -> str:
    """Return a key for a message, quoted if necessary."""
    return key if isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else format_value(key)


def dotted_key(path: Path) -> str:
    """Return a path as a dotted key: `optimizer.lr.low`."""
    return ".".join(map(format_key, path))


def unknown_key_text(key: object, known: Iterable[str]) -> str:
    """Return the message for an unknown key, with the nearest known key or the section that has it."""
    known = list(known)
    near = nearest(str(key)[:WIDTH], known)
    if not near and key in setting_paths():
        near = f" (did you mean '{dotted_key(setting_paths()[str(key)])}'?)"
    return f"unknown key{near}" if near else f"unknown key; known: {', '.join(known)}"


_MESSAGES = {
    "missing": "missing",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_type": "must be a whole number",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_unicode": "must be a string of valid Unicode characters",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} elements",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "value_error": "{error}",
}


def validation_problems(error: ValidationError, model: type[BaseModel], tree: Any) -> dict[Path, Problem]:
    """Return the problems that a model has with a tree, by path."""
    problems: dict[Path, Problem] = {}
    for details in error.errors(include_url=False):
        # Below a field, a word in a location is pydantic's name for a branch of a union, not a key of the tree.
        location = details["loc"]
        keys = [
            isinstance(key, int) or _owner(model, location[:depth]) or location[:depth] in open_tables()
            for depth, key in enumerate(location)
        ]
        path = tuple(itertools.compress(location, keys))
        problems.setdefault(path, Problem(details["type"], _message(details, _owner(model, path[:-1]), path, tree)))
    return problems


def _owner(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Return the model whose fields are the keys at a path; None if there is none."""
    for key in path:
        field = model.model_fields.get(str(key))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return None
        model = field.annotation
    return model


def _message(details: ErrorDetails, owner: type[BaseModel] | None, path: Path, tree: Any) -> str:
    kind, field, got = details["type"], None, value_at(tree, path)
    if owner is not None and path:
        if kind in ("extra_forbidden", "invalid_key"):
            return unknown_key_text(path[-1], owner.model_fields)
        field = owner.model_fields.get(str(path[-1]))
    context = {name: _plain(value) for name, value in details.get("ctx", {}).items()}
    words = re.findall(r"'([^']*)'", context.get("expected", ""))
    near = nearest(got[:WIDTH], words) if isinstance(got, str) else ""
    allowed = field.description if field is not None else None
    if kind == "literal_error":
        noun = (field and field.title) or str(path[-1]).replace("_", " ")
        extra = field.json_schema_extra if field is not None else None
        known = allowed or ", ".join(words)
        hint = f". {extra['hint']}" if isinstance(extra, dict) and not near and str(got) not in known else ""
        return f"unknown {noun} {format_value(got)}{near}; known: {known}{hint}"
    if kind.endswith("_type") and allowed:
        return f"must be {allowed} (got {format_value(got)})"
    problem = _MESSAGES.get(kind, details["msg"]).format_map(context)
    return problem if got is MISSING else f"{problem} (got {format_value(got)})"


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
