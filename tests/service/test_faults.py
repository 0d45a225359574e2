"""Test of four workers on PostgreSQL while processes are killed and suspended and the server restarts."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from deadlines import wait_for
from optuna.trial import TrialState
from postgresql_server import Server
from tiny import are_close, check_whole, curves, search, study_of, trials_of
from worker_threads import Process

from hpo.search.launch import submit
from hpo.storage import ATTEMPTS, Storage, open_storage, registered_workers, running_trials
from hpo.storage.heartbeats import HEARTBEAT_TIMEOUT_S

# An epoch of these networks takes a few milliseconds, so a population a second or two: faults find trials in hand.
STUDY = study_of(training={"epochs": 100}, search={"trials": 50, "population": 5, "pruner": "none"})


@pytest.fixture
def storage(server_storage: Storage) -> Storage:
    return server_storage


def holders(storage: Storage) -> Counter[int]:
    """Return the number of trials that each process has claimed."""
    return Counter(trial.worker.pid for trial in running_trials(storage) if trial.worker is not None)


def suspend_with_trials(worker: Process, storage: Storage) -> None:
    """Suspend a worker while it has claimed trials."""

    def suspended() -> bool:
        worker.signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(worker.process.pid).status() == psutil.STATUS_STOPPED)
        if holders(storage)[worker.process.pid]:
            return True
        worker.signal(signal.SIGCONT)
        return False

    wait_for(suspended)


@pytest.mark.slow
def test_four_workers_survive_kills_a_suspension_and_a_server_restart(
    storage: Storage, server: Server, start: Callable[..., Process], tmp_path: Path
) -> None:
    submit(STUDY, storage)
    url = storage.location.full_url
    workers = [start("work", "--until-idle", "--threads", "1", "--storage", url) for _ in range(4)]
    wait_for(lambda: len(holders(storage)) == 4)
    suspended, killed, left = workers[0], workers[1:3], workers[3]

    suspend_with_trials(suspended, storage)
    for worker in killed:
        suspend_with_trials(worker, storage)
        worker.process.kill()
        worker.status()
    server.restart("immediate")
    pid = suspended.process.pid
    # As if the suspension had lasted for longer than the heartbeat: an hour passes for the one that cannot beat.
    held = [trial.trial_id for trial in running_trials(storage) if trial.worker and trial.worker.pid == pid]
    hour = sa.text("UPDATE trial_heartbeats SET heartbeat = heartbeat - interval '1 hour' WHERE trial_id = ANY(:held)")
    with storage.engine.begin() as connection:
        connection.execute(hour, {"held": held})
    wait_for(lambda: holders(storage)[pid] == 0)
    suspended.signal(signal.SIGCONT)

    for worker in (suspended, left):
        assert worker.status() == 0, worker.err
    trials = trials_of(storage)
    check_whole(trials, STUDY.search.trials)
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert running_trials(storage) == []
    assert registered_workers(storage) == []
    undisturbed = open_storage(f"sqlite:///{tmp_path}/undisturbed.db")
    search(STUDY, undisturbed)
    assert are_close(curves(trials), curves(trials_of(undisturbed)))
    undisturbed.close()
    # Every fault hit something, and is kept with the trials that it hit.
    ends = [str(each["reason"]) for trial in trials for each in trial.system_attrs.get(ATTEMPTS, [])]
    found = {int(number) for end in ends for number in re.findall(r"process (\d+)", end)}
    assert found == {pid, *(worker.process.pid for worker in killed)}
    assert any(f"no heartbeat from process {pid}" in end and f"{HEARTBEAT_TIMEOUT_S:g} s" in end for end in ends)
    assert any("trying again" in line for line in left.err)
    assert "Traceback" not in "\n".join(left.err + suspended.err)
