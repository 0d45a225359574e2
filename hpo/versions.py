"""The versions of hpo and of what its numbers depend on, read from the installed packages without importing them.

What hpo writes says by which versions, and when, it was made.
"""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import hpo

PACKAGES = ("torch", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Return each version by its program's name: hpo, python, torch, optuna, numpy."""
    packages = {package: metadata.version(package) for package in PACKAGES}
    return {"hpo": hpo.__version__, "python": platform.python_version(), **packages}


def made() -> dict[str, Any]:
    """Return what an export ends with: the versions, and the time in UTC at which it is made."""
    return {"versions": versions(), "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")}


def version_line() -> str:
    """Return `hpo 0.1.0 (python 3.11.7, torch 2.13.0, ...)`."""
    own, *others = (f"{program} {version}" for program, version in versions().items())
    return f"{own} ({', '.join(others)})"
