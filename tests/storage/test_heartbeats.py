"""Heartbeats: which trials are orphaned, how they are requeued, and that a late heartbeat protects a claim."""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import forks
import psutil
import pytest
import sqlalchemy as sa
from deadlines import deadline, wait_for
from forks import Fork
from idle_processes import IdleProcess, age_heartbeats
from optuna_records import COMPLETE, FAIL, MAXIMIZE, RUNNING, WAITING, ids, plain, running, states, texts
from postgresql_server import Server

from hpo.storage import (
    ATTEMPTS,
    FAILURE_REASON,
    RunningTrial,
    Storage,
    TrialResult,
    attempt_record,
    connections,
    heartbeats,
    load_study,
    open_storage,
    requeue_orphaned,
    running_trials,
)
from hpo.storage.sql.rows import HEARTBEATS
from hpo.storage.sql.statements import WORKER
from hpo.storage.workers import Worker, has_ended, this_worker


@pytest.fixture
def idle_process() -> Iterator[IdleProcess]:
    idle_process = IdleProcess()
    yield idle_process
    idle_process.kill()


def created(storage: Storage, study_id: int, count: int = 1) -> list[int]:
    return ids(storage.create_trials(study_id, [running() for _ in range(count)]))


def lost(storage: Storage) -> list[RunningTrial]:
    return [trial for trial in running_trials(storage) if trial.orphaned]


def beating(storage: Storage) -> dict[int, Any]:
    """Return the stored heartbeats by trial id."""
    with storage.engine.connect() as connection:
        found = connection.execute(sa.select(HEARTBEATS.c.trial_id, HEARTBEATS.c.heartbeat))
        return {row.trial_id: row.heartbeat for row in found}


class Child:
    """A process that claims two trials in its own storage object, and sends heartbeats on command."""

    SCRIPT = """
import sys
from optuna.trial import TrialState, create_trial
from hpo.storage import open_storage

storage = open_storage(sys.argv[1])
storage.create_trials(int(sys.argv[2]), [create_trial(state=TrialState.RUNNING)] * 2)
print("claimed", flush=True)
for line in sys.stdin:
    storage.refresh_heartbeats()
    print("beaten", flush=True)
"""

    def __init__(self, storage: Storage, study_id: int) -> None:
        given = [storage.location.full_url, str(study_id)]
        self.process = Fork(given, script=self.SCRIPT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def hear(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"{line}\n"

    def ask_to_beat(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("beat\n")
        self.process.stdin.flush()

    def wait_to_be(self, status: str) -> None:
        wait_for(lambda: psutil.Process(self.process.pid).status() == status)


@pytest.fixture
def child(storage: Storage, study_id: int) -> Iterator[Child]:
    child = Child(storage, study_id)
    with child.process:
        child.hear("claimed")
        yield child
        child.process.kill()


# --- Processes ---


def test_a_process_is_distinguished_from_earlier_ones_with_its_pid(idle_process: IdleProcess) -> None:
    worker = idle_process.worker("cuda:1")
    assert not has_ended(this_worker())
    assert not has_ended(worker)
    assert has_ended(replace(worker, started=worker.started - 3))
    assert has_ended(replace(worker, started=worker.started + 3))
    assert has_ended(replace(this_worker(), started=0.0))
    assert Worker.from_json(worker.to_json()) == worker
    assert str(worker) == f"process {idle_process.process.pid} on {worker.host}"
    idle_process.kill()
    assert has_ended(worker)


def test_a_zombie_process_has_ended(idle_process: IdleProcess) -> None:
    worker = idle_process.worker()
    idle_process.process.kill()
    wait_for(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE)
    assert has_ended(worker)


def test_a_worker_in_another_place_cannot_be_looked_up(idle_process: IdleProcess) -> None:
    elsewhere = replace(idle_process.worker(), place="elsewhere")
    assert not has_ended(elsewhere)
    idle_process.kill()
    assert not has_ended(elsewhere)


# --- Orphaned trials ---


def test_trials_of_a_killed_process_are_orphaned_at_once(child: Child, storage: Storage) -> None:
    assert [(trial.number, trial.orphaned) for trial in running_trials(storage)] == [(0, None), (1, None)]
    child.process.send_signal(signal.SIGKILL)
    child.wait_to_be(psutil.STATUS_ZOMBIE)
    worker = running_trials(storage)[0].worker
    assert worker is not None
    assert (worker.pid, worker.place) == (child.process.pid, this_worker().place)
    assert [trial.orphaned for trial in running_trials(storage)] == [f"{worker} ended"] * 2
    child.process.wait()
    assert [trial.orphaned for trial in running_trials(storage)] == [f"{worker} ended"] * 2


def test_trials_are_orphaned_after_a_minute_without_heartbeat(storage: Storage, study_id: int) -> None:
    silent, alive = created(storage, study_id, 2)
    assert lost(storage) == []
    age_heartbeats(storage, [silent])
    (found,) = lost(storage)
    assert (found.trial_id, found.number, found.study_id, found.worker) == (silent, 0, study_id, storage.worker)
    assert 3600 <= found.silent_s < 3700
    assert found.orphaned == f"no heartbeat from {storage.worker} for 60 s"
    assert requeue_orphaned(storage, lost(storage)) == ({0}, set())
    assert [trial.trial_id for trial in running_trials(storage)] == [alive]


@pytest.mark.parametrize(("silent_s", "is_lost"), [(30, False), (61, True)])
def test_the_heartbeat_timeout_is_one_minute(storage: Storage, study_id: int, silent_s: int, is_lost: bool) -> None:
    trial_ids = created(storage, study_id)
    age_heartbeats(storage, trial_ids, silent_s)
    assert bool(lost(storage)) is is_lost


def test_a_reused_pid_does_not_protect_a_trial(storage: Storage, study_id: int, idle_process: IdleProcess) -> None:
    storage.worker = replace(idle_process.worker(), started=idle_process.started - 3)
    created(storage, study_id)
    storage.worker = idle_process.worker()
    created(storage, study_id)
    assert [trial.number for trial in lost(storage)] == [0]


def test_a_worker_in_another_place_is_judged_by_its_heartbeat_alone(
    storage: Storage, study_id: int, idle_process: IdleProcess
) -> None:
    storage.worker = replace(idle_process.worker(), place="elsewhere", host="far")
    trial_ids = created(storage, study_id)
    idle_process.kill()
    assert lost(storage) == []
    age_heartbeats(storage, trial_ids)
    assert [trial.orphaned for trial in lost(storage)] == [
        f"no heartbeat from process {idle_process.process.pid} on far for 60 s"
    ]


def test_a_suspended_process_that_continues_in_time_keeps_its_claims(
    child: Child, storage: Storage, study_id: int
) -> None:
    child.process.send_signal(signal.SIGSTOP)
    child.wait_to_be(psutil.STATUS_STOPPED)
    child.ask_to_beat()
    age_heartbeats(storage, ids(storage.get_all_trials(study_id)))
    assert [trial.number for trial in lost(storage)] == [0, 1]
    child.process.send_signal(signal.SIGCONT)
    child.hear("beaten")
    assert lost(storage) == []
    assert requeue_orphaned(storage, lost(storage)) == (set(), set())
    assert states(storage.get_all_trials(study_id)) == [RUNNING, RUNNING]


def test_only_trials_of_the_study_are_listed(storage: Storage, study_id: int) -> None:
    other_id = storage.create_study("other", storage.get_study_directions(study_id), {})
    (here,), (there,) = created(storage, study_id), created(storage, other_id)
    assert [trial.trial_id for trial in running_trials(storage, study_id)] == [here]
    assert [trial.trial_id for trial in running_trials(storage)] == [here, there]


# --- Requeued trials ---


def test_a_trial_that_changed_in_the_meantime_is_left_alone(storage: Storage, other: Storage, study_id: int) -> None:
    finished, queued, elsewhere, taken, again, silent = created(storage, study_id, 6)
    age_heartbeats(storage, [finished, queued, elsewhere, taken, again, silent])
    seen = lost(other)
    assert len(seen) == 6
    storage.finish([TrialResult(finished, COMPLETE, (0.5,))])
    storage.requeue([queued, elsewhere, again])
    assert ids(other.claim([elsewhere], 1)) == [elsewhere]
    assert ids(storage.claim([again], 1)) == [again]
    assert requeue_orphaned(storage, [trial for trial in seen if trial.trial_id == taken]) == ({3}, set())
    before = storage.get_all_trials(study_id)
    assert requeue_orphaned(other, seen) == ({5}, set())
    assert texts(storage.get_all_trials(study_id)[:-1]) == texts(before[:-1])
    assert set(beating(storage)) == {elsewhere, again}
    assert requeue_orphaned(other, seen) == requeue_orphaned(other, []) == (set(), set())


def test_a_heartbeat_before_the_requeue_protects_the_trial(storage: Storage, other: Storage, study_id: int) -> None:
    back, away = created(storage, study_id, 2)
    age_heartbeats(storage, [back, away])
    seen = lost(other)
    assert [trial.trial_id for trial in seen] == [back, away]
    storage.refresh_heartbeats()
    age_heartbeats(storage, [away], 7200)
    assert requeue_orphaned(other, seen) == ({1}, set())
    assert states(storage.get_all_trials(study_id)) == [RUNNING, WAITING]
    assert ATTEMPTS not in storage.get_trial(back).system_attrs
    assert storage.finish([TrialResult(back, COMPLETE, (0.5,)), TrialResult(away, COMPLETE, (0.5,))]) == {away}


def test_each_attempt_is_recorded_with_the_trial(
    storage: Storage, other: Storage, study_id: int, idle_process: IdleProcess
) -> None:
    storage.worker = idle_process.worker()
    (trial_id,) = created(storage, study_id)
    storage.report(1, {trial_id: 0.5})
    age_heartbeats(storage, [trial_id])
    assert requeue_orphaned(other, lost(other)) == ({0}, set())
    waiting = storage.get_trial(trial_id)
    assert (waiting.state, waiting.datetime_start, waiting.intermediate_values) == (WAITING, None, {})
    assert waiting.params == {"lr": 1e-3}
    assert set(waiting.system_attrs) == {ATTEMPTS}
    assert beating(storage) == {}
    storage.claim([trial_id], 1)
    raised = attempt_record("raised", "out of luck", storage.worker, "Traceback")
    storage.requeue([trial_id], {trial_id: {ATTEMPTS: [*waiting.system_attrs[ATTEMPTS], raised]}})
    storage.claim([trial_id], 1)
    idle_process.kill()
    assert requeue_orphaned(other, lost(other)) == ({0}, set())
    attempts = storage.get_trial(trial_id).system_attrs[ATTEMPTS]
    worker = str(idle_process.worker())
    assert [(each["ended"], each["reason"], each["worker"]) for each in attempts] == [
        ("died", f"no heartbeat from {worker} for 60 s", worker),
        ("raised", "out of luck", worker),
        ("died", f"{worker} ended", worker),
    ]
    assert ["traceback" in each for each in attempts] == [False, True, False]
    assert all(each["at"].endswith("+00:00") for each in attempts)


def test_the_fourth_death_is_the_last(storage: Storage, other: Storage, study_id: int) -> None:
    deadly, alive = created(storage, study_id, 2)
    raised = {
        deadly: {ATTEMPTS: [attempt_record("raised", "out of luck", None)] * 2}
    }  # exceptions do not count as deaths
    storage.requeue([deadly], raised)
    for death in range(1, 5):
        assert ids(storage.claim([deadly], 1)) == [deadly]
        storage.report(1, {deadly: death / 10, alive: 0.5})
        age_heartbeats(storage, [deadly])
        assert requeue_orphaned(other, lost(other)) == (({0}, set()) if death < 4 else (set(), {0}))
    failed = storage.get_trial(deadly)
    reason = f"its process died 4 times: no heartbeat from {storage.worker} for 60 s"
    assert (failed.state, failed.value, failed.user_attrs) == (FAIL, None, {FAILURE_REASON: reason})
    assert failed.intermediate_values == {1: 0.4}
    assert failed.datetime_complete is not None
    assert failed.system_attrs[WORKER] == storage.worker.to_json()
    assert [each["ended"] for each in failed.system_attrs[ATTEMPTS]] == ["raised"] * 2 + ["died"] * 4
    assert set(beating(storage)) == {alive}
    assert storage.finish([TrialResult(deadly, COMPLETE, (1.0,))]) == {deadly}
    assert storage.claim([deadly], 1) == []
    assert texts([storage.get_trial(deadly)]) == texts([failed])


def test_only_deaths_without_progress_count(storage: Storage, other: Storage, study_id: int) -> None:
    (trial_id,) = created(storage, study_id, 1)
    storage.requeue([trial_id])
    for death, last in enumerate(epochs := [1, 2, 3, 0, 3, 4, 4, 4, 2]):
        storage.claim([trial_id], 1)
        storage.report_curves({trial_id: dict.fromkeys(range(1, last + 1), 0.5)})
        age_heartbeats(storage, [trial_id])
        assert requeue_orphaned(other, lost(other)) == ((set(), {0}) if death == 8 else ({0}, set()))
    attempts = storage.get_trial(trial_id).system_attrs[ATTEMPTS]
    assert [each["epoch"] for each in attempts] == epochs


def test_two_processes_that_requeue_a_trial_do_it_once(storage: Storage, other: Storage, study_id: int) -> None:
    trial_ids = created(storage, study_id, 8)
    age_heartbeats(storage, trial_ids)
    barrier = threading.Barrier(2)
    answers = []

    def take_back(one: Storage) -> None:
        seen = lost(one)
        barrier.wait(deadline())
        answers.append(requeue_orphaned(one, seen))

    threads = [threading.Thread(target=take_back, args=(one,)) for one in (storage, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadline())
    assert sorted(len(waiting) for waiting, _ in answers) == [0, 8]
    assert [len(trial.system_attrs[ATTEMPTS]) for trial in storage.get_all_trials(study_id)] == [1] * 8


# --- Trials of plain Optuna ---


def test_trials_of_plain_optuna_are_neither_listed_nor_changed(storage: Storage, study_id: int, url: str) -> None:
    with plain(storage.location.full_url) as by_optuna:
        beaten, quiet = (load_study(by_optuna, "digits").ask()._trial_id for _ in range(2))
        by_optuna.record_heartbeat(beaten)
        ours, dying = created(storage, study_id, 2)
        age_heartbeats(storage, [beaten, ours, dying])
        theirs, before = beating(storage)[beaten], by_optuna.get_all_trials(study_id)[:2]
        assert [trial.trial_id for trial in running_trials(storage)] == [ours, dying]
        storage.refresh_heartbeats()
        age_heartbeats(storage, [dying])
        assert requeue_orphaned(storage, lost(storage)) == ({3}, set())
        storage.finish([TrialResult(ours, COMPLETE, (0.5,))])
        assert beating(storage) == {beaten: theirs}
        assert texts(by_optuna.get_all_trials(study_id)[:2]) == texts(before)
        assert storage.report(1, {beaten: 0.5, quiet: 0.5}) == {beaten, quiet}
        by_optuna.record_heartbeat(beaten)
        assert beating(storage)[beaten] != theirs


# --- Sending heartbeats ---


def test_heartbeats_are_one_statement_for_claimed_trials_only(storage: Storage, other: Storage, study_id: int) -> None:
    trial_ids = created(storage, study_id, 50)
    (foreign,) = created(other, study_id)
    gone, queued, *held = trial_ids
    age_heartbeats(other, [*trial_ids, foreign])
    requeue_orphaned(other, [trial for trial in lost(other) if trial.trial_id in (gone, queued)])
    assert ids(other.claim([gone], 1)) == [gone]
    age_heartbeats(other, [gone])
    with statements(storage) as seen:
        storage.refresh_heartbeats()
    assert [(statement.split()[:2], many) for statement, many in seen] == [(["UPDATE", "trial_heartbeats"], False)]
    assert [trial.trial_id for trial in lost(storage)] == [gone, foreign]
    assert set(beating(storage)) == {gone, *held, foreign}
    storage.requeue(trial_ids)
    with statements(storage) as seen:
        storage.refresh_heartbeats()
    assert seen == []


@contextlib.contextmanager
def statements(storage: Storage) -> Iterator[list[tuple[str, bool]]]:
    """Return the SQL statements that the storage sends (no BEGIN, COMMIT), and whether each was sent repeatedly."""
    seen: list[tuple[str, bool]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if not statement.startswith("BEGIN"):
            seen.append((statement, executemany))

    sa.event.listen(storage.engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(storage.engine, "before_cursor_execute", note)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """Send heartbeats in quick succession, and count the failed ones."""
    module = importlib.import_module("hpo.storage.heartbeats")
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    caplog.set_level(logging.DEBUG, module.__name__)
    return lambda: sum(record.getMessage().startswith("no heartbeat: ") for record in caplog.records)


def beaters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hpo-heartbeat"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt])
def test_heartbeats_are_sent_until_the_block_ends(
    storage: Storage, study_id: int, ending: type[BaseException] | None
) -> None:
    trial_ids = created(storage, study_id, 2)
    age_heartbeats(storage, trial_ids)
    with pytest.raises(ending) if ending else contextlib.nullcontext(), heartbeats(storage):
        wait_for(lambda: not lost(storage))
        trial_ids += created(storage, study_id)
        age_heartbeats(storage, trial_ids)
        wait_for(lambda: not lost(storage))
        assert len(beaters()) == 1
        if ending:
            raise ending
    assert beaters() == []
    age_heartbeats(storage, trial_ids)
    assert len(lost(storage)) == 3


def test_heartbeats_continue_after_a_restart_of_the_server(
    server: Server, server_storage: Storage, often: Callable[[], int]
) -> None:
    study_id = server_storage.create_study("digits", [MAXIMIZE], {})
    trial_ids = created(server_storage, study_id)
    with heartbeats(server_storage):
        server.stop("immediate")
        try:
            wait_for(lambda: often() >= 2)
        finally:
            server.start()
        age_heartbeats(server_storage, trial_ids)
        wait_for(lambda: not lost(server_storage))


def test_heartbeats_continue_after_a_lock_of_the_file(
    file_url: str, often: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.02)
    with closing(open_storage(file_url)) as storage:
        trial_ids = created(storage, storage.create_study("digits", [MAXIMIZE], {}))
        age_heartbeats(storage, trial_ids)
        with closing(sqlite3.connect(storage.location.file, isolation_level=None)) as lock, heartbeats(storage):
            lock.execute("PRAGMA busy_timeout = 30000")
            lock.execute("BEGIN IMMEDIATE")
            wait_for(lambda: often() >= 2)
            lock.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 hour')")
            lock.execute("COMMIT")
            wait_for(lambda: not lost(storage))


def test_the_heartbeat_thread_does_not_keep_a_process_alive(storage: Storage) -> None:
    script = (
        "import sys\nfrom hpo.storage import heartbeats, open_storage\n"
        "block = heartbeats(open_storage(sys.argv[1]))\nblock.__enter__()\nsys.block = block\n"
    )
    ended = forks.run([storage.location.full_url], script=script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# --- Servers that restart ---


@pytest.mark.parametrize("at", ["SELECT trials", "INSERT INTO trial_system_attributes", "DELETE FROM trial_heartbeats"])
def test_a_requeue_during_a_restart_of_the_server_happens_once(
    server: Server, server_storage: Storage, at: str
) -> None:
    study_id = server_storage.create_study("digits", [MAXIMIZE], {})
    often, once = created(server_storage, study_id, 2)
    for _ in range(3):
        age_heartbeats(server_storage, [often])
        assert requeue_orphaned(server_storage, lost(server_storage)) == ({0}, set())
        assert ids(server_storage.claim([often], 1)) == [often]
    age_heartbeats(server_storage, [often, once])
    seen, restarts = lost(server_storage), []

    def restart(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith(at) and not restarts:
            restarts.append(statement)
            server.restart("immediate")

    sa.event.listen(server_storage.engine, "before_cursor_execute", restart)
    assert requeue_orphaned(server_storage, seen) == ({1}, {0})
    assert len(restarts) == 1
    trials = server_storage.get_all_trials(study_id)
    assert [len(trial.system_attrs[ATTEMPTS]) for trial in trials] == [4, 1]
    assert states(trials) == [FAIL, WAITING]
    assert beating(server_storage) == {}
