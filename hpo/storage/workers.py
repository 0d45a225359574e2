"""Workers: which process works through a storage, and whether one met in it is known to have ended.

Only a process of the same machine (or container), since it started, can be looked for; what became of others, their
heartbeats tell. Knows nothing of trials.
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
from hpo.storage.statements import dialect, utc_now

FORGOTTEN_S = 24 * 3600.0

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
    """A process: `started` tells it from others that have its number, `place` who can see each other's numbers.

    Processes of one `machine` share its cores, in whatever containers they are.
    """

    host: str
    pid: int
    started: float
    place: str
    device: str = ""
    machine: str = ""

    @property
    def key(self) -> str:
        """What tells this process from all others, whatever it works on."""
        return f"{self.place}:{self.pid}:{self.started}"

    def to_json(self) -> dict[str, Any]:
        """Return the worker as it is kept with a trial."""
        return asdict(self)

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Worker:
        """Return the worker that was kept."""
        return Worker(**record)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class RegisteredWorker:
    """A process that works on the storage: for how long, and how long ago it showed a sign of life."""

    worker: Worker
    age_s: float
    silent_s: float


def this_worker() -> Worker:
    """Return this process."""
    return Worker(socket.gethostname(), os.getpid(), _started(psutil.Process()), _place(), machine=_digest(_boot()))


def has_ended(worker: Worker) -> bool:
    """Return whether that very process is known to have ended: its number may have gone to another, even this one."""
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
    """Whether there is a process of that number, of another user: a machine may hide those from /proc."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False  # it has come up in the meantime, so it is not the one that was looked for


def _started(process: psutil.Process) -> float:
    """Return when a process started: on Linux since the machine did, because clocks can be set."""
    stat = Path(f"/proc/{process.pid}/stat")
    if not BOOT.exists():
        return process.create_time()
    ticks = stat.read_text().rpartition(")")[2].split()[19]  # the command's name, in parentheses, may hold anything
    return int(ticks) / os.sysconf("SC_CLK_TCK")


@functools.cache
def _place() -> str:
    """Containers can share a host's name and have process numbers of their own; a restart begins these anew."""
    namespace = NAMESPACE.stat().st_ino if NAMESPACE.exists() else 0
    return _digest(f"{socket.gethostname()} {_boot()} {namespace}")


@functools.cache
def _boot() -> str:
    """What the containers of a machine have in common, and no two machines."""
    return BOOT.read_text() if BOOT.exists() else f"{socket.gethostname()} {psutil.boot_time():.0f}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def register_worker(connection: Connection, worker: Worker) -> None:
    """Put a process into the registry, and forget those that have been silent for a day."""
    lock_tables(connection)
    WORKERS.create(connection, checkfirst=True)
    now = connection.execute(sa.select(utc_now(connection))).scalar_one()
    connection.execute(sa.delete(WORKERS).where(WORKERS.c.seen < now - datetime.timedelta(seconds=FORGOTTEN_S)))
    record_worker_heartbeat(connection, worker)


def record_worker_heartbeat(connection: Connection, worker: Worker) -> None:
    """Note a sign of life, and the device that the process works on by now."""
    now = utc_now(connection)
    changing = {"worker_json": json.dumps(worker.to_json()), "seen": now}
    insert = dialect(connection).insert(WORKERS).values(worker_key=worker.key, since=now, **changing)
    connection.execute(insert.on_conflict_do_update(index_elements=[WORKERS.c.worker_key], set_=changing))


def unregister_worker(connection: Connection, worker: Worker) -> None:
    """Take a process out of the registry."""
    connection.execute(sa.delete(WORKERS).where(WORKERS.c.worker_key == worker.key))


def read_registry(connection: Connection) -> list[RegisteredWorker]:
    """Return the processes in the registry, oldest first, without those that are known to have ended."""
    if not sa.inspect(connection).has_table(WORKERS.name):
        return []
    now = connection.execute(sa.select(utc_now(connection))).scalar_one()
    found = []
    for row in connection.execute(sa.select(WORKERS).order_by(WORKERS.c.since, WORKERS.c.worker_key)):
        worker = Worker.from_json(json.loads(row.worker_json))
        if not has_ended(worker):
            found.append(RegisteredWorker(worker, (now - row.since).total_seconds(), (now - row.seen).total_seconds()))
    return found
