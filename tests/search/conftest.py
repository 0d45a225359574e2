"""Fixtures of the search tests: empty storages, an uninterrupted study, launches in child processes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from lock_step import LockStep
from optuna.trial import FrozenTrial
from tiny import STUDY, search, trials_of

from hpo.storage import Storage, open_storage
from hpo.studyfile import Study


@pytest.fixture
def new_storage(tmp_path: Path, blank_db: Path) -> Iterator[Callable[[], Storage]]:
    """Return a function that opens a new empty storage."""
    opened: list[Storage] = []

    def make() -> Storage:
        file = shutil.copy(blank_db, tmp_path / f"hpo{len(opened)}.db")
        opened.append(open_storage(f"sqlite:///{file}"))
        return opened[-1]

    yield make
    for storage in opened:
        storage.close()


@pytest.fixture
def storage(new_storage: Callable[[], Storage]) -> Storage:
    return new_storage()


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Sequence[FrozenTrial]:
    """Return the trials of `STUDY` after a search without interruption."""
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('whole')}/hpo.db")
    search(STUDY, storage)
    trials = trials_of(storage)
    storage.close()
    return trials


@pytest.fixture
def lock_step() -> Iterator[Callable[[Study, Storage], LockStep]]:
    """Return a function that starts a launch in lock step with the test; kill these launches afterwards."""
    started: list[LockStep] = []

    def start(study: Study, storage: Storage) -> LockStep:
        started.append(LockStep(study, storage))
        return started[-1]

    yield start
    for process in started:
        process.end()
