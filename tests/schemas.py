"""JSON Schemas of exported files by name.

Names: best, best-1, best-2, ensemble, ensemble_test, front, objective, objective-1, optuna, test, test-1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hpo

FOLDER = Path(hpo.__file__).parent / "results" / "schemas"


def schema(name: str) -> dict[str, Any]:
    """Return the schema as a dictionary."""
    tree: dict[str, Any] = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    return tree
