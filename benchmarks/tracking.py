"""Benchmark: what live tracking to a real MLflow server costs the training, on one machine.

    nice -n -8 python benchmarks/tracking.py [--seconds 360] [--epochs 40] [--population 16]

One launch of a long study with `--track mlflow`, on one thread. Its populations are equal work. In every other one the
process that follows the study is stopped (SIGSTOP), and so the server is idle; in the next one it goes on, and writes
the trials of both. So the populations "with" tracking carry twice its work. Follower and server run on the same machine
as the training. The first populations, while the follower imports MLflow, are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

import psutil
import torch

import hpo
from hpo.search.events import Event, Note, PopulationEnded, PopulationStarted

PORT = 5917
START_S = 180.0
WITHOUT, WITH = "without", "with"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=360.0, help="measure for so many seconds")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--population", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= {"DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="hpo-tracking-") as folder, mlflow_server(Path(folder)) as uri:
        measure(Path(folder), uri, options)


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Start an MLflow server with an SQLite file; return its URI."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    files = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("w") as log:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen([*command, *files], stdout=log, stderr=log, env=environment)
    try:
        end = time.monotonic() + START_S
        while not answers():
            if time.monotonic() > end:
                raise SystemExit(f"the MLflow server does not answer:\n{(folder / 'log').read_text()}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{PORT}"
    finally:
        server.terminate()
        server.wait()


def answers() -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
            return True
    except OSError:
        return False


Times = dict[str, list[float]]


class Alternation:
    """Display that stops the follower in every other population, and measures the seconds of each."""

    def __init__(self, uri: str, stop: threading.Event, seconds: float) -> None:
        self.wall: Times = {WITHOUT: [], WITH: []}
        self.cpu: Times = {WITHOUT: [], WITH: []}
        self.last = time.perf_counter()
        self._uri, self._stop, self._seconds = uri, stop, seconds
        self._follower: psutil.Process | None = None
        self._populations, self._begin = 0, (0.0, 0.0)
        self._start = 0.0

    def __call__(self, event: Event) -> None:
        """Start or end the measurement of a population."""
        match event:
            case Note(level="warning"):
                raise SystemExit(event.text)
            case PopulationStarted() if self._is_ready():
                assert self._follower is not None
                self._follower.resume() if self._populations % 2 else self._follower.suspend()
                self._begin = time.perf_counter(), time.process_time()
            case PopulationEnded() if self._follower is not None and self._begin[0]:
                self.last = time.perf_counter()
                which = WITH if self._populations % 2 else WITHOUT
                self.wall[which].append(self.last - self._begin[0])
                self.cpu[which].append(time.process_time() - self._begin[1])
                self._populations += 1
                if self.last - self._start > self._seconds and which == WITH:
                    self._stop.set()

    def _is_ready(self) -> bool:
        """Return whether the follower has written its first runs."""
        if self._follower is None and runs(self._uri):
            (self._follower,) = [each for each in psutil.Process().children() if "hpo.tracking" in str(each.cmdline())]
            self._start = time.perf_counter()
        return self._follower is not None


def runs(uri: str) -> int:
    """Return the number of runs on the server."""
    query = json.dumps({"experiment_ids": ["1"], "max_results": 50000}).encode()
    request = urllib.request.Request(f"{uri}/api/2.0/mlflow/runs/search", query, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return len(json.load(answer).get("runs", []))
    except OSError:  # there is no such experiment yet
        return 0


def measure(folder: Path, uri: str, options: argparse.Namespace) -> None:
    """Launch the study, and print the table."""
    stop = threading.Event()
    alternation = Alternation(uri, stop, options.seconds)
    study: dict[str, Any] = {
        "name": "tracking",
        "data": {"dataset": "digits"},
        "network": {"kind": "mlp", "hidden": [100, 100, 100], "batch_norm": True},
        "optimizer": {"kind": "sgd", "lr": {"low": 1e-3, "high": 1e-1, "log": True}},
        "training": {"epochs": options.epochs, "batch_size": 50, "precision": "float32"},
        "search": {"trials": 100_000, "population": options.population, "pruner": "none", "sampler": "random"},
    }
    storage = f"sqlite:///{folder}/hpo.db"
    launched = hpo.launch(study, storage=storage, device="cpu", progress=alternation, track=f"mlflow:{uri}", stop=stop)
    flushed = time.perf_counter() - alternation.last
    report({"wall": alternation.wall, "CPU of the launch": alternation.cpu})
    ended = [trial for trial in launched.trials() if trial.state == "complete"]
    print(f"{runs(uri)} runs of {len(ended)} trials; the launch ended {flushed:.1f} s after the last epoch")


def report(found: dict[str, Times]) -> None:
    """Print a table: seconds a population, and the ratio with to without."""
    print("| seconds a population | tracking | populations | mean | minimum | quartiles | ratio of means | of minima |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, times in found.items():
        for which, values in times.items():
            low, middle, high = quantiles(values, n=4)
            ratios = " | "
            if which == WITH:
                other = times[WITHOUT]
                ratios = f"{fmean(values) / fmean(other):.3f} | {min(values) / min(other):.3f}"
            spread = f"{low:.2f}, {middle:.2f}, {high:.2f}"
            print(
                f"| {kind} | {which} | {len(values)} | {fmean(values):.3f} | {min(values):.3f} | {spread} | {ratios} |"
            )


if __name__ == "__main__":
    main()
