"""Fixtures of the Python API: a folder to work in, and a small study, searched once a module."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tree

import hpo


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> hpo.StoredStudy:
    """Return the searched study."""
    file = tmp_path_factory.mktemp("found") / "found.db"
    return hpo.launch(tree(), storage=f"sqlite:///{file}", device="cpu", progress="quiet")
