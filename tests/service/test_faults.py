"""Four workers on a real PostgreSQL: processes are killed and suspended, the server restarts, and nothing is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from postgresql_server import Server
from tiny import are_close, check_whole, curves, search, study_of, trials_of

from hpo.search.launch import submit
from hpo.storage import ATTEMPTS, Storage, open_storage, processes, running_trials
from hpo.storage.heartbeats import GRACE_S

DEADLINE_S = 120.0
HPO = Path(sys.executable).with_name("hpo")
# An epoch of these networks takes a few milliseconds, so a population a second or two: faults find trials in hand.
STUDY = study_of(training={"epochs": 100}, search={"trials": 50, "population": 5})


@pytest.fixture
def storage(server: Server) -> Iterator[Storage]:
    with server.database() as name:
        opened = open_storage(server.url(name))
        yield opened
        opened.close()


class Worker:
    """`hpo work` in a process of its own, its log in a file."""

    def __init__(self, url: str, log: Path) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [HPO, "work", "--until-idle", "--threads", "1", "--storage", url],
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    @property
    def pid(self) -> int:
        return self.process.pid


@pytest.fixture
def start(storage: Storage, tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    started: list[Worker] = []

    def begin() -> Worker:
        started.append(Worker(storage.location.full_url, tmp_path / f"worker{len(started)}.log"))
        return started[-1]

    yield begin
    for worker in started:
        with worker.process:
            worker.process.kill()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def holders(storage: Storage) -> Counter[int]:
    """How many trials each process holds, by its number."""
    return Counter(trial.worker.pid for trial in running_trials(storage) if trial.worker is not None)


def suspend_with_trials(worker: Worker, storage: Storage) -> None:
    """Suspend a worker at a moment at which it holds trials."""

    def suspended() -> bool:
        worker.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED, "not suspended")
        if holders(storage)[worker.pid]:
            return True
        worker.process.send_signal(signal.SIGCONT)
        return False

    wait_until(suspended, "it never held trials")


def test_four_workers_outlive_kills_a_suspension_and_a_restart_of_the_server(
    storage: Storage, server: Server, start: Callable[[], Worker], tmp_path: Path
) -> None:
    submit(STUDY, storage)
    workers = [start() for _ in range(4)]
    wait_until(lambda: len(holders(storage)) == 4, "not all four took trials")
    suspended, killed, left = workers[0], workers[1:3], workers[3]

    suspend_with_trials(suspended, storage)
    for worker in killed:
        suspend_with_trials(worker, storage)
        worker.process.kill()
        worker.process.wait()
    server.restart("immediate")
    # As if the suspension had lasted for longer than the heartbeat: an hour passes for the one that cannot beat.
    held = [trial.trial_id for trial in running_trials(storage) if trial.worker and trial.worker.pid == suspended.pid]
    hour = sa.text("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour' WHERE trial_id = ANY(:held)")
    with storage.engine.begin() as connection:
        connection.execute(hour, {"held": held})
    wait_until(lambda: holders(storage)[suspended.pid] == 0, "its trials were not taken back")
    suspended.process.send_signal(signal.SIGCONT)

    for worker in (suspended, left):
        assert worker.process.wait(DEADLINE_S) == 0, worker.log.read_text()
    trials = trials_of(storage)
    check_whole(trials, STUDY.search.trials)
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert running_trials(storage) == []
    assert processes(storage) == []
    undisturbed = open_storage(f"sqlite:///{tmp_path}/undisturbed.db")
    search(STUDY, undisturbed)
    assert are_close(curves(trials), curves(trials_of(undisturbed)))
    undisturbed.close()
    # Every fault hit something, and is kept with the trials that it hit.
    ends = [str(each["reason"]) for trial in trials for each in trial.system_attrs.get(ATTEMPTS, [])]
    pids = {int(pid) for end in ends for pid in re.findall(r"process (\d+)", end)}
    assert pids == {suspended.pid, *(worker.pid for worker in killed)}
    assert any(f"no sign of life from process {suspended.pid}" in end and f"{GRACE_S:g} s" in end for end in ends)
    log = left.log.read_text()
    assert "trying again" in log
    assert "Traceback" not in log + suspended.log.read_text()
