"""Fixtures of several test folders: a PostgreSQL server, an empty storage file, numbers of threads and examples."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from compiled_statements import share_compiled_statements
from hypothesis import HealthCheck, settings
from postgresql_server import Server

from hpo.storage import open_storage

# A slow example is no failure: the machine may be busy.
settings.register_profile("thorough", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("thorough"), max_examples=40)

# A shell ignores SIGINT in its background processes, and the processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Idle threads of torch spin, which doubled the processor time of the tests of training, here and in processes.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

share_compiled_statements()


def pytest_configure(config: pytest.Config) -> None:
    """Try 40 examples where a test sets no number, or Hypothesis' 100 with the slow tests."""
    settings.load_profile("quick" if "not slow" in config.option.markexpr else "thorough")


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection, which takes a tenth of the time otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Start a PostgreSQL server for all tests."""
    # Not in pytest's folder, which only its user can read.
    with tempfile.TemporaryDirectory(prefix="hpo-postgresql-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder))
        yield server
        server.stop("immediate")


@pytest.fixture(scope="session")
def blank_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SQLite file with empty tables: copying it is faster than creating the tables."""
    file = tmp_path_factory.mktemp("blank") / "hpo.db"
    open_storage(f"sqlite:///{file}").close()
    return file


@pytest.fixture(autouse=True)
def _one_thread_as_before() -> Iterator[None]:
    """Undo a test's change of torch's number of threads."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _user_code_is_forgotten(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Remove the modules that a test wrote and imported: the next test may write one of the same name."""
    before = set(sys.modules)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    for name in sys.modules.keys() - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(folder):
            del sys.modules[name]


@pytest.fixture(params=[1, pytest.param(5, marks=pytest.mark.slow)], ids=["few", "many"])
def times(request: pytest.FixtureRequest) -> int:
    """Return the factor for the number of examples: 1 before each commit, 5 in the slow tests."""
    return int(request.param)
