"""What the storage's tests share: a storage in a fresh file, and a study in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.study import StudyDirection

from hpo.storage import Storage, open_storage


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    storage = open_storage(url)
    yield storage
    storage.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study([StudyDirection.MAXIMIZE], "digits")
