"""What comes from elsewhere, files and their text: opened, read and taken apart within bounds.

    opened      a regular file, open to be read: no pipe, which may never end, and no device
    content     the bytes of one that has no more than so many
    json_tree   what a JSON text says, each key once and nothing nested deeper than DEEPEST
    toml_tree   the same of TOML

Promises: whatever a file holds, it ends soon, and with OSError or ValueError, whose text says in a sentence what is
wrong. This module knows nothing of the rest of hpo.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import tomllib
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any

DEEPEST = 32
"""Tables and lists within each other; what hpo writes has ten at most."""

_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_PART}[ \t]*+\.[ \t]*+){{{DEEPEST}}}")
"""A key of so many parts: of one that is long enough, the standard library makes minutes of work."""


def opened(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one. Raises OSError, for a name that no file can have, too."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
        if not regular and not os.path.isdir(path):
            raise OSError(errno.EINVAL, "is no regular file")
        return open(path, "rb")
    except ValueError as error:
        raise OSError(errno.EINVAL, "no file can have such a name") from error


def content(path: Path, most: int) -> bytes:
    """Return what a regular file holds. Raises OSError where that is more than `most` bytes."""
    with opened(path) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise OSError(errno.EFBIG, f"is larger than {most:,} bytes")
    return found


def json_tree(text: str) -> Any:
    """Return what a JSON text says. Raises ValueError, for what Python takes besides, such as NaN and 1e999, too."""
    try:
        tree = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} (at line {error.lineno}, column {error.colno})") from error
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    return _checked(tree)


def toml_tree(text: str) -> dict[str, Any]:
    """Return what a TOML text says. Raises ValueError."""
    if _LONG_KEY.search(text):
        raise ValueError("is nested too deeply")
    try:
        tree = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:  # of TOML, or of Python's own for a number of thousands of digits
        raise ValueError(f"is not TOML: {error}") from error
    checked: dict[str, Any] = _checked(tree)
    return checked


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(f"the key {key[:60]!r} stands twice in one object")
        tree[key] = value
    return tree


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits[:60])


def _checked(tree: Any) -> Any:
    """Return the tree, unless it is nested too deeply for what goes through it by calling itself."""
    level: list[Any] = [tree]
    for _ in range(DEEPEST):
        level = [
            inside
            for each in level
            if isinstance(each, dict | list)
            for inside in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise ValueError("is nested too deeply")
    return tree
