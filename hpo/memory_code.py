"""Functions and classes of the user that are in no importable file: of a notebook's cells, or of the main program.

    reference_name   return `memory:NAME` for a function or class
    register         make objects known under their references
    find             return a known object

They exist in this process only. The SHA-256 of an object is that of its source text and of the functions, classes and
constants of its module that it uses, so a changed cell is recognized like a changed file. Where there is no source
text, the compiled code is hashed.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import inspect
import linecache
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from tokenize import TokenError
from types import CodeType, FunctionType
from typing import Any

from hpo.errors import CodeError

MEMORY = "memory:"
"""The beginning of a reference to an object that is in no file."""


@dataclass(frozen=True)
class MemoryCode:
    """An object, the SHA-256 of its source, and the file names that its frames have in tracebacks."""

    value: Any
    sha256: str
    files: frozenset[str]


_known: dict[str, MemoryCode] = {}


def is_in_memory(reference: str) -> bool:
    """Return whether a reference names an object that is in no file."""
    return reference.startswith(MEMORY)


def reference_name(value: Any) -> str:
    """Return the reference to a function or class. Raises ValueError for another object, or one without a name."""
    if not isinstance(value, FunctionType | type):
        kind = type(value).__name__
        raise ValueError(f"must be a function or a class, not an object of one (got an object of type {kind})")
    if not value.__name__.isidentifier():
        raise ValueError("must be a function with a name: define it with `def` (got a lambda)")
    return f"{MEMORY}{value.__name__}"


def register(objects: Mapping[str, Any]) -> None:
    """Make objects known by their references, in place of earlier ones of the same names."""
    for reference, value in objects.items():
        pieces = dict(_pieces(value, set()))
        digest = hashlib.sha256("\n".join(pieces).encode(errors="backslashreplace")).hexdigest()
        _known[reference] = MemoryCode(value, digest, frozenset(filter(None, pieces.values())))


def find(reference: str) -> MemoryCode:
    """Return the object of a reference. Raises CodeError where this process does not have it."""
    if reference not in _known:
        name = reference.removeprefix(MEMORY)
        raise CodeError(
            f"{reference} was defined in another process and is in no file: define {name} here and create the same "
            f'hpo.Study with it first, or move it to a file and use "FILE.py:{name}" in a study of another name'
        )
    return _known[reference]


def is_frame_file(file: str) -> bool:
    """Return whether a file name of a traceback's frame is that of a known object."""
    return any(file in each.files for each in _known.values())


def _pieces(value: Any, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Yield the source, and its file, of an object and of everything in its module that it uses."""
    if id(value) in seen:
        return
    seen.add(id(value))
    functions = list(_functions(value))
    yield _source(value, functions), functions[0].__code__.co_filename if functions else ""
    used = {base.__name__: base for base in value.__bases__} if isinstance(value, type) else {}
    for function in functions:
        used |= _globals(function)
    for name, each in used.items():
        if isinstance(each, FunctionType | type) and each.__module__ == value.__module__:
            yield from _pieces(each, seen)
        elif _is_constant(each):
            yield f"{name} = {each!r}", ""


def _globals(function: FunctionType) -> dict[str, Any]:
    """Return the values that a function has from outside, by name."""
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    found = {name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # an empty cell
            found[name] = cell.cell_contents
    return found


def _is_constant(value: Any) -> bool:
    """Return whether a value always has the same text."""
    if isinstance(value, tuple):
        return all(map(_is_constant, value))
    return value is None or isinstance(value, bool | int | float | complex | str | bytes)


def _functions(value: Any) -> Iterator[FunctionType]:
    """Yield a function itself, or the methods of a class."""
    for each in vars(value).values() if isinstance(value, type) else [value]:
        inner = getattr(each, "__func__", getattr(each, "fget", each))
        if isinstance(inner, FunctionType):
            yield inspect.unwrap(inner)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _source(value: Any, functions: list[FunctionType]) -> str:
    """Return the source text, or a text of the compiled code where there is none."""
    # For a file that does not exist, inspect takes the lines of the running script for those of the object.
    if all(linecache.getlines(each.__code__.co_filename) for each in functions):
        with contextlib.suppress(OSError, TypeError, SyntaxError, TokenError):  # TypeError: a class of a notebook
            return inspect.getsource(value)
    for function in functions if isinstance(value, type) else ():
        lines, line = linecache.getlines(function.__code__.co_filename), function.__code__.co_firstlineno
        with contextlib.suppress(SyntaxError):
            for node in ast.walk(ast.parse("".join(lines))):
                if isinstance(node, ast.ClassDef) and node.name == value.__name__:
                    end = node.end_lineno or 0
                    if node.lineno <= line <= end:
                        return "".join(lines[node.lineno - 1 : end])
    return repr([*map(_compiled, functions), *(each for each in vars(value).items() if _is_constant(each))])


def _compiled(function: FunctionType) -> str:
    """Return a text of a function's compiled code, its constants and its defaults."""
    codes = list(_codes(function.__code__))
    constants = [[each for each in code.co_consts if _is_constant(each)] for code in codes]
    return repr(
        (
            [(code.co_name, code.co_code, code.co_names) for code in codes],
            constants,
            [each for each in function.__defaults__ or () if _is_constant(each)],
        )
    )
