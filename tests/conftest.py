"""What tests of several rooms share: a real PostgreSQL, a file with tables, and how much to try."""

from __future__ import annotations

import gc
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from postgresql_server import Server

from hpo.storage import open_storage

# An example that is slow on a noisy machine is no failure.
settings.register_profile("noisy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("noisy")

# A shell ignores SIGINT for what it puts into the background, and all processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What has been imported by now stays: each search for garbage would go through all of it, a tenth of all time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    # Not in pytest's folder, which belongs to its user alone.
    with tempfile.TemporaryDirectory(prefix="hpo-postgresql-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder))
        yield server
        server.stop("immediate")


@pytest.fixture(scope="session")
def blank_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a storage's tables and nothing in them: to copy it is quicker than to make them."""
    file = tmp_path_factory.mktemp("blank") / "hpo.db"
    open_storage(f"sqlite:///{file}").close()
    return file


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small train fastest on one thread, above all where other processes want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, pytest.param(5, marks=pytest.mark.slow)], ids=["few", "many"])
def times(request: pytest.FixtureRequest) -> int:
    """How many times as many examples to try as are tried before each commit."""
    return int(request.param)
