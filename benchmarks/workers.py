"""Benchmark of several workers: trials a second together, and the load that one PostgreSQL can take.

    make bench-workers                        (5 minutes)
    python benchmarks/workers.py --rounds 1 --study studies/chapter6-search.toml --trials 64

Two tables. The first: trials a second of 1, 2 and 4 processes, and of 2 workers on Ray, on one study, in turn in every
round, on a PostgreSQL with fsync. The time runs from the start of the first trial to the end of the last, without the
start of the processes. The second: the writes of a population, counted by the server, and the speed at which processes
without training store populations. Server and clients share this machine's cores, so a separate server would be faster.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from hpo.search.study_records import CURVE
from hpo.storage import Storage, TrialResult, load_study, open_storage

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "storage"))
from postgresql_server import Server

ROOT = Path(__file__).parents[1]
HPO = str(Path(sys.executable).with_name("hpo"))
CREWS = {
    "1 process": ["--workers", "1"],
    "2 processes": ["--workers", "2"],
    "4 processes": ["--workers", "4"],
    "Ray, 2 workers": ["--ray", "--workers", "2"],
}
WRITERS = (1, 2, 4, 8)
EPOCHS, POPULATION, WRITING_S = 50, 32, 8.0
EPOCH_S = 0.1
"""Seconds of an epoch in the calculation: what 32 members of the chapter-6 network take on two cores."""

SPACE: dict[str, BaseDistribution] = {
    "lr": optuna.distributions.FloatDistribution(1e-6, 1e-1, log=True),
    "weight_decay": optuna.distributions.FloatDistribution(1e-8, 1e-2, log=True),
}
CURVES = {name: [0.5] * EPOCHS for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")}


def rate(url: str, study: str, trials: int, options: list[str]) -> float:
    """Launch the study on an empty storage; return the trials a second between the first start and the last end."""
    command = [HPO, "launch", study, "--trials", str(trials), "--name", "bench", "--quiet", "--storage", url, *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    storage = open_storage(url)
    found = load_study(storage, "bench").get_trials(deepcopy=False)
    storage.close()
    starts = [trial.datetime_start for trial in found if trial.datetime_start]
    ends = [trial.datetime_complete for trial in found if trial.datetime_complete]
    assert len(ends) == trials, "the study did not come to its end"
    return trials / (max(ends) - min(starts)).total_seconds()


def store_population(storage: Storage, study_id: int) -> None:
    """Store the rows of a population without training."""
    params = {"lr": 1e-3, "weight_decay": 1e-4}
    template = create_trial(state=TrialState.RUNNING, params=params, distributions=SPACE, user_attrs={"seed": 1})
    ids = [trial._trial_id for trial in storage.create_trials(study_id, [template] * POPULATION)]
    for epoch in range(1, EPOCHS + 1):
        storage.report(epoch, dict.fromkeys(ids, 0.5))
    storage.finish([TrialResult(i, TrialState.COMPLETE, (0.5,), system_attrs={CURVE: CURVES}) for i in ids])


def write(url: str, study_id: int, ready: Callable[[], int], counts: multiprocessing.SimpleQueue[int]) -> None:
    """Store populations for WRITING_S, starting when all writers are ready; return their number."""
    storage = open_storage(url)
    store_population(storage, study_id)
    ready()
    count, deadline = 0, time.perf_counter() + WRITING_S
    while time.perf_counter() < deadline:
        store_population(storage, study_id)
        count += 1
    counts.put(count)


@dataclass
class Load:
    """Throughput of the writers: populations a second, and the server's counts for one population."""

    populations: float
    transactions: float
    rows: float


def load(server: Server, writers: int) -> Load:
    spawn = multiprocessing.get_context("spawn")
    with server.database() as name:
        storage = open_storage(server.url(name))
        study_id = storage.create_new_study([StudyDirection.MAXIMIZE], "bench")
        ready, counts = spawn.Barrier(writers + 1), spawn.SimpleQueue()
        arguments = (server.url(name), study_id, ready.wait, counts)
        processes = [spawn.Process(target=write, args=arguments) for _ in range(writers)]
        for process in processes:
            process.start()
        ready.wait()
        before, start = statistics_of(server, name), time.perf_counter()
        for process in processes:
            process.join()
            assert process.exitcode == 0, "a writer failed"
        seconds = time.perf_counter() - start
        stored = sum(counts.get() for _ in processes)
        after = statistics_of(server, name)
        storage.close()
    transactions, rows = (last - first for first, last in zip(before, after, strict=True))
    return Load(stored / seconds, transactions / stored, rows / stored)


def statistics_of(server: Server, name: str) -> tuple[int, int]:
    """Return the server's counts for a database: transactions, and rows written."""
    columns = "xact_commit + xact_rollback, tup_inserted + tup_updated + tup_deleted"
    ((transactions, rows),) = server.sql(f"SELECT {columns} FROM pg_stat_database WHERE datname = '{name}'")
    return int(transactions), int(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--study", default=str(ROOT / "studies" / "digits.toml"))
    parser.add_argument("--trials", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hpo-bench-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = Server(Path(folder), durable=True)
        version = server.sql("SHOW server_version")[0][0]
        print(f"{platform.machine()}, {os.cpu_count()} cores, PostgreSQL {version} with fsync, {options.study}")
        rates: dict[str, list[float]] = {name: [] for name in CREWS}
        for _ in range(options.rounds):
            for name, crew in CREWS.items():
                with server.database() as made:
                    rates[name].append(rate(server.url(made), options.study, options.trials, crew))
        print(f"\n{options.trials} trials, medians of {options.rounds} rounds in turn")
        print(f"{'':16}{'trials/s':>10}{'times 1 process':>18}")
        one = statistics.median(rates["1 process"])
        for name, found in rates.items():
            print(f"{name:16}{statistics.median(found):10.1f}{statistics.median(found) / one:18.2f}")

        loads = {writers: load(server, writers) for writers in WRITERS}
        print(f"\npopulations of {POPULATION} trials with {EPOCHS} epochs, stored by processes that train nothing")
        print(f"{'writers':16}{'populations/s':>14}{'transactions/s':>16}{'rows/s':>10}{'ms an epoch':>13}")
        for writers, each in loads.items():
            epoch_ms = 1000 * writers / each.populations / EPOCHS
            print(
                f"{writers:<16}{each.populations:14.2f}{each.transactions * each.populations:16.0f}"
                f"{each.rows * each.populations:10.0f}{epoch_ms:13.2f}"
            )
        server.stop()
    most = max(loads.values(), key=lambda each: each.populations)
    needed = 1 / (EPOCHS * EPOCH_S)
    print(
        f"\na population is {most.transactions:.0f} transactions and {most.rows:.0f} rows: {POPULATION} rows an epoch"
    )
    print(
        f"a worker whose epochs take {EPOCH_S:g} s stores {needed:.2f} populations a second: "
        f"this server carries {most.populations / needed:.0f} of them"
    )


if __name__ == "__main__":
    main()
