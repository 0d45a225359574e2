"""Signs of life: who counts as lost, what is taken back from it, and that who comes back in time keeps its trials."""

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
from bodies import Body, silence
from deadlines import deadline, wait_for
from forks import Fork
from lives import COMPLETE, FAIL, MAXIMIZE, RUNNING, WAITING, ids, plain, running, states, texts
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
from hpo.storage.rows import HEARTBEATS
from hpo.storage.statements import WORKER
from hpo.storage.workers import Worker, has_ended, this_worker


@pytest.fixture
def body() -> Iterator[Body]:
    body = Body()
    yield body
    body.die()


def created(storage: Storage, study_id: int, count: int = 1) -> list[int]:
    return ids(storage.create_trials(study_id, [running() for _ in range(count)]))


def lost(storage: Storage) -> list[RunningTrial]:
    return [trial for trial in running_trials(storage) if trial.orphaned]


def beating(storage: Storage) -> dict[int, Any]:
    """The heartbeats as they are stored, by the id of the trial."""
    with storage.engine.connect() as connection:
        found = connection.execute(sa.select(HEARTBEATS.c.trial_id, HEARTBEATS.c.heartbeat))
        return {row.trial_id: row.heartbeat for row in found}


class Child:
    """A process with a storage of its own that claims two trials, and then beats whenever it is told to."""

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


def test_a_process_is_told_from_those_that_had_its_number(body: Body) -> None:
    worker = body.worker("cuda:1")
    assert not has_ended(this_worker())
    assert not has_ended(worker)
    assert has_ended(replace(worker, started=worker.started - 3))
    assert has_ended(replace(worker, started=worker.started + 3))
    assert has_ended(replace(this_worker(), started=0.0))
    assert Worker.from_json(worker.to_json()) == worker
    assert str(worker) == f"process {body.process.pid} on {worker.host}"
    body.die()
    assert has_ended(worker)


def test_a_process_that_nobody_has_reaped_has_ended(body: Body) -> None:
    worker = body.worker()
    body.process.kill()
    wait_for(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_ZOMBIE)
    assert has_ended(worker)


def test_of_another_place_nothing_is_known_by_looking(body: Body) -> None:
    elsewhere = replace(body.worker(), place="elsewhere")
    assert not has_ended(elsewhere)
    body.die()
    assert not has_ended(elsewhere)


# --- Who is lost ---


def test_a_killed_process_is_lost_at_once_reaped_or_not(child: Child, storage: Storage) -> None:
    assert [(trial.number, trial.orphaned) for trial in running_trials(storage)] == [(0, None), (1, None)]
    child.process.send_signal(signal.SIGKILL)
    child.wait_to_be(psutil.STATUS_ZOMBIE)
    worker = running_trials(storage)[0].worker
    assert worker is not None
    assert (worker.pid, worker.place) == (child.process.pid, this_worker().place)
    assert [trial.orphaned for trial in running_trials(storage)] == [f"{worker} ended"] * 2
    child.process.wait()
    assert [trial.orphaned for trial in running_trials(storage)] == [f"{worker} ended"] * 2


def test_who_is_silent_for_a_minute_is_lost_and_who_is_not_is_not(storage: Storage, study_id: int) -> None:
    silent, alive = created(storage, study_id, 2)
    assert lost(storage) == []
    silence(storage, [silent])
    (found,) = lost(storage)
    assert (found.trial_id, found.number, found.study_id, found.worker) == (silent, 0, study_id, storage.worker)
    assert 3600 <= found.silent_s < 3700
    assert found.orphaned == f"no heartbeat from {storage.worker} for 60 s"
    assert requeue_orphaned(storage, lost(storage)) == ({0}, set())
    assert [trial.trial_id for trial in running_trials(storage)] == [alive]


@pytest.mark.parametrize(("silent_s", "is_lost"), [(30, False), (61, True)])
def test_a_minute_is_a_minute(storage: Storage, study_id: int, silent_s: int, is_lost: bool) -> None:
    trial_ids = created(storage, study_id)
    silence(storage, trial_ids, silent_s)
    assert bool(lost(storage)) is is_lost


def test_a_number_that_another_process_has_now_does_not_keep_a_trial(
    storage: Storage, study_id: int, body: Body
) -> None:
    storage.worker = replace(body.worker(), started=body.started - 3)
    created(storage, study_id)
    storage.worker = body.worker()
    created(storage, study_id)
    assert [trial.number for trial in lost(storage)] == [0]


def test_a_worker_of_another_place_is_judged_by_its_silence_alone(storage: Storage, study_id: int, body: Body) -> None:
    storage.worker = replace(body.worker(), place="elsewhere", host="far")
    trial_ids = created(storage, study_id)
    body.die()
    assert lost(storage) == []
    silence(storage, trial_ids)
    assert [trial.orphaned for trial in lost(storage)] == [
        f"no heartbeat from process {body.process.pid} on far for 60 s"
    ]


def test_a_suspended_process_that_is_back_in_time_keeps_its_trials(
    child: Child, storage: Storage, study_id: int
) -> None:
    child.process.send_signal(signal.SIGSTOP)
    child.wait_to_be(psutil.STATUS_STOPPED)
    child.ask_to_beat()
    silence(storage, ids(storage.get_all_trials(study_id)))
    assert [trial.number for trial in lost(storage)] == [0, 1]
    child.process.send_signal(signal.SIGCONT)
    child.hear("beaten")
    assert lost(storage) == []
    assert requeue_orphaned(storage, lost(storage)) == (set(), set())
    assert states(storage.get_all_trials(study_id)) == [RUNNING, RUNNING]


def test_only_trials_of_the_study_are_looked_at(storage: Storage, study_id: int) -> None:
    other_id = storage.create_study("other", storage.get_study_directions(study_id), {})
    (here,), (there,) = created(storage, study_id), created(storage, other_id)
    assert [trial.trial_id for trial in running_trials(storage, study_id)] == [here]
    assert [trial.trial_id for trial in running_trials(storage)] == [here, there]


# --- What is taken back ---


def test_what_happened_to_a_trial_in_the_meantime_is_left_alone(
    storage: Storage, other: Storage, study_id: int
) -> None:
    finished, queued, elsewhere, taken, again, silent = created(storage, study_id, 6)
    silence(storage, [finished, queued, elsewhere, taken, again, silent])
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


def test_who_shows_up_between_the_look_and_the_retake_keeps_its_trials(
    storage: Storage, other: Storage, study_id: int
) -> None:
    back, away = created(storage, study_id, 2)
    silence(storage, [back, away])
    seen = lost(other)
    assert [trial.trial_id for trial in seen] == [back, away]
    storage.refresh_heartbeats()
    silence(storage, [away], 7200)
    assert requeue_orphaned(other, seen) == ({1}, set())
    assert states(storage.get_all_trials(study_id)) == [RUNNING, WAITING]
    assert ATTEMPTS not in storage.get_trial(back).system_attrs
    assert storage.finish([TrialResult(back, COMPLETE, (0.5,)), TrialResult(away, COMPLETE, (0.5,))]) == {away}


def test_each_attempt_is_kept_with_the_trial(storage: Storage, other: Storage, study_id: int, body: Body) -> None:
    storage.worker = body.worker()
    (trial_id,) = created(storage, study_id)
    storage.report(1, {trial_id: 0.5})
    silence(storage, [trial_id])
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
    body.die()
    assert requeue_orphaned(other, lost(other)) == ({0}, set())
    attempts = storage.get_trial(trial_id).system_attrs[ATTEMPTS]
    worker = str(body.worker())
    assert [(each["ended"], each["reason"], each["worker"]) for each in attempts] == [
        ("died", f"no heartbeat from {worker} for 60 s", worker),
        ("raised", "out of luck", worker),
        ("died", f"{worker} ended", worker),
    ]
    assert ["traceback" in each for each in attempts] == [False, True, False]
    assert all(each["at"].endswith("+00:00") for each in attempts)


def test_the_fourth_death_is_the_last(storage: Storage, other: Storage, study_id: int) -> None:
    deadly, alive = created(storage, study_id, 2)
    raised = {deadly: {ATTEMPTS: [attempt_record("raised", "out of luck", None)] * 2}}  # which are no deaths
    storage.requeue([deadly], raised)
    for death in range(1, 5):
        assert ids(storage.claim([deadly], 1)) == [deadly]
        storage.report(1, {deadly: death / 10, alive: 0.5})
        silence(storage, [deadly])
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


def test_two_that_take_back_at_once_do_it_once(storage: Storage, other: Storage, study_id: int) -> None:
    trial_ids = created(storage, study_id, 8)
    silence(storage, trial_ids)
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


# --- What plain Optuna runs ---


def test_what_plain_optuna_runs_is_neither_listed_nor_touched(storage: Storage, study_id: int, url: str) -> None:
    with plain(storage.location.full_url) as by_optuna:
        beaten, quiet = (load_study(by_optuna, "digits").ask()._trial_id for _ in range(2))
        by_optuna.record_heartbeat(beaten)
        ours, dying = created(storage, study_id, 2)
        silence(storage, [beaten, ours, dying])
        theirs, before = beating(storage)[beaten], by_optuna.get_all_trials(study_id)[:2]
        assert [trial.trial_id for trial in running_trials(storage)] == [ours, dying]
        storage.refresh_heartbeats()
        silence(storage, [dying])
        assert requeue_orphaned(storage, lost(storage)) == ({3}, set())
        storage.finish([TrialResult(ours, COMPLETE, (0.5,))])
        assert beating(storage) == {beaten: theirs}
        assert texts(by_optuna.get_all_trials(study_id)[:2]) == texts(before)
        assert storage.report(1, {beaten: 0.5, quiet: 0.5}) == {beaten, quiet}
        by_optuna.record_heartbeat(beaten)
        assert beating(storage)[beaten] != theirs


# --- Beats ---


def test_a_beat_is_one_statement_for_all_and_only_for_what_is_held(
    storage: Storage, other: Storage, study_id: int
) -> None:
    trial_ids = created(storage, study_id, 50)
    (foreign,) = created(other, study_id)
    gone, queued, *held = trial_ids
    silence(other, [*trial_ids, foreign])
    requeue_orphaned(other, [trial for trial in lost(other) if trial.trial_id in (gone, queued)])
    assert ids(other.claim([gone], 1)) == [gone]
    silence(other, [gone])
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
    """The statements that the storage sends, and whether each is sent many times; a transaction's bounds are none."""
    seen: list[tuple[str, bool]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if not statement.startswith("BEGIN"):
            seen.append((statement, executemany))

    sa.event.listen(storage.engine, "before_cursor_execute", note)
    yield seen
    sa.event.remove(storage.engine, "before_cursor_execute", note)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """Beats in quick succession, and how many of them have failed so far."""
    module = importlib.import_module("hpo.storage.heartbeats")
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    caplog.set_level(logging.DEBUG, module.__name__)
    return lambda: sum(record.getMessage().startswith("no heartbeat: ") for record in caplog.records)


def beaters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hpo-heartbeat"]


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("ending", [None, RuntimeError, KeyboardInterrupt])
def test_signs_of_life_are_shown_until_the_block_ends_however_it_does(
    storage: Storage, study_id: int, ending: type[BaseException] | None
) -> None:
    trial_ids = created(storage, study_id, 2)
    silence(storage, trial_ids)
    with pytest.raises(ending) if ending else contextlib.nullcontext(), heartbeats(storage):
        wait_for(lambda: not lost(storage))
        trial_ids += created(storage, study_id)
        silence(storage, trial_ids)
        wait_for(lambda: not lost(storage))
        assert len(beaters()) == 1
        if ending:
            raise ending
    assert beaters() == []
    silence(storage, trial_ids)
    assert len(lost(storage)) == 3


def test_a_server_that_is_away_for_a_while_is_beaten_again(
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
        silence(server_storage, trial_ids)
        wait_for(lambda: not lost(server_storage))


def test_a_file_that_is_locked_for_a_while_is_beaten_again(
    file_url: str, often: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.02)
    with closing(open_storage(file_url)) as storage:
        trial_ids = created(storage, storage.create_study("digits", [MAXIMIZE], {}))
        silence(storage, trial_ids)
        with closing(sqlite3.connect(storage.location.file, isolation_level=None)) as lock, heartbeats(storage):
            lock.execute("PRAGMA busy_timeout = 30000")
            lock.execute("BEGIN IMMEDIATE")
            wait_for(lambda: often() >= 2)
            lock.execute("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 hour')")
            lock.execute("COMMIT")
            wait_for(lambda: not lost(storage))


def test_signs_of_life_do_not_keep_a_process_alive(storage: Storage) -> None:
    script = (
        "import sys\nfrom hpo.storage import heartbeats, open_storage\n"
        "block = heartbeats(open_storage(sys.argv[1]))\nblock.__enter__()\nsys.block = block\n"
    )
    ended = forks.run([storage.location.full_url], script=script)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# --- Servers that restart ---


@pytest.mark.parametrize("at", ["SELECT trials", "INSERT INTO trial_system_attributes", "DELETE FROM trial_heartbeats"])
def test_what_is_taken_back_while_the_server_restarts_is_taken_back_once(
    server: Server, server_storage: Storage, at: str
) -> None:
    study_id = server_storage.create_study("digits", [MAXIMIZE], {})
    often, once = created(server_storage, study_id, 2)
    for _ in range(3):
        silence(server_storage, [often])
        assert requeue_orphaned(server_storage, lost(server_storage)) == ({0}, set())
        assert ids(server_storage.claim([often], 1)) == [often]
    silence(server_storage, [often, once])
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
