"""Change a study's state (pause, resume, stop), its name or its settings.

A pause requeues the running trials: their workers find after the epoch that they have lost their claims. Settings
change only while no worker trains trials under the previous ones; the name can change at any time.
Knows the names of study attributes, not the content of a study file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.exceptions import DuplicatedStudyError
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.errors import StudyBusyError, StudyClosedError
from hpo.storage.heartbeats import read_running
from hpo.storage.sql.claim_conditions import STATE, STATE_REASON, ClaimConditions, StudyState
from hpo.storage.sql.retry import write_transaction
from hpo.storage.sql.rows import STUDIES, SYSTEM_ATTRS, TRIALS, USER_ATTRS, VALUES, attr_rows
from hpo.storage.sql.statements import (
    WORKER,
    lock_study,
    read_study_attr,
    requeue_trials,
    set_study_attrs,
    update_trials,
    upsert,
)
from hpo.storage.storage import Storage
from hpo.text import hpo_command


def check_open(storage: Storage, conditions: ClaimConditions) -> None:
    """Raise StudyClosedError unless trials of the study may be claimed under these conditions."""
    write_transaction(storage.engine, lambda connection, _: conditions.check(connection))


def set_state(storage: Storage, study_id: int, state: StudyState, reason: str = "") -> int:
    """Set the state of a study; return the number of running trials that were requeued, which only a pause does."""
    return write_transaction(storage.engine, lambda connection, _: _set_state(connection, study_id, state, reason))


def end_study(storage: Storage, conditions: ClaimConditions, reason: str) -> None:
    """Set the state of a study to ended, unless it is paused or stopped.

    Raises StudyClosedError if another process has changed or deleted the study.
    """

    def work(connection: Connection, uncertain: bool) -> None:
        try:
            conditions.check(connection, share=False)
        except StudyClosedError as closed:
            if closed.how in ("changed", "deleted"):
                raise
            return
        _set_state(connection, conditions.study_id, StudyState.ENDED, reason)

    write_transaction(storage.engine, work)


REOPENED = "hpo:reopened"
"""The system attribute of a trial that had completed before `--extend` raised the epochs: the epochs it had then."""


@dataclass(frozen=True)
class ReopenedTrials:
    """Completed trials to set to WAITING, with the names of the attributes that are part of their results.

    `epochs` are those that each trial has trained, by id.
    """

    epochs: Mapping[int, int]
    system_attrs: Sequence[str]
    user_attrs: Sequence[str]


def change_idle_study(
    storage: Storage, study_id: int, name: str, user_attrs: Mapping[str, Any], reopened: ReopenedTrials | None = None
) -> None:
    """Set user attributes of a study without running trials, and reopen it if it has ended.

    Completed trials that are `reopened` become WAITING in the same transaction, without their results.

    Raises StudyBusyError if a live worker runs trials of the study, and KeyError if there is no such study.
    """

    def check_and_reopen(connection: Connection) -> dict[str, Any]:
        for trial in read_running(connection, study_id):
            if trial.worker is not None and not trial.orphaned:
                raise StudyBusyError(
                    f"study '{name}' is being searched by {trial.worker}, so its settings cannot change now; "
                    f"wait for it, or `{hpo_command('pause', name)}` first"
                )
        if reopened is not None:
            _reopen_trials(connection, study_id, reopened)
        ended = read_study_attr(connection, study_id, STATE) == StudyState.ENDED
        return {STATE: StudyState.OPEN, STATE_REASON: ""} if ended else {}

    storage.set_study_attrs(study_id, user_attrs, check_and_reopen)


def rename_study(storage: Storage, study_id: int, name: str) -> None:
    """Rename a study. Its identity does not change, and its workers continue.

    Raises DuplicatedStudyError if another study has the name, and KeyError if there is no such study.
    """

    def work(connection: Connection, uncertain: bool) -> None:
        try:
            renamed = connection.execute(sa.update(STUDIES).filter_by(study_id=study_id).values(study_name=name))
        except sa.exc.IntegrityError as error:
            raise DuplicatedStudyError(f"a study named {name!r} exists") from error
        if not renamed.rowcount:
            raise KeyError(f"no study with id {study_id}")

    write_transaction(storage.engine, work)


def _reopen_trials(connection: Connection, study_id: int, reopened: ReopenedTrials) -> None:
    complete = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id,
        TRIALS.c.trial_id.in_(list(reopened.epochs)),
        TRIALS.c.state == TrialState.COMPLETE,
    )
    ids = connection.execute(complete.order_by(TRIALS.c.trial_id).with_for_update()).scalars().all()
    requeue_trials(connection, ids)
    update_trials(connection, ids, datetime_complete=None)
    connection.execute(sa.delete(VALUES).where(VALUES.c.trial_id.in_(ids)))
    for table, keys in ((SYSTEM_ATTRS, reopened.system_attrs), (USER_ATTRS, reopened.user_attrs)):
        connection.execute(sa.delete(table).where(table.c.trial_id.in_(ids), table.c.key.in_(keys)))
    upsert(connection, SYSTEM_ATTRS, [row for i in ids for row in attr_rows(i, {REOPENED: reopened.epochs[i]})])


def _set_state(connection: Connection, study_id: int, state: StudyState, reason: str) -> int:
    if not lock_study(connection, study_id):
        return 0  # the study was deleted: nothing to store
    set_study_attrs(connection, study_id, {STATE: state.value, STATE_REASON: " ".join(reason.split())})
    if state != StudyState.PAUSED:
        return 0
    has_worker = sa.exists().where(SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id, SYSTEM_ATTRS.c.key == WORKER)
    running = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING, has_worker
    )
    ids = connection.execute(running.order_by(TRIALS.c.trial_id).with_for_update()).scalars().all()
    requeue_trials(connection, ids)
    return len(ids)
