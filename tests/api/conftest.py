"""Fixtures of the Python API: a folder to work in, and a small study, searched once a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import tree

import hpo


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
