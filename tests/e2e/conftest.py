"""Fixtures of the command line: a folder of its own with a study file, the default storage, and only the digits."""

from __future__ import annotations

import shlex
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path

import pytest
from command import Outcome, Running
from study_files import TINY

from hpo.cli import main
from hpo.training.stack import Stack


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that commands run in, with `tiny.toml`."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    for name in ("HPO_STORAGE", "HPO_DATA_DIR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def hpo(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Return a function that runs a command in this process, as the installed script does."""

    def run(*args: str) -> Outcome:
        status = main(args)
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def storage_after(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that runs quiet commands, once a session, and returns their storage."""

    @cache
    def run(*commands: str) -> Path:
        made = tmp_path_factory.mktemp("storage")
        (made / "tiny.toml").write_text(TINY)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(made)
            for command in commands:
                assert main(shlex.split(command)) == 0
        return made / "hpo.db"

    return run


@pytest.fixture
def after(storage_after: Callable[..., Path], folder: Path) -> Callable[..., None]:
    """Return a function that copies the storage of these commands, which are not run again for each test."""

    def copy(*commands: str) -> None:
        with (
            closing(sqlite3.connect(storage_after(*commands))) as made,
            closing(sqlite3.connect(folder / "hpo.db")) as own,
        ):
            made.backup(own)  # not a copy of the file, which this process may still have open

    return copy


@pytest.fixture
def launched(after: Callable[..., None]) -> None:
    """Launch the study of `tiny.toml`."""
    after("launch tiny.toml --quiet")


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that sends this process a signal at the start of an epoch.

    Epochs are counted from 1 over all populations of the next command.
    """
    train = Stack.epoch

    def arrange(count: int, number: signal.Signals = signal.SIGINT) -> None:
        left = iter(range(count - 1, -1, -1))

        def epoch(stack: Stack, epoch: int) -> object:
            if next(left, None) == 0:
                signal.raise_signal(number)
            return train(stack, epoch)

        monkeypatch.setattr(Stack, "epoch", epoch)

    return arrange


@pytest.fixture
def process(folder: Path) -> Iterator[Callable[..., Running]]:
    """Return a function that starts a command, or a script, as a process, killed at the end of the test."""
    started: list[Running] = []

    def start(*args: str, script: str = "", **environment: str) -> Running:
        started.append(Running(folder, args, environment, script))
        return started[-1]

    yield start
    for running in started:
        running.end()
