"""Lines of `[network.args]` for a user-defined network, from the signature of its constructor.

Dropout rates become ranges: trials that differ in them train together. Every other argument has its default, with a
comment that shows how to search it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from hpo.errors import CodeError, UsageError
from hpo.starter.line import Line
from hpo.studyfile.values import Arguments
from hpo.training.networks.user_defined import ADDED_ARGUMENTS
from hpo.usercode import load_reference

DROPOUT = {"low": 0.0, "high": 0.5}
GUESSES: dict[str, Any] = {"int": 32, "float": 0.1, "bool": False}
"""Values of required arguments by their annotation."""


def argument_lines(module: str, folder: Path) -> list[Line]:
    """Return a line for each argument that hpo does not add itself. Raises UsageError and CodeError."""
    try:
        constructor = load_reference(module, folder)
    except CodeError as error:
        raise UsageError(f"--module: {error}") from error
    if not callable(constructor):
        raise UsageError(f"--module: {module} is neither a class nor a function that returns a module")
    try:
        parameters = inspect.signature(constructor).parameters.values()
    except ValueError:  # some callables have no signature
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    own = [each for each in parameters if each.kind in named and each.name not in ADDED_ARGUMENTS]
    return [_line(each, module) for each in own]


def _line(parameter: inspect.Parameter, module: str) -> Line:
    name, default, comment = parameter.name, parameter.default, ""
    if default is inspect.Parameter.empty:
        annotation = parameter.annotation
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation)
        if kind not in GUESSES and not _is_dropout(name, 0.0):
            raise UsageError(f"--module: {module} has no default for '{name}': add one, or annotate it as int or float")
        default, comment = GUESSES.get(kind, 0.0), "required, so this is a guess"
    if _is_dropout(name, default):
        return Line(name, DROPOUT, comment)
    try:
        value = TypeAdapter(Arguments).validate_python({name: list(default) if isinstance(default, tuple) else default})
    except ValidationError:
        return Line("", comment=f"{name}: the default of {module}")
    return Line(name, value[name], "; ".join(filter(None, [comment, *_hint(value[name])])))


def _is_dropout(name: str, default: Any) -> bool:
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    return is_number and "drop" in name.lower() and 0 <= default < 1


def _hint(value: Any) -> Iterator[str]:
    """Yield how to search a value."""
    if isinstance(value, bool):
        yield "or { choices = [true, false] }"
    elif isinstance(value, int) and value > 1:
        yield f"or {{ choices = [{max(1, value // 2)}, {value}, {2 * value}] }}"
    elif isinstance(value, float) and value > 0:
        yield f"or {{ low = {value / 10:g}, high = {value * 10:g}, log = true }}"
