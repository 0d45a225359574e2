"""The versions of hpo and of what its numbers depend on, read from the installed packages without importing them."""

from __future__ import annotations

import platform
from importlib import metadata

import hpo

PACKAGES = ("torch", "optuna", "numpy")


def versions() -> dict[str, str]:
    """Return each version by its program's name: hpo, python, torch, optuna, numpy."""
    packages = {package: metadata.version(package) for package in PACKAGES}
    return {"hpo": hpo.__version__, "python": platform.python_version(), **packages}


def version_line() -> str:
    """Return `hpo 0.1.0 (python 3.11.7, torch 2.13.0, ...)`."""
    own, *others = (f"{program} {version}" for program, version in versions().items())
    return f"{own} ({', '.join(others)})"
