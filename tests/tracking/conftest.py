"""Fixtures of the trackers: a searched study of 16 trials, and a real MLflow server on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from deadlines import deadline, wait_for
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from postgresql_server import free_port
from tiny import tree

import hpo
from hpo.search.study_records import CURVE
from hpo.storage import FAILURE_REASON, load_study, open_storage

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "WANDB_MODE": "offline",
    "NO_PROXY": "127.0.0.1",
}
"""Settings of the trackers: nothing leaves this machine."""

LR = FloatDistribution(1e-3, 1.0, log=True)


def unfinished(state: TrialState, value: float | None, reason: dict[str, str]) -> FrozenTrial:
    """Return a trial that ended after two of four epochs."""
    metrics = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    curve = {metric: [0.5, 0.25] for metric in metrics}
    return create_trial(
        state=state,
        value=value,
        params={"lr": 0.5},
        distributions={"lr": LR},
        user_attrs={"seed": 7, **reason},
        system_attrs={CURVE: curve},
    )


@pytest.fixture(scope="session", autouse=True)
def quiet() -> Iterator[None]:
    """Keep the trackers from connecting to other machines, and torch to one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as environment:
        for name, value in QUIET.items():
            environment.setenv(name, value)
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        environment.delenv("HPO_STORAGE", raising=False)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the storage of a study of 16 trials: complete, pruned, and failed ones, and the weights of five."""
    file = tmp_path_factory.mktemp("searched") / "hpo.db"
    study = tree(
        training={"epochs": 4, "keep": "best"},
        search={"trials": 14, "sampler": "random", "population": 14, "pruner": "none"},
    )
    hpo.launch(study, storage=f"sqlite:///{file}", device="cpu", progress="quiet")
    stored = load_study(open_storage(f"sqlite:///{file}"), "tiny")
    stored.add_trial(unfinished(TrialState.PRUNED, 0.25, {}))
    stored.add_trial(unfinished(TrialState.FAIL, None, {FAILURE_REASON: "the loss is NaN"}))
    return file


@pytest.fixture
def study(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hpo.StoredStudy:
    """Return a copy of the searched study, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(searched.parent, tmp_path, dirs_exist_ok=True)
    return hpo.load("tiny", storage="sqlite:///hpo.db")


@pytest.fixture(scope="session")
def mlflow_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Start an MLflow server for all tests; return its port."""
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    options = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([*command, *options], stdout=log, stderr=log, env={**os.environ}, cwd=folder)
    try:
        wait_for(lambda: _answers(port) or None, lambda: (folder / "log").read_text(), deadline(120))
        yield port
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
