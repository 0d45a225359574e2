"""Heartbeats: running trials send time stamps; trials of dead workers are requeued or fail.

Promises: a trial whose process has ended, or has sent no heartbeat for HEARTBEAT_TIMEOUT_S, is requeued with its
parameters; each ended attempt is recorded (`ATTEMPTS`). A trial fails with the reason once its process has died more
than MAX_DEATHS times while the trial made no progress: a trial that reaches a higher epoch than in all its earlier
attempts is not what kills its process. A process that was only slow finds that it has lost its claim, and cannot
overwrite the results of another worker. Trials that plain Optuna runs are left alone, with a heartbeat or without.
"""

from __future__ import annotations

import datetime
import functools
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.errors import StorageError
from hpo.storage.connections import TransientError, write
from hpo.storage.sql.retry import read_transaction, write_transaction
from hpo.storage.sql.rows import HEARTBEATS, INTERMEDIATE, SYSTEM_ATTRS, TRIALS, USER_ATTRS, attr_rows, utc
from hpo.storage.sql.statements import (
    FROZEN,
    WORKER,
    delete_heartbeats,
    lock_claimed,
    requeue_trials,
    update_trials,
    upsert,
    utc_now,
)
from hpo.storage.storage import Storage
from hpo.storage.workers import (
    RegisteredWorker,
    Worker,
    has_ended,
    read_registry,
    record_worker_heartbeat,
    register_worker,
    unregister_worker,
)

HEARTBEAT_S = 10.0
HEARTBEAT_TIMEOUT_S = 60.0
MAX_DEATHS = 3
"""Deaths of its process without progress after which a trial is still requeued."""

ATTEMPTS = "hpo:attempts"
"""The system attribute of a trial with the list of its earlier attempts: how and why each ended, at which epoch."""

FAILURE_REASON = "reason"
"""The user attribute of a failed trial with the reason."""

log = logging.getLogger(__name__)

_LOCK = threading.Lock()
_REGISTRATIONS: Counter[str] = Counter()
"""The number of heartbeat threads of this process by storage URL. They share the process's row in the registry."""


@dataclass(frozen=True)
class RunningTrial:
    """A running trial that has a heartbeat; one without a worker is run by plain Optuna.

    `claimed_at` and `heartbeat_at` (the last heartbeat, by the database's clock) are in UTC; `silent_s` is the time
    since that heartbeat, `orphaned` the reason why its worker counts as dead, or None. `frozen` are the epochs that a
    frozen trial has trained, or None.
    """

    trial_id: int
    number: int
    study_id: int
    claimed_at: datetime.datetime
    heartbeat_at: datetime.datetime
    worker: Worker | None
    silent_s: float
    orphaned: str | None
    frozen: int | None = None


@contextmanager
def heartbeats(storage: Storage) -> Iterator[None]:
    """Send heartbeats for all trials that the storage object has claimed, until the block ends."""
    registered = _register(storage)
    done = threading.Event()

    def send() -> None:
        while not done.wait(HEARTBEAT_S):
            try:
                storage.refresh_heartbeats()
                if registered:
                    with write(storage.engine) as connection:
                        record_worker_heartbeat(connection, storage.worker)
            # The next heartbeat may succeed, and the search itself reports a broken storage.
            except (StorageError, sa.exc.SQLAlchemyError) as error:
                log.debug("no heartbeat: %s", error)

    thread = threading.Thread(target=send, name="hpo-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if registered:
            _unregister(storage)


def _register(storage: Storage) -> bool:
    """Add this process to the registry; return whether that succeeded. A search does not depend on it."""
    try:
        write_transaction(storage.engine, lambda connection, _: register_worker(connection, storage.worker))
    except TransientError:
        raise
    except (StorageError, sa.exc.SQLAlchemyError) as error:  # for instance a role without the right to create tables
        log.debug("this process is not in the registry of workers: %s", error)
        return False
    with _LOCK:
        _REGISTRATIONS[storage.location.full_url] += 1
    return True


def _unregister(storage: Storage) -> None:
    """Remove this process from the registry, unless it has another heartbeat thread for the storage."""
    with _LOCK:
        _REGISTRATIONS[storage.location.full_url] -= 1
        if _REGISTRATIONS[storage.location.full_url]:
            return
    try:
        write_transaction(storage.engine, lambda connection, _: unregister_worker(connection, storage.worker))
    except (StorageError, sa.exc.SQLAlchemyError) as error:  # the row's last heartbeat shows that the process is gone
        log.debug("this process stays in the registry of workers: %s", error)


def running_trials(storage: Storage, study_id: int | None = None) -> list[RunningTrial]:
    """Return the trials claimed by workers of hpo, of one study or of all, ordered by id."""
    found = read_transaction(storage.engine, lambda connection: read_running(connection, study_id))
    return [trial for trial in found if trial.worker is not None]


def registered_workers(storage: Storage) -> list[RegisteredWorker]:
    """Return the processes that work on the storage, also those without a claimed trial, oldest first."""
    return read_transaction(storage.engine, read_registry)


def read_running(connection: Connection, study_id: int | None = None) -> list[RunningTrial]:
    """Return the trials with a heartbeat, in the caller's transaction. Those of plain Optuna are never orphaned."""
    condition = TRIALS.c.state == TrialState.RUNNING
    if study_id is not None:
        condition &= TRIALS.c.study_id == study_id
    workers, frozen = SYSTEM_ATTRS.alias(), SYSTEM_ATTRS.alias()
    select = (
        sa.select(TRIALS, HEARTBEATS.c.heartbeat, workers.c.value_json, frozen.c.value_json.label("frozen"))
        .join(HEARTBEATS, HEARTBEATS.c.trial_id == TRIALS.c.trial_id)
        .outerjoin(workers, (workers.c.trial_id == TRIALS.c.trial_id) & (workers.c.key == WORKER))
        .outerjoin(frozen, (frozen.c.trial_id == TRIALS.c.trial_id) & (frozen.c.key == FROZEN))
    )

    ended = functools.cache(has_ended)  # looking up a process is slow, and a worker has many trials

    def orphaned(worker: Worker | None, silent_s: float) -> str | None:
        if worker is None:
            return None
        if ended(worker):
            return f"{worker} ended"
        return f"no heartbeat from {worker} for {HEARTBEAT_TIMEOUT_S:g} s" if silent_s > HEARTBEAT_TIMEOUT_S else None

    now = connection.execute(sa.select(utc_now(connection))).scalar_one()
    found: list[RunningTrial] = []
    for row in connection.execute(select.where(condition).order_by(TRIALS.c.trial_id)):
        worker = None if row.value_json is None else Worker.from_json(json.loads(row.value_json))
        silent_s = (now - row.heartbeat).total_seconds()
        ids, times = (row.trial_id, row.number, row.study_id), (row.datetime_start, row.heartbeat)
        epochs = None if row.frozen is None else int(json.loads(row.frozen))
        found.append(RunningTrial(*ids, *times, worker, silent_s, orphaned(worker, silent_s), epochs))
    return found


def count_unfinished(storage: Storage, study_id: int, waiting: bool = True) -> int:
    """Return the number of a study's trials that workers of hpo run, plus the waiting ones if `waiting`."""
    has_worker = sa.exists().where(SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id, SYSTEM_ATTRS.c.key == WORKER)
    unfinished = (TRIALS.c.state == TrialState.RUNNING) & has_worker
    if waiting:
        unfinished |= TRIALS.c.state == TrialState.WAITING
    count = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id, unfinished)
    return read_transaction(storage.engine, lambda connection: int(connection.execute(count).scalar_one()))


def requeue_orphaned(storage: Storage, orphans: Iterable[RunningTrial]) -> tuple[set[int], set[int]]:
    """Requeue orphaned trials, or fail those that have died too often; return the numbers of both.

    A trial that has sent a heartbeat in the meantime is left alone. The death of its worker does not count against a
    frozen trial, which was not being trained.
    """
    claims = {trial.trial_id: trial for trial in orphans}
    now = utc(datetime.datetime.now())
    waiting: set[int] = set()
    failed: set[int] = set()

    def work(connection: Connection, uncertain: bool) -> tuple[set[int], set[int]]:
        if not uncertain:  # after a lost answer the trials of the earlier run may no longer be found as running
            waiting.clear()
            failed.clear()
        mine = lock_claimed(connection, {trial_id: trial.claimed_at for trial_id, trial in claims.items()})
        mine -= _alive_again(connection, {trial_id: claims[trial_id].heartbeat_at for trial_id in mine})
        earlier = _attempts(connection, mine)
        epochs = _epochs(connection, mine)
        attempts, reasons = [], []
        frozen = {trial_id for trial_id in mine if claims[trial_id].frozen is not None}
        waiting.update(frozen)
        for trial_id in mine - frozen:
            reason = claims[trial_id].orphaned or "given up"
            death = {**attempt_record("died", reason, claims[trial_id].worker), "epoch": epochs.get(trial_id, 0)}
            of_trial = [*earlier.get(trial_id, []), death]
            attempts += attr_rows(trial_id, {ATTEMPTS: of_trial})
            deaths = deaths_without_progress(of_trial)
            if deaths <= MAX_DEATHS:
                waiting.add(trial_id)
            else:
                failed.add(trial_id)
                reasons += attr_rows(trial_id, {FAILURE_REASON: f"its process died {deaths} times: {reason}"})
        upsert(connection, SYSTEM_ATTRS, attempts)
        upsert(connection, USER_ATTRS, reasons)
        requeue_trials(connection, mine & waiting)
        update_trials(connection, mine & failed, state=TrialState.FAIL, datetime_complete=now)
        delete_heartbeats(connection, mine & failed)
        return {claims[i].number for i in waiting}, {claims[i].number for i in failed}

    return write_transaction(storage.engine, work) if claims else (set(), set())


def _alive_again(connection: Connection, last: Mapping[int, datetime.datetime]) -> set[int]:
    """Return the trials that have a heartbeat later than their last known one, locked until the transaction ends."""
    select = sa.select(HEARTBEATS.c.trial_id, HEARTBEATS.c.heartbeat).where(HEARTBEATS.c.trial_id.in_(list(last)))
    found = connection.execute(select.with_for_update())
    return {trial_id for trial_id, heartbeat in found if heartbeat > last[trial_id]}


def _attempts(connection: Connection, trial_ids: Iterable[int]) -> dict[int, list[dict[str, Any]]]:
    select = sa.select(SYSTEM_ATTRS.c.trial_id, SYSTEM_ATTRS.c.value_json)
    found = connection.execute(
        select.where(SYSTEM_ATTRS.c.key == ATTEMPTS, SYSTEM_ATTRS.c.trial_id.in_(list(trial_ids)))
    )
    return {trial_id: json.loads(text) for trial_id, text in found}


def _epochs(connection: Connection, trial_ids: Iterable[int]) -> dict[int, int]:
    """Return the last epoch that each trial has reported; trials without one are missing."""
    last = sa.select(INTERMEDIATE.c.trial_id, sa.func.max(INTERMEDIATE.c.step)).group_by(INTERMEDIATE.c.trial_id)
    found = connection.execute(last.where(INTERMEDIATE.c.trial_id.in_(list(trial_ids))))
    return {trial_id: int(epoch) for trial_id, epoch in found}


def deaths_without_progress(attempts: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of deaths from the first one at the highest epoch on, from the records of a trial's attempts.

    Before a trial's training continues from a checkpoint, its process can die at a lower epoch: that is no progress.
    """
    epochs = [each.get("epoch", 0) for each in attempts if each["ended"] == "died"]
    return len(epochs) - epochs.index(max(epochs)) if epochs else 0


def attempt_record(
    ended: Literal["died", "raised"], reason: str, worker: Worker | None, traceback: str = ""
) -> dict[str, Any]:
    """Return the record of an attempt at a trial whose process died, or whose training raised an exception."""
    record = {
        "ended": ended,
        "reason": reason,
        "worker": None if worker is None else str(worker),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return record | ({"traceback": traceback} if traceback else {})
