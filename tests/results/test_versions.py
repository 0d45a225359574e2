"""The versions that an export and `hpo version` name."""

from __future__ import annotations

import platform

import numpy
import optuna
import torch

import hpo
from hpo.versions import version_line, versions


def test_versions_are_those_that_run() -> None:
    assert versions() == {
        "hpo": hpo.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "optuna": optuna.__version__,
        "numpy": numpy.__version__,
    }


def test_the_line_begins_with_hpo() -> None:
    assert version_line().startswith(f"hpo {hpo.__version__} (python {platform.python_version()}, torch ")
