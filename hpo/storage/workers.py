"""Workers: identity and liveness of processes, and the registry of a storage's workers.

A worker on the same machine (or in the same container), since its last start, can be looked up among the processes; a
worker elsewhere is judged by its heartbeats. The registry is a table of hpo, next to Optuna's tables, with a row for
each process from its first heartbeat to its end; the row of a killed process is deleted by a process that starts more
than a day later. Only the display of workers and the number of a worker's threads depend on the registry: the worker of
a trial is recorded with the trial.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.storage.connections import lock_tables
from hpo.storage.sql.statements import dialect, utc_now

EXPIRY_S = 24 * 3600.0

WORKERS = sa.Table(
    "hpo_workers",
    sa.MetaData(),
    sa.Column("worker_key", sa.String(128), primary_key=True),
    sa.Column("worker_json", sa.Text, nullable=False),
    sa.Column("since", sa.DateTime, nullable=False),
    sa.Column("seen", sa.DateTime, nullable=False),
)

NAMESPACE, BOOT = Path("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Worker:
    """A process that trains trials.

    `started` distinguishes it from other processes that had the same `pid`. Processes with the same `place` can see
    each other's ids; processes of the same `machine` share its cores, also from different containers.
    """

    host: str
    pid: int
    started: float
    place: str
    device: str = ""
    machine: str = ""

    @property
    def key(self) -> str:
        """The key of the process, unique among all machines."""
        return f"{self.place}:{self.pid}:{self.started}"

    def to_json(self) -> dict[str, Any]:
        """Return the worker as a dictionary, as it is stored with a trial."""
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Worker:
        """Return the worker of a stored dictionary."""
        return Worker(**record)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class RegisteredWorker:
    """A process in the registry: the time since it was registered, and since its last heartbeat."""

    worker: Worker
    age_s: float
    silent_s: float


def this_worker() -> Worker:
    """Return this process as a worker."""
    return Worker(socket.gethostname(), os.getpid(), _started(psutil.Process()), _place(), machine=_digest(_boot()))


def has_ended(worker: Worker) -> bool:
    """Return whether the process is known to have ended. Another process, even this one, can have got its pid."""
    if worker.place != _place():
        return False
    try:
        process = psutil.Process(worker.pid)
        return process.status() == psutil.STATUS_ZOMBIE or abs(_started(process) - worker.started) >= 1
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return not _is_hidden(worker.pid)
    except (psutil.AccessDenied, PermissionError):
        return False


def _is_hidden(pid: int) -> bool:
    """Return whether another user has a process with this id: a machine can hide those from /proc."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False  # it has started since the first check, so it is another process


def _started(process: psutil.Process) -> float:
    """Return the start time of a process: on Linux relative to the boot of the machine, because clocks can be set."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not BOOT.exists():
        return process.create_time()
    ticks = (
        stat.read_text().rpartition(")")[2].split()[19]
    )  # the command's name, in parentheses, can contain any character
    return int(ticks) / os.sysconf("SC_CLK_TCK")


@functools.cache
def _place() -> str:
    """Return a digest of host name, boot and process namespace: containers have process ids of their own."""
    namespace = NAMESPACE.stat().st_ino if NAMESPACE.exists() else 0
    return _digest(f"{socket.gethostname()} {_boot()} {namespace}")


@functools.cache
def _boot() -> str:
    """Return the id of the machine's boot, which is the same in all its containers."""
    return BOOT.read_text() if BOOT.exists() else f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def register_worker(connection: Connection, worker: Worker) -> None:
    """Add a process to the registry, and delete the rows of processes without a heartbeat for a day."""
    lock_tables(connection)
    WORKERS.create(connection, checkfirst=True)
    now = connection.execute(sa.select(utc_now(connection))).scalar_one()
    connection.execute(sa.delete(WORKERS).where(WORKERS.c.seen < now - datetime.timedelta(seconds=EXPIRY_S)))
    record_worker_heartbeat(connection, worker)


def record_worker_heartbeat(connection: Connection, worker: Worker) -> None:
    """Store a heartbeat of a process, and the device that it uses now."""
    now = utc_now(connection)
    changed = {"worker_json": json.dumps(worker.to_json()), "seen": now}
    insert = dialect(connection).insert(WORKERS).values(worker_key=worker.key, since=now, **changed)
    connection.execute(insert.on_conflict_do_update(index_elements=[WORKERS.c.worker_key], set_=changed))


def unregister_worker(connection: Connection, worker: Worker) -> None:
    """Remove a process from the registry."""
    connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker_key == worker.key))


def read_registry(connection: Connection) -> list[RegisteredWorker]:
    """Return the processes in the registry that are not known to have ended, oldest first."""
    if not sa.inspect(connection).has_table(WORKERS.name):
        return []
    now = connection.execute(sa.select(utc_now(connection))).scalar_one()
    found = []
    for row in connection.execute(sa.select(WORKERS).order_by(WORKERS.c.since, WORKERS.c.worker_key)):
        worker = Worker.from_json(json.loads(row.worker_json))
        if not has_ended(worker):
            found.append(RegisteredWorker(worker, (now - row.since).total_seconds(), (now - row.seen).total_seconds()))
    return found
