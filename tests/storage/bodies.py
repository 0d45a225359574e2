"""Processes that lend a worker their identity, and what tests do to signs of life.

A body does nothing; it can be killed, so that whoever looks for the worker's process finds that it ended.
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


class Body:
    """A process that waits. It ends with the test's own, which holds the other end of its pipe."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        self.started = workers._started(psutil.Process(self.process.pid))

    def worker(self, device: str = "") -> Worker:
        return replace(this_worker(), pid=self.process.pid, started=self.started, device=device)

    def die(self) -> None:
        """Be killed, and reaped."""
        self.process.kill()
        self.process.communicate()


def silence(storage: Storage, trial_ids: Collection[int], seconds: int = HOUR_S) -> None:
    """Let the last sign of life of trials be older than it is."""
    earlier = EARLIER[storage.engine.dialect.name]
    update = sa.text(f"UPDATE trial_heartbeats SET heartbeat = {earlier} WHERE trial_id IN :ids")
    with storage.engine.begin() as connection:
        ids = sa.bindparam("ids", expanding=True)
        connection.execute(update.bindparams(ids), {"ids": list(trial_ids), "seconds": seconds})
