"""The registry: which processes work on a storage, those that hold no trial among them.

A process has a row in a table of hpo's own, beside Optuna's tables, from its first sign of life to its end; the row of
one that was killed stays until another comes in a day later. Nothing depends on the registry but what is shown, and how
many threads a worker gives itself: who holds a trial is in the trial's own row.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.storage.connections import lock_tables
from hpo.storage.statements import dialect, utc_now
from hpo.storage.workers import Worker, has_ended

FORGOTTEN_S = 24 * 3600.0

WORKERS = sa.Table(
    "hpo_workers",
    sa.MetaData(),
    sa.Column("worker_key", sa.String(128), primary_key=True),
    sa.Column("worker_json", sa.Text, nullable=False),
    sa.Column("since", sa.DateTime, nullable=False),
    sa.Column("seen", sa.DateTime, nullable=False),
)


@dataclass(frozen=True)
class Registered:
    """A process that works on the storage: for how long, and how long ago it showed a sign of life."""

    worker: Worker
    age_s: float
    silent_s: float


def enter(connection: Connection, worker: Worker) -> None:
    """Put a process into the registry, and forget those that have been silent for a day."""
    lock_tables(connection)
    WORKERS.create(connection, checkfirst=True)
    now = connection.execute(sa.select(utc_now(connection))).scalar_one()
    connection.execute(sa.delete(WORKERS).where(WORKERS.c.seen < now - datetime.timedelta(seconds=FORGOTTEN_S)))
    seen(connection, worker)


def seen(connection: Connection, worker: Worker) -> None:
    """Note a sign of life, and the device that the process works on by now."""
    now = utc_now(connection)
    changing = {"worker_json": json.dumps(worker.to_json()), "seen": now}
    insert = dialect(connection).insert(WORKERS).values(worker_key=worker.key, since=now, **changing)
    connection.execute(insert.on_conflict_do_update(index_elements=[WORKERS.c.worker_key], set_=changing))


def leave(connection: Connection, worker: Worker) -> None:
    """Take a process out of the registry."""
    connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker_key == worker.key))


def registered(connection: Connection) -> list[Registered]:
    """Return the processes in the registry, oldest first, without those that are known to have ended."""
    if not sa.inspect(connection).has_table(WORKERS.name):
        return []
    now = connection.execute(sa.select(utc_now(connection))).scalar_one()
    found = []
    for row in connection.execute(sa.select(WORKERS).order_by(WORKERS.c.since, WORKERS.c.worker_key)):
        worker = Worker.from_json(json.loads(row.worker_json))
        if not has_ended(worker):
            found.append(Registered(worker, (now - row.since).total_seconds(), (now - row.seen).total_seconds()))
    return found
