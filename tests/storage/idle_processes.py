"""Idle processes that stand for workers, and heartbeats that tests make older.

An idle process can be killed, so that a worker with its identity has ended.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection
from dataclasses import replace

import psutil
import sqlalchemy as sa

from hpo.storage import Storage, workers
from hpo.storage.workers import Worker, this_worker

HOUR_S = 3600
EARLIER = {
    "sqlite": "datetime(heartbeat, -:seconds || ' seconds')",
    "postgresql": "heartbeat - :seconds * interval '1 second'",
}


class IdleProcess:
    """A process that waits for its stdin, a pipe from the test process, to be closed."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.started = workers._started(psutil.Process(self.process.pid))

    def worker(self, device: str = "") -> Worker:
        return replace(this_worker(), pid=self.process.pid, started=self.started, device=device)

    def kill(self) -> None:
        """Kill the process and wait for its end."""
        self.process.kill()
        self.process.communicate()


def age_heartbeats(storage: Storage, trial_ids: Collection[int], seconds: int = HOUR_S) -> None:
    """Make the heartbeats of trials `seconds` older."""
    earlier = EARLIER[storage.engine.dialect.name]
    update = sa.text(f"UPDATE trial_heartbeats SET heartbeat = {earlier} WHERE trial_id IN :ids")
    with storage.engine.begin() as connection:
        ids = sa.bindparam("ids", expanding=True)
        connection.execute(update.bindparams(ids), {"ids": list(trial_ids), "seconds": seconds})
