"""Versions of hpo and of the packages that its results depend on, read without importing them."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import hpo
from hpo.text import utc_text

PACKAGES = ("torch", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Return each version by its program's name: hpo, python, torch, optuna, numpy."""
    packages = {package: metadata.version(package) for package in PACKAGES}
    return {"hpo": hpo.__version__, "python": platform.python_version(), **packages}


def provenance() -> dict[str, Any]:
    """Return the last keys of an export: the versions, and the time of writing in UTC."""
    return {"versions": versions(), "created": utc_text(datetime.now(UTC))}


def version_line() -> str:
    """Return `hpo 0.1.0 (python 3.11.7, torch 2.13.0, ...)`."""
    hpo_version, *others = (f"{program} {version}" for program, version in versions().items())
    return f"{hpo_version} ({', '.join(others)})"
