"""Benchmark: what live tracking to a real MLflow server costs the training, on one machine.

    nice -n -8 python benchmarks/tracking.py [--seconds 300] [--epochs 40] [--population 16]

One launch of a long study with `--track mlflow`, on one thread. Chunks of two epochs of the same population are equal
work. In every other chunk the process that follows the study is stopped (SIGSTOP), and so the server is idle; in the
next one it goes on. So the chunks "with" tracking carry twice its work. Follower and server run on the same machine as
the training. What comes before the follower's first run, such as its import of MLflow, is not counted, nor is the first
chunk of a population.
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
from statistics import fmean, median, quantiles, stdev
from typing import Any

import psutil
import torch

import hpo
from hpo.search.events import EpochEnded, Event, Note, PopulationEnded, PopulationStarted

PORT = 5917
START_S = 600.0
WITHOUT, WITH = "without", "with"
CHUNK = 2  # epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="measure for so many seconds")
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
    """Display that stops the follower in every other chunk, and measures the seconds of each."""

    def __init__(self, uri: str, stop: threading.Event, seconds: float) -> None:
        self.wall: Times = {WITHOUT: [], WITH: []}
        self.cpu: Times = {WITHOUT: [], WITH: []}
        self.last = time.perf_counter()
        self._uri, self._stop, self._seconds = uri, stop, seconds
        self._follower: psutil.Process | None = None
        self._start, self._begin = 0.0, (0.0, 0.0)

    def __call__(self, event: Event) -> None:
        """End a chunk, and begin the next."""
        match event:
            case Note(level="warning"):
                raise SystemExit(event.text)
            case PopulationStarted() if self._follower is None and runs(self._uri):
                children = psutil.Process().children()
                (self._follower,) = [each for each in children if "hpo.tracking" in str(each.cmdline())]
                self._start = time.perf_counter()
            case EpochEnded(epoch=epoch) if self._follower is not None and epoch % CHUNK == 0:
                self._alternate(self._follower, epoch)
            case PopulationEnded():
                self.last = time.perf_counter()

    def _alternate(self, follower: psutil.Process, epoch: int) -> None:
        which = WITH if epoch // CHUNK % 2 else WITHOUT
        if epoch > CHUNK:
            self.wall[which].append(time.perf_counter() - self._begin[0])
            self.cpu[which].append(time.process_time() - self._begin[1])
        if which == WITH:
            follower.suspend()
        else:
            follower.resume()
            if time.perf_counter() - self._start > self._seconds:
                self._stop.set()
        self._begin = time.perf_counter(), time.process_time()


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
    """Print a table: seconds a chunk, and the ratio with to without, with its 95% interval."""
    print("| seconds a chunk | tracking | chunks | mean | minimum | quartiles | ratio of means | of medians |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, times in found.items():
        pairs = list(zip(times[WITH], times[WITHOUT], strict=False))
        error = 1.96 * stdev(a - b for a, b in pairs) / len(pairs) ** 0.5 / fmean(times[WITHOUT])
        for which, values in times.items():
            low, middle, high = quantiles(values, n=4)
            ratios = " | "
            if which == WITH:
                ratio = fmean(values) / fmean(times[WITHOUT])
                ratios = f"{ratio:.3f} ± {error:.3f} | {middle / median(times[WITHOUT]):.3f}"
            numbers = f"{fmean(values):.3f} | {min(values):.3f} | {low:.3f}, {middle:.3f}, {high:.3f}"
            print(f"| {kind} | {which} | {len(values)} | {numbers} | {ratios} |")


if __name__ == "__main__":
    main()
