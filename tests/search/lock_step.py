"""A launch in a process of its own that goes on when a test says so, and what a test does to such processes."""

from __future__ import annotations

import json
import os
import signal
import threading
from subprocess import PIPE
from typing import Any

import sqlalchemy as sa
from deadlines import deadline
from forks import Fork

from hpo.storage import Storage
from hpo.studyfile import Study


class LockStep:
    """A launch in a process of its own, which waits after each event until it is told to go on."""

    SCRIPT = """
import json, sys, threading
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.storage import open_storage
from hpo.studyfile import parse_study

def tell(event):
    print(json.dumps(event.to_json()), flush=True)
    sys.stdin.readline()

study = parse_study(json.loads(sys.argv[1]), "studies/tiny.toml")
launch(study, open_storage(sys.argv[2]), LaunchOptions(device="cpu"), on_event=tell, stop=threading.Event())
"""

    def __init__(self, study: Study, storage: Storage) -> None:
        args = [json.dumps(study.resolved()), storage.location.full_url]
        self.process = Fork(args, script=self.SCRIPT, stdin=PIPE, stdout=PIPE)
        self._deadline = threading.Timer(deadline(), self.process.kill)
        self._deadline.start()
        self._waits = False

    def wait_for(self, name: str) -> None:
        """Let it go on up to the next event of that name, and leave it waiting there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self._waits:
            self._tell()
        while line := self.process.stdout.readline():
            self._waits = True
            if json.loads(line)["event"] == name:
                return
            self._tell()
        raise AssertionError(f"the process ended, or the deadline passed, before {name}")

    def _tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._waits = False

    def go_on(self) -> None:
        """Let it go on, and wait no more."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()

    def finish(self) -> int:
        """Let it go on to its end; return its status."""
        self.finish_with_output()
        return self.process.returncode

    def finish_with_output(self) -> list[dict[str, Any]]:
        """Let it go on to its end; return the events that are left."""
        self.go_on()
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        self.process.wait()
        return [json.loads(line) for line in output.splitlines()]

    def end(self) -> None:
        self._deadline.cancel()
        with self.process:
            self.process.kill()

    def kill(self) -> None:
        """Kill it, and leave it in the table of processes, as happens in many containers: nobody reaps it."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait_unreaped(deadline())


def age_heartbeats(storage: Storage) -> None:
    """Let all heartbeats be as old as if nothing had been heard for an hour."""
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 hour')"))
