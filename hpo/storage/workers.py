"""Workers: which process works through a storage, and whether one met in it is known to have ended.

Only a process of the same machine (or container), since it started, can be looked for; what became of others, their
heartbeats tell. Knows nothing of trials.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

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
