"""Fixtures: storages with studies, and the dashboard served from a thread of this process."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from idle_processes import IdleProcess
from optuna.distributions import FloatDistribution
from postgresql_server import Server as DatabaseServer

from hpo.service.dashboard import figures
from hpo.service.dashboard.dashboard import Server
from hpo.storage import Storage, open_storage

EPOCHS = 3
SPACE = {"lr": FloatDistribution(1e-6, 1e-1, log=True), "dropout": FloatDistribution(0.0, 0.6)}


@pytest.fixture
def storage(tmp_path: Path, blank_db: Path) -> Iterator[Storage]:
    opened = open_storage(f"sqlite:///{shutil.copy(blank_db, tmp_path / 'hpo.db')}")
    yield opened
    opened.close()


@pytest.fixture
def open_again(storage: Storage) -> Iterator[Callable[[], Storage]]:
    """Return a function that opens the same storage, as another process does."""
    opened: list[Storage] = []

    def another() -> Storage:
        opened.append(open_storage(storage.location.full_url))
        return opened[-1]

    yield another
    for each in opened:
        each.close()


@pytest.fixture
def idle_process() -> Iterator[Callable[[], IdleProcess]]:
    """Return a function that starts a process whose identity a worker of the test uses."""
    started: list[IdleProcess] = []

    def start_idle() -> IdleProcess:
        started.append(IdleProcess())
        return started[-1]

    yield start_idle
    for each in started:
        each.kill()


@pytest.fixture
def server_storage(server: DatabaseServer) -> Iterator[Storage]:
    """Create a storage on the PostgreSQL server that all tests share."""
    with server.database() as name:
        opened = open_storage(server.url(name))
        yield opened
        opened.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Any]]:
    """Start a command as a process, which is killed at the end of the test."""
    from worker_threads import processes

    with processes() as started:
        yield started


@pytest.fixture
def stored(storage: Storage) -> Callable[..., optuna.Study]:
    """Store a study of hpo with `count` trials, each with a learning curve."""

    def store(trials: int = 12, name: str = "digits") -> optuna.Study:
        made = optuna.create_study(storage=storage, study_name=name, direction="maximize")
        made.set_user_attr("hpo:study", "{}")
        templates = [
            optuna.trial.create_trial(
                value=0.5 + number % 97 / 200,
                params={"lr": 10.0 ** (-1 - number % 5), "dropout": number % 6 / 10},
                distributions=SPACE,
                intermediate_values={epoch: 0.4 + epoch / 100 for epoch in range(1, EPOCHS + 1)},
            )
            for number in range(trials)
        ]
        storage.create_trials(made._study_id, templates)
        return made

    return store


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the figures off, which take longer than training small studies: see test_dashboard_figures.py."""
    monkeypatch.setattr(figures, "update_figures", lambda *_: None)


@pytest.fixture
def served(storage: Storage, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Serve the storage, its artifacts in `artifacts`, and return the address."""
    running: list[tuple[Server, threading.Thread]] = []

    def serve(host: str = "127.0.0.1", **options: Any) -> str:
        server = Server(storage, tmp_path / "artifacts", host, 0, **options)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        return server.url

    yield serve
    for server, thread in running:
        server.stop()
        thread.join(timeout=30)
        server.close()
