"""Trees of tables and lists, as TOML and JSON give them, and paths into them. Nothing here changes a given tree.

This module knows nothing of what a tree means.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

Path = tuple[str | int, ...]

MISSING: Any = object()  # what stands at a path that leads nowhere


def value_at(tree: Any, path: Path) -> Any:
    """Return what stands at a path, or MISSING."""
    for key in path:
        if key not in _keys(tree):
            return MISSING
        tree = tree[key]
    return tree


def _keys(tree: Any) -> Collection[str | int]:
    return tree.keys() if isinstance(tree, dict) else range(len(tree) if isinstance(tree, list) else 0)


def replaced(tree: Any, path: Path, value: Any) -> Any:
    """Return the tree with another value at a path that exists up to its last key."""
    if not path:
        return value
    copy = tree.copy()
    copy[path[0]] = replaced(value_at(tree, path[:1]), path[1:], value)
    return copy


def without(tree: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Return the tree without what stands at a path of tables, nor tables that are empty without it."""
    copy = dict(tree)
    inside = without(copy[path[0]], path[1:]) if len(path) > 1 else {}
    if inside:
        copy[path[0]] = inside
    else:
        del copy[path[0]]
    return copy


def same(one: Any, other: Any) -> bool:
    """Say whether two values are written alike in JSON: in Python true equals 1, 1 equals 1.0, and 0.0 equals -0.0."""
    if one is MISSING or other is MISSING:
        return one is other
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def is_under(path: Path, top: Path) -> bool:
    """Say whether a path is `top` or leads on from it."""
    return path[: len(top)] == top


def first_in_order(tree: Any, paths: Iterable[Path]) -> Path:
    """Return the path that comes first as the tree is written; what is absent comes after what is there."""
    places: dict[Path, dict[Any, int]] = {}

    def rank(path: Path) -> list[int]:
        ranks = []
        for depth, key in enumerate(path):
            top = path[:depth]
            if top not in places:
                places[top] = {key: place for place, key in enumerate(_keys(value_at(tree, top)))}
            ranks.append(places[top].get(key, len(places[top])))
        return ranks

    return min(paths, key=rank)
