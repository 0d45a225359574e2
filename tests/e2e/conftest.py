"""The command line as a user has it: in a folder of its own, with the default storage and no data but the digits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from command import Outcome, Running

from hpo.cli import main

STUDY = """\
name = "tiny"
description = "a study of the tests"

[data]
dataset = "digits"
train_size = 200

[network]
kind = "mlp"
hidden = [16]
dropout = { low = 0.0, high = 0.5 }

[optimizer]
lr = { low = 1e-3, high = 0.5, log = true }

[training]
epochs = 2
batch_size = 40
precision = "float32"

[search]
trials = 6
sampler = "random"
population = 4
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with `tiny.toml`."""
    (tmp_path / "tiny.toml").write_text(STUDY)
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


@pytest.fixture
def process(folder: Path) -> Iterator[Callable[..., Running]]:
    """Start the installed command as a process of its own; whatever still runs at the end is killed."""
    started: list[Running] = []

    def start(*args: str, **environment: str) -> Running:
        started.append(Running(folder, args, environment))
        return started[-1]

    yield start
    for running in started:
        running.end()
