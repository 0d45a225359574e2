"""Bounded reading and parsing of files from elsewhere.

    open_regular_file   open a regular file; pipes, which may never end, and devices are refused
    read_limited        read a regular file of limited size
    parse_json          parse JSON without duplicate keys or deep nesting
    parse_toml          parse TOML without deep nesting

Whatever a file contains, each function ends soon. On failure it raises OSError or ValueError, whose text says what is
wrong. This module uses nothing else of hpo.
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
"""Maximum nesting of tables and lists; files that hpo writes nest at most ten."""

_KEY_PART = r"""(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')"""
_DEEP_KEY = re.compile(rf"(?<![A-Za-z0-9_-])(?:{_KEY_PART}[ \t]*+\.[ \t]*+){{{DEEPEST}}}")
"""A dotted key of more than DEEPEST parts; tomllib needs minutes for a very long one."""


def open_regular_file(path: Path) -> BufferedReader:
    """Open a regular file, or a link to one, for reading. Raise OSError on failure, also for an invalid file name."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
        if not regular and not os.path.isdir(path):
            raise OSError(errno.EINVAL, "is not a regular file")
        return open(path, "rb")
    except ValueError as error:
        raise OSError(errno.EINVAL, "is not a valid file name") from error


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file. Raise OSError for more than `max_bytes` bytes."""
    with open_regular_file(path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"is larger than {max_bytes:,} bytes")
    return content


def parse_json(text: str) -> Any:
    """Return parsed JSON. Raise ValueError for invalid JSON, including NaN and 1e999, which Python accepts."""
    try:
        tree = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_number, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} (at line {error.lineno}, column {error.colno})") from error
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    _check_depth(tree)
    return tree


def parse_toml(text: str) -> dict[str, Any]:
    """Return parsed TOML. Raise ValueError for invalid TOML."""
    if _DEEP_KEY.search(text):
        raise ValueError("is nested too deeply")
    try:
        tree = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except ValueError as error:  # also Python's own, for a number of thousands of digits
        raise ValueError(f"is not TOML: {error}") from error
    _check_depth(tree)
    return tree


def _without_duplicates(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in pairs:
        if key in tree:
            raise ValueError(f"duplicate key {key[:60]!r} in one object")
        tree[key] = value
    return tree


def _refuse_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_number(digits[:60])


def _check_depth(tree: Any) -> None:
    """Raise ValueError for a tree that is too deep for recursive functions."""
    level: list[Any] = [tree]
    for _ in range(DEEPEST):
        level = [
            inner
            for node in level
            if isinstance(node, dict | list)
            for inner in (node.values() if isinstance(node, dict) else node)
        ]
    if level:
        raise ValueError("is nested too deeply")
