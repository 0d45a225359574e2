"""The statements that a storage's transactions consist of: trials inserted, claimed, changed and let go.

A claim is a running trial together with the time it started, to the microsecond: a trial that was given away and runs
elsewhere has started at another time, so who has lost it can be told from who holds it. While a trial is claimed it
has a heartbeat, and names its worker. Each function is part of a transaction that its caller has begun.
"""

from __future__ import annotations

import datetime
import functools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from hpo.storage.rows import (
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
"""The system attribute that names who trains a trial, or trained it last."""

Claims = Mapping[int, datetime.datetime]
"""Trial id -> when it started, in UTC."""

# Made once: making a statement takes longer than running it. In one order everywhere, so that two processes never wait
# for each other's rows.
SELECT_RUNNING = (
    sa.select(TRIALS.c.trial_id, TRIALS.c.datetime_start)
    .where(TRIALS.c.trial_id.in_(sa.bindparam("ids", expanding=True)), TRIALS.c.state == TrialState.RUNNING)
    .order_by(TRIALS.c.trial_id)
    .with_for_update()
)

# The columns that make a row the same row, where writing it again means changing it.
KEYS = {INTERMEDIATE: ("trial_id", "step"), VALUES: ("trial_id", "objective")}
KEYS[PARAMS] = ("trial_id", "param_name")
KEYS |= {table: ("trial_id", "key") for table in (USER_ATTRS, SYSTEM_ATTRS)}
KEYS |= {table: ("study_id", "key") for table in (STUDY_ATTRS, STUDY_SYSTEM_ATTRS)}


def lock_study(connection: Connection, study_id: int, share: bool = False) -> bool:
    """Let nobody change or number anything in a study until the transaction ends; return whether there is such a study.

    Several may `share` the lock, and none of them can then get it alone: who is going to change something does not.
    """
    study = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)
    return connection.execute(study.with_for_update(read=share)).first() is not None


def insert_trials(connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Write new trials, and give each the id it has got."""
    rows = [
        {
            "number": trial.number,
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": utc(trial.datetime_start),
            "datetime_complete": utc(trial.datetime_complete),
        }
        for trial in trials
    ]
    insert = sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
    added: defaultdict[sa.Table, list[Row]] = defaultdict(list)
    for trial, trial_id in zip(trials, connection.execute(insert, rows).scalars().all(), strict=True):
        trial._trial_id = trial_id
        for table, of_table in trial_rows(trial_id, trial):
            added[table] += of_table
    for table, of_table in added.items():
        if of_table:
            connection.execute(sa.insert(table), of_table)
    _begin_heartbeats(connection, [trial._trial_id for trial in trials if trial.state == TrialState.RUNNING])


def are_stored(connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> bool:
    """Whether these are trials of the study, told by what never changes: ids, numbers and parameters.

    Ids alone would not do: a server that crashed may give those again that were lost.
    """
    ids = [trial._trial_id for trial in trials]
    found = read_trials(connection, (TRIALS.c.study_id == study_id) & TRIALS.c.trial_id.in_(ids))

    def fixed(trial: FrozenTrial) -> tuple[int, int, str]:
        return trial._trial_id, trial.number, repr(sorted(trial.params.items()))

    return sorted(map(fixed, found)) == sorted(map(fixed, trials))


def claim(connection: Connection, trial_ids: Collection[int], now: datetime.datetime, worker: Row) -> None:
    """Set trials running, as the worker's."""
    update_trials(connection, trial_ids, state=TrialState.RUNNING, datetime_start=now)
    upsert(connection, SYSTEM_ATTRS, [row for i in trial_ids for row in attr_rows(i, {WORKER: worker})])
    _begin_heartbeats(connection, trial_ids)


def held(connection: Connection, claims: Claims) -> set[int]:
    """Return the trials that are still held by these claims, locked until the transaction ends."""
    found = connection.execute(SELECT_RUNNING, {"ids": list(claims)})
    return {trial_id for trial_id, start in found if start == claims[trial_id]}


def send_back(connection: Connection, trial_ids: Collection[int]) -> None:
    """Let claimed trials wait, with their parameters, and without what they had reached."""
    ids = list(trial_ids)
    update_trials(connection, ids, state=TrialState.WAITING, datetime_start=None)
    connection.execute(sa.delete(INTERMEDIATE).where(INTERMEDIATE.c.trial_id.in_(ids)))
    connection.execute(sa.delete(SYSTEM_ATTRS).where(SYSTEM_ATTRS.c.trial_id.in_(ids), SYSTEM_ATTRS.c.key == WORKER))
    end_heartbeats(connection, ids)


def beat(connection: Connection, claims: Claims) -> None:
    """Note that these trials are being trained: of those still held, in one statement."""
    starts = set(claims.values())
    ours = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.trial_id.in_(list(claims)), TRIALS.c.state == TrialState.RUNNING, TRIALS.c.datetime_start.in_(starts)
    )
    now = utc_now(connection)
    connection.execute(sa.update(HEARTBEATS).where(_in_order(ours)).values(heartbeat=now))


def _begin_heartbeats(connection: Connection, trial_ids: Collection[int]) -> None:
    end_heartbeats(connection, trial_ids)
    if trial_ids:
        insert = sa.insert(HEARTBEATS).values(heartbeat=utc_now(connection))
        connection.execute(insert, [{"trial_id": trial_id} for trial_id in trial_ids])


def utc_now(connection: Connection) -> sa.ColumnElement[datetime.datetime]:
    """Return the time by the database's clock, because those of the workers may differ; in UTC, as their zones may."""
    now = sa.func.now() if connection.dialect.name == "sqlite" else sa.func.timezone("UTC", sa.func.now())
    return sa.type_coerce(now, sa.DateTime)


def end_heartbeats(connection: Connection, trial_ids: Collection[int]) -> None:
    """Forget the heartbeats of trials that nobody trains any more."""
    if trial_ids:
        connection.execute(sa.delete(HEARTBEATS).where(_in_order(list(trial_ids))))


def _in_order(trial_ids: sa.Select[tuple[int]] | list[int]) -> sa.ColumnElement[bool]:
    """Return which heartbeats are of these trials, locked by their ids before the first is changed.

    A changed row lies elsewhere on the disk: two beats that met the rows as they lie would wait for each other.
    """
    heartbeats = HEARTBEATS.alias()
    rows = sa.select(heartbeats.c.trial_id).where(heartbeats.c.trial_id.in_(trial_ids))
    return HEARTBEATS.c.trial_id.in_(rows.order_by(heartbeats.c.trial_id).with_for_update())


def update_trials(connection: Connection, trial_ids: Collection[int], **columns: Any) -> None:
    """Change columns of the trials' own rows."""
    if trial_ids:
        connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id.in_(list(trial_ids))).values(**columns))


def upsert(connection: Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Write rows, changing those that are there."""
    if rows:
        connection.execute(_upsert(dialect(connection), table, tuple(rows[0])), list(rows))


@functools.cache
def _upsert(module: Any, table: sa.Table, columns: tuple[str, ...]) -> Any:
    insert = module.insert(table)
    changed = {name: insert.excluded[name] for name in columns if name not in KEYS[table]}
    return insert.on_conflict_do_update(index_elements=KEYS[table], set_=changed)


def dialect(connection: Connection) -> Any:
    """SQLAlchemy's module for what the two databases have, and standard SQL has not."""
    return sqlite if connection.dialect.name == "sqlite" else postgresql
