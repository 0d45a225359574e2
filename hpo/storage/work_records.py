"""Work records: the machine, the versions and the working time of each process that has searched a study.

A record is a user attribute of the study, with a key of its own, so processes never overwrite each other's. It is
written after the first population, then at most once a minute, and when the search ends; a killed process loses what it
did since. The time is that of populations, without the time in which a worker waits.
"""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from hpo.errors import StorageError
from hpo.storage.storage import Storage
from hpo.versions import versions

WORK = "hpo:work:"
"""The prefix of the user attributes with work records."""

WRITE_EVERY_S = 60.0


class WorkRecord:
    """The work record of this process's search of a study."""

    def __init__(self, storage: Storage, study_id: int) -> None:
        self._storage, self._study_id = storage, study_id
        self._key, self._seconds = f"{WORK}{secrets.token_hex(8)}", 0.0
        self._written_at, self._written = 0.0, 0.0

    def add(self, seconds: float) -> None:
        """Count the working time of a population, and write the record where that is due."""
        first = not self._seconds
        self._seconds += seconds
        if first or time.monotonic() - self._written_at > WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the record unless it is written already, or the study has been deleted."""
        if self._seconds == self._written:
            return
        record = {"seconds": round(self._seconds, 3), "machine": machine(self._storage), "versions": versions()}
        with contextlib.suppress(KeyError, StorageError):  # statistics never end a search
            self._storage.set_study_attrs(self._study_id, {self._key: record})
        self._written_at, self._written = time.monotonic(), self._seconds


def machine(storage: Storage) -> dict[str, Any]:
    """Return this machine: an anonymous id, processor, cores, memory, and the device that the process trains on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "id": storage.worker.machine,
        "system": platform.system(),
        "processor": _processor(),
        "cores": cores,
        "memory_bytes": psutil.virtual_memory().total,
        "device": storage.worker.device or "cpu",
    }


def work_records(user_attrs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the work records of a study; none for a study of an earlier version."""
    return [record for key, record in sorted(user_attrs.items()) if key.startswith(WORK)]


def _processor() -> str:
    """Return the model of the processor, `AMD EPYC 7B13 64-Core Processor`."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()
