"""What a study file's errors say: one printable line each, with the file, the key, what is allowed and what was got.

This module turns pydantic's errors into the project's sentences. It knows the models' keys, for the nearest correct
spelling, and nothing of how a study is read or checked.
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
from hpo.studyfile.keys import names, open_tables
from hpo.studyfile.trees import MISSING, Path, value_at
from hpo.text import printable

WIDTH = 60  # characters of a value or key that a message shows


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: pydantic's name for it, and the sentence."""

    type: str
    sentence: str


def study_file_error(source: str, key: str, problem: str) -> StudyFileError:
    """Build the error, on one line whatever the file's name holds."""
    return StudyFileError(printable(source), key, printable(problem))


def shortened(text: str) -> str:
    """Return text cut to what a message has room for."""
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def shown(value: object) -> str:
    """Show a value much as TOML writes it, printable and short, whatever its size or depth."""
    return shortened(printable(_toml(value, depth=3)))


def _toml(value: object, depth: int) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(value[:WIDTH])
    if isinstance(value, int) and value.bit_length() > 4 * WIDTH:  # Python refuses to write very long ones in decimal
        return f"{'-' * (value < 0)}{hex(abs(value) >> (value.bit_length() - 4 * WIDTH))}"
    if isinstance(value, Mapping | list | tuple) and depth == 0:
        return "..."
    if isinstance(value, Mapping):
        pairs = [f"{key_shown(key)} = {_toml(value[key], depth - 1)}" for key in list(value)[:WIDTH]]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(element, depth - 1) for element in value[:WIDTH])}]"
    return str(value)


def key_shown(key: object) -> str:
    """Return a key as a message names it."""
    return key if isinstance(key, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else shown(key)


def dotted(path: Path) -> str:
    """Return a path as the key that a user would write: `optimizer.lr.low`."""
    return ".".join(map(key_shown, path))


def unknown_key(key: object, known: Iterable[str]) -> str:
    """Say that a key is unknown, with the nearest known one or the section that it belongs to."""
    known = list(known)
    near = nearest(str(key)[:WIDTH], known)
    if not near and key in names():
        near = f" (did you mean '{dotted(names()[str(key)])}'?)"
    return f"unknown key{near}" if near else f"unknown key; known: {', '.join(known)}"


_SENTENCES = {
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
    "string_unicode": "must be a string of whole Unicode characters",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "too_long": "must have at most {max_length} elements",
    "model_type": "must be a table",
    "dict_type": "must be a table",
    "value_error": "{error}",
}


def faults_of(error: ValidationError, model: type[BaseModel], tree: Any) -> dict[Path, Fault]:
    """Return what a model found wrong with a tree, by path."""
    faults: dict[Path, Fault] = {}
    for details in error.errors(include_url=False):
        # Beneath a field, a word in a location is pydantic's name for one branch of a union, not a key of the tree.
        location = details["loc"]
        keys = [
            isinstance(key, int) or _owner(model, location[:depth]) or location[:depth] in open_tables()
            for depth, key in enumerate(location)
        ]
        path = tuple(itertools.compress(location, keys))
        faults.setdefault(path, Fault(details["type"], _sentence(details, _owner(model, path[:-1]), path, tree)))
    return faults


def _owner(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Return the model whose fields are the keys at a path, or None where a field's value is."""
    for key in path:
        field = model.model_fields.get(str(key))
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return None
        model = field.annotation
    return model


def _sentence(details: ErrorDetails, owner: type[BaseModel] | None, path: Path, tree: Any) -> str:
    kind, field, got = details["type"], None, value_at(tree, path)
    if owner is not None and path:
        if kind in ("extra_forbidden", "invalid_key"):
            return unknown_key(path[-1], owner.model_fields)
        field = owner.model_fields.get(str(path[-1]))
    context = {name: _plain(value) for name, value in details.get("ctx", {}).items()}
    words = re.findall(r"'([^']*)'", context.get("expected", ""))
    near = nearest(got[:WIDTH], words) if isinstance(got, str) else ""
    allowed = field.description if field is not None else None
    if kind == "literal_error":
        noun = (field and field.title) or str(path[-1]).replace("_", " ")
        return f"unknown {noun} {shown(got)}{near}; known: {allowed or ', '.join(words)}"
    if kind.endswith("_type") and allowed:
        return f"must be {allowed} (got {shown(got)})"
    problem = _SENTENCES.get(kind, details["msg"]).format_map(context)
    return problem if got is MISSING else f"{problem} (got {shown(got)})"


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
