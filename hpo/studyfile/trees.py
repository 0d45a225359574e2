"""Paths into trees of tables and lists, the values of TOML and JSON. No function changes the tree that it is given."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

Path = tuple[str | int, ...]

MISSING: Any = object()  # the value of a path that does not exist


def value_at(tree: Any, path: Path) -> Any:
    """Return the value at a path, or MISSING."""
    for key in path:
        if key not in _keys(tree):
            return MISSING
        tree = tree[key]
    return tree


def _keys(tree: Any) -> Collection[str | int]:
    return tree.keys() if isinstance(tree, dict) else range(len(tree) if isinstance(tree, list) else 0)


def replaced(tree: Any, path: Path, value: Any) -> Any:
    """Return the tree with another value at a path; all but its last key must exist."""
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(value_at(tree, path[:1]), path[1:], value)
    return copy


def removed(tree: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Return the tree without the value at a path of tables, and without the tables that this leaves empty."""
    copy = dict(tree)
    inner = removed(copy[path[0]], path[1:]) if len(path) > 1 else {}
    if inner:
        copy[path[0]] = inner
    else:
        del copy[path[0]]
    return copy


def equal_json(one: Any, other: Any) -> bool:
    """Return whether two values have equal JSON; in Python true equals 1, 1 equals 1.0, and 0.0 equals -0.0."""
    if one is MISSING or other is MISSING:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def is_under(path: Path, top: Path) -> bool:
    """Return whether a path equals `top` or begins with it."""
    return path[: len(top)] == top


def first_path(tree: Any, paths: Iterable[Path]) -> Path:
    """Return the path that comes first in the order of the tree; paths that do not exist come last."""
    positions: dict[Path, dict[Any, int]] = {}

    def rank(path: Path) -> list[int]:
        ranks = []
        for depth, key in enumerate(path):
            top = path[:depth]
            if top not in positions:
                positions[top] = {key: index for index, key in enumerate(_keys(value_at(tree, top)))}
            ranks.append(positions[top].get(key, len(positions[top])))
        return ranks

    return min(paths, key=rank)
