"""The JSON Schemas of what hpo writes, by the names of their files: best, best-1, front, objective, test."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def schema(name: str) -> dict[str, Any]:
    """Return the schema in `NAME.schema.json` beside this module."""
    text = resources.files("hpo.results").joinpath(f"{name}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded
