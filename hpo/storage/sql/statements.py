"""SQL statements of the storage's transactions: insert studies; insert, claim, update and requeue trials.

A claim is the id of a running trial with its start time, to the microsecond. A trial that was requeued and runs in
another process has another start time, so the storage can tell the present claim from a lost one. A claimed trial has a
heartbeat, and a system attribute that names its worker. Each function runs inside a transaction of its caller.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from hpo.storage.sql.rows import (
    DIRECTIONS,
    HEARTBEATS,
    INTERMEDIATE,
    PARAMS,
    STUDIES,
    STUDY_ATTRS,
    STUDY_SYSTEM_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    Row,
    attr_rows,
    read_trials,
    trial_rows,
    utc,
)

WORKER = "hpo:worker"
"""The system attribute of a trial with the worker that trains it, or trained it last."""

RUNG = "hpo:rung:"
"""Prefix of the system attributes of a trial with its values at the rungs of successive halving, one a metric."""

FROZEN = f"{RUNG}frozen"
"""The system attribute of a trial that is frozen: its training is paused. The value is the epochs it has trained."""

Claims = Mapping[int, datetime.datetime]
"""Trial id -> start time in UTC."""

# Built once, because building a statement takes longer than running it. All statements lock rows in the order of ids:
# so two processes cannot deadlock.
SELECT_RUNNING = (
    sa.select(TRIALS.c.trial_id, TRIALS.c.datetime_start)
    .where(TRIALS.c.trial_id.in_(sa.bindparam("ids", expanding=True)), TRIALS.c.state == TrialState.RUNNING)
    .order_by(TRIALS.c.trial_id)
    .with_for_update()
)

# The unique key of each table whose rows are upserted.
KEYS = {INTERMEDIATE: ("trial_id", "step"), VALUES: ("trial_id", "objective")}
KEYS[PARAMS] = ("trial_id", "param_name")
KEYS |= {table: ("trial_id", "key") for table in (USER_ATTRS, SYSTEM_ATTRS)}
KEYS |= {table: ("study_id", "key") for table in (STUDY_ATTRS, STUDY_SYSTEM_ATTRS)}


def lock_study(connection: Connection, study_id: int, share: bool = False) -> bool:
    """Lock a study until the transaction ends; return False if it does not exist.

    Several transactions can `share` the lock; one that changes the study or numbers trials must not share it.
    """
    study = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
    return connection.execute(study.with_for_update(read=share)).first() is not None


def insert_study(connection: Connection, name: str, directions: Sequence[StudyDirection]) -> tuple[int, bool]:
    """Insert a new study with one objective for each direction; return its id, and True.

    If a study has the name, change nothing, and return the id of that study, and False.
    """
    insert = dialect(connection).insert(STUDIES).values(study_name=name).on_conflict_do_nothing()
    study_id: int | None = connection.execute(insert.returning(STUDIES.c.study_id)).scalar()
    if study_id is None:
        existing: int = connection.execute(sa.select(STUDIES.c.study_id).filter_by(study_name=name)).scalar_one()
        return existing, False
    objectives = [
        {"study_id": study_id, "objective": number, "direction": direction}
        for number, direction in enumerate(directions)
    ]
    connection.execute(sa.insert(DIRECTIONS), objectives)
    return study_id, True


def read_study_attr(connection: Connection, study_id: int, key: str, table: sa.Table = STUDY_ATTRS) -> Any:
    """Return the value of a study attribute, None if it is not set."""
    query = sa.select(table.c.value_json).where(table.c.study_id == study_id, table.c.key == key)
    return json.loads(connection.execute(query).scalar() or "null")


def set_study_attrs(
    connection: Connection, study_id: int, attrs: Mapping[str, Any], table: sa.Table = STUDY_ATTRS
) -> None:
    """Set attributes of a study."""
    rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    upsert(connection, table, rows)


def insert_study_attr(connection: Connection, study_id: int, key: str, value: Any) -> None:
    """Set a user attribute of a study unless the study has it already."""
    row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
    connection.execute(dialect(connection).insert(STUDY_ATTRS).values(row).on_conflict_do_nothing())


def count_trials(connection: Connection, study_id: int) -> int:
    """Return the number of trials of a study."""
    count = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
    return connection.execute(count).scalar_one()


def insert_trials(connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Insert new trials, and set the id of each."""
    rows = [
        {
            "number": trial.number,
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": trial.datetime_start and utc(trial.datetime_start),
            "datetime_complete": trial.datetime_complete and utc(trial.datetime_complete),
        }
        for trial in trials
    ]
    insert = sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
    added: defaultdict[sa.Table, list[Row]] = defaultdict(list)
    for trial, trial_id in zip(trials, connection.execute(insert, rows).scalars().all(), strict=True):
        trial._trial_id = trial_id
        for table, rows_of_table in trial_rows(trial_id, trial):
            added[table] += rows_of_table
    for table, rows_of_table in added.items():
        if rows_of_table:
            connection.execute(sa.insert(table), rows_of_table)
    _begin_heartbeats(connection, [trial._trial_id for trial in trials if trial.state == TrialState.RUNNING])


def are_stored(connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> bool:
    """Return whether the study has exactly these trials, compared by ids, numbers and parameters, which never change.

    Ids alone are not enough: a server that crashed can assign lost ids again.
    """
    ids = [trial._trial_id for trial in trials]
    found = read_trials(connection, (TRIALS.c.study_id == study_id) & TRIALS.c.trial_id.in_(ids))

    def key(trial: FrozenTrial) -> tuple[int, int, str]:
        return trial._trial_id, trial.number, repr(sorted(trial.params.items()))

    return sorted(map(key, found)) == sorted(map(key, trials))


def lock_claimable(connection: Connection, trial_ids: Collection[int], count: int, frozen: bool) -> list[int]:
    """Return the first `count` of the trials that wait, or with `frozen` that are frozen, locked, in the order of ids.

    Trials that another transaction has locked are passed over.
    """
    frozen_ones = sa.select(SYSTEM_ATTRS.c.trial_id).where(SYSTEM_ATTRS.c.key == FROZEN)
    running = (TRIALS.c.state == TrialState.RUNNING) & TRIALS.c.trial_id.in_(frozen_ones)
    first = (
        sa.select(TRIALS.c.trial_id)
        .where(TRIALS.c.trial_id.in_(list(trial_ids)), running if frozen else TRIALS.c.state == TrialState.WAITING)
        .order_by(TRIALS.c.trial_id)
        .limit(count)
        .with_for_update(skip_locked=True)
    )
    return list(connection.execute(first).scalars())


def claim_trials(connection: Connection, trial_ids: Collection[int], now: datetime.datetime, worker: Row) -> None:
    """Set trials to RUNNING, claimed by the worker."""
    update_trials(connection, trial_ids, state=TrialState.RUNNING, datetime_start=now)
    upsert(connection, SYSTEM_ATTRS, [row for i in trial_ids for row in attr_rows(i, {WORKER: worker})])
    _begin_heartbeats(connection, trial_ids)


def lock_claimed(connection: Connection, claims: Claims) -> set[int]:
    """Return the ids of the trials whose claims are still valid, locked until the transaction ends."""
    found = connection.execute(SELECT_RUNNING, {"ids": list(claims)})
    return {trial_id for trial_id, start in found if start == claims[trial_id]}


def ended_at(connection: Connection, trial_ids: Collection[int], time: datetime.datetime) -> set[int]:
    """Return the ids of the trials that ended at this time, to the microsecond."""
    ended = TRIALS.c.trial_id.in_(list(trial_ids)) & (TRIALS.c.datetime_complete == time)
    return set(connection.execute(sa.select(TRIALS.c.trial_id).where(ended)).scalars())


def requeue_trials(connection: Connection, trial_ids: Collection[int]) -> None:
    """Set claimed trials to WAITING: keep their parameters, delete their learning curves, worker and heartbeat."""
    ids = list(trial_ids)
    update_trials(connection, ids, state=TrialState.WAITING, datetime_start=None)
    connection.execute(sa.delete(INTERMEDIATE).where(INTERMEDIATE.c.trial_id.in_(ids)))
    delete_system_attrs(connection, ids, WORKER, FROZEN)
    delete_heartbeats(connection, ids)


def update_heartbeats(connection: Connection, claims: Claims) -> None:
    """Set the heartbeat of the trials whose claims are still valid, in one statement."""
    starts = set(claims.values())
    claimed = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.trial_id.in_(list(claims)), TRIALS.c.state == TrialState.RUNNING, TRIALS.c.datetime_start.in_(starts)
    )
    now = utc_now(connection)
    connection.execute(sa.update(HEARTBEATS).where(_in_order(claimed)).values(heartbeat=now))


def _begin_heartbeats(connection: Connection, trial_ids: Collection[int]) -> None:
    delete_heartbeats(connection, trial_ids)
    if trial_ids:
        insert = sa.insert(HEARTBEATS).values(heartbeat=utc_now(connection))
        connection.execute(insert, [{"trial_id": trial_id} for trial_id in trial_ids])


def delete_system_attrs(connection: Connection, trial_ids: Collection[int], *keys: str) -> None:
    """Delete these system attributes of the trials."""
    a = SYSTEM_ATTRS.c
    connection.execute(sa.delete(SYSTEM_ATTRS).where(a.trial_id.in_(list(trial_ids)), a.key.in_(keys)))


def utc_now(connection: Connection) -> sa.ColumnElement[datetime.datetime]:
    """Return the database's time in UTC. The clocks and time zones of workers can differ."""
    now = sa.func.now() if connection.dialect.name == "sqlite" else sa.func.timezone("UTC", sa.func.now())
    return sa.type_coerce(now, sa.DateTime)


def delete_heartbeats(connection: Connection, trial_ids: Collection[int]) -> None:
    """Delete the heartbeats of trials."""
    if trial_ids:
        connection.execute(sa.delete(HEARTBEATS).where(_in_order(list(trial_ids))))


def _in_order(trial_ids: sa.Select[tuple[int]] | list[int]) -> sa.ColumnElement[bool]:
    """Return the condition that selects these trials' heartbeats, and locks them in the order of ids.

    An update moves a row on the disk. Two updates that locked rows in the order of the disk could deadlock.
    """
    heartbeats = HEARTBEATS.alias()
    rows = sa.select(heartbeats.c.trial_id).where(heartbeats.c.trial_id.in_(trial_ids))
    return HEARTBEATS.c.trial_id.in_(rows.order_by(heartbeats.c.trial_id).with_for_update())


def update_trials(connection: Connection, trial_ids: Collection[int], **columns: Any) -> None:
    """Update columns of the trials' rows."""
    if trial_ids:
        connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id.in_(list(trial_ids))).values(**columns))


def upsert(connection: Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Insert rows, or update those that exist."""
    if rows:
        connection.execute(_upsert(dialect(connection), table, tuple(rows[0])), list(rows))


@functools.cache
def _upsert(module: Any, table: sa.Table, columns: tuple[str, ...]) -> Any:
    insert = module.insert(table)
    changed = {name: insert.excluded[name] for name in columns if name not in KEYS[table]}
    return insert.on_conflict_do_update(index_elements=KEYS[table], set_=changed)


def dialect(connection: Connection) -> Any:
    """Return SQLAlchemy's module for the database, which has INSERT ... ON CONFLICT."""
    # The modules of other databases take a tenth of a second to import.
    return importlib.import_module(f"sqlalchemy.dialects.{connection.dialect.name}")
