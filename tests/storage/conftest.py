"""Fixtures of the storage tests: blank storages on both databases, and a study.

A test with `url` or `storage` runs on SQLite and PostgreSQL; tests of one database use `file_url`, `file_storage`,
`server_url` and `server_storage`. Tests of the creation of a storage use `new_url`, without tables.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from blank_storages import Blank, BlankDatabases
from optuna.study import StudyDirection
from postgresql_server import Server

from hpo.storage import Storage, open_storage


@pytest.fixture(scope="session")
def blank_file(blank_db: Path, tmp_path_factory: pytest.TempPathFactory) -> Blank:
    return lambda: nullcontext(f"sqlite:///{shutil.copy(blank_db, tmp_path_factory.mktemp('blank'))}")


@pytest.fixture(scope="session")
def blank_database(server: Server) -> Blank:
    return BlankDatabases(server)


@pytest.fixture(scope="module", params=["blank_file", "blank_database"], ids=["sqlite", "postgresql"])
def blank(request: pytest.FixtureRequest) -> Blank:
    """Return blank storages, for tests that need several at the same time."""
    given: Blank = request.getfixturevalue(request.param)
    return given


@pytest.fixture
def file_url(blank_db: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(blank_db, tmp_path)}"


@pytest.fixture
def server_url(blank_database: Blank) -> Iterator[str]:
    with blank_database() as url:
        yield url


@pytest.fixture(params=["file_url", "server_url"], ids=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def new_file_url(tmp_path: Path) -> str:
    """Return the URL of a file that does not exist."""
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.fixture
def new_server_url(server: Server) -> Iterator[str]:
    """Yield the URL of a database without tables."""
    with server.database() as name:
        yield server.url(name)


@pytest.fixture(params=["new_file_url", "new_server_url"], ids=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    yield from opened(url)


@pytest.fixture
def other(url: str) -> Iterator[Storage]:
    """Yield the storage as another process would open it."""
    yield from opened(url)


@pytest.fixture
def file_storage(file_url: str) -> Iterator[Storage]:
    yield from opened(file_url)


@pytest.fixture
def server_storage(server_url: str) -> Iterator[Storage]:
    yield from opened(server_url)


def opened(url: str) -> Iterator[Storage]:
    storage = open_storage(url)
    yield storage
    storage.close()


@pytest.fixture
def study_id(storage: Storage) -> int:
    return storage.create_new_study([StudyDirection.MAXIMIZE], "digits")
