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
import torch
from command import Outcome, Running
from study_files import TINY

from hpo.cli import main
from hpo.training.stack import Stack


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with `tiny.toml`."""
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    for name in ("HPO_STORAGE", "HPO_DATA_DIR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Train on one thread, here and in processes: on a busy machine, threads of so small networks wait long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def hpo(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process, as the installed script does."""

    def run(*args: str) -> Outcome:
        status = main(args)
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def left_by(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The storage that quiet commands leave, which run once a session."""

    @cache
    def run(*commands: str) -> Path:
        made = tmp_path_factory.mktemp("left")
        (made / "tiny.toml").write_text(TINY)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(made)
            for command in commands:
                assert main(shlex.split(command)) == 0
        return made / "hpo.db"

    return run


@pytest.fixture
def after(left_by: Callable[..., Path], folder: Path) -> Callable[..., None]:
    """Have the storage as these commands leave it: they are not run again for each test."""

    def copy(*commands: str) -> None:
        with closing(sqlite3.connect(left_by(*commands))) as made, closing(sqlite3.connect(folder / "hpo.db")) as own:
            made.backup(own)  # and not a copy of the file: this process may still have it open

    return copy


@pytest.fixture
def launched(after: Callable[..., None]) -> None:
    """The study of `tiny.toml`, searched."""
    after("launch tiny.toml --quiet")


@pytest.fixture
def signal_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have this process get a signal as an epoch begins, counted from 1 over all populations of the next command."""
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
    """Start a command, or a script, as a process of its own; whatever still runs at the end is killed."""
    started: list[Running] = []

    def start(*args: str, script: str = "", **environment: str) -> Running:
        started.append(Running(folder, args, environment, script))
        return started[-1]

    yield start
    for running in started:
        running.end()
