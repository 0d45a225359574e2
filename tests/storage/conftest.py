"""What the storage's tests share: a storage in a fresh SQLite file or PostgreSQL database, and a study in it.

Every test that takes `url` or `storage` runs on both; those about files take `file_url` and `file_storage`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from lives import Copy
from optuna.study import StudyDirection
from postgresql_server import Server

from hpo.storage import Storage, open_storage


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/hpo.db"


@pytest.fixture
def server_url(server: Server) -> Iterator[str]:
    with server.database() as name:
        yield server.url(name)


@pytest.fixture(params=["file_url", "server_url"], ids=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    """Copy a storage with nothing in it, and give the copy's URL: making one takes longer than a test."""
    if request.param == "sqlite":
        blank = tmp_path_factory.mktemp("blank") / "blank.db"
        open_storage(f"sqlite:///{blank}").close()
        yield lambda: nullcontext(f"sqlite:///{shutil.copy(blank, tmp_path_factory.mktemp('copy') / 'hpo.db')}")
        return
    server = request.getfixturevalue("server")

    @contextmanager
    def database() -> Iterator[str]:
        with server.database(template) as name:
            yield server.url(name)

    with server.database() as template:
        open_storage(server.url(template)).close()
        yield database


@pytest.fixture
def blank_url(copy: Copy) -> Iterator[str]:
    """A storage with its tables and nothing in them, on both databases: the `url` of modules with many short tests."""
    with copy() as url:
        yield url


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    yield from opened(url)


@pytest.fixture
def other(url: str) -> Iterator[Storage]:
    """The storage as another process has it."""
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
