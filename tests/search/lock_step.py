"""A launch in a child process that pauses after each event until the test continues it."""

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
    """A launch in a child process, which waits after each event until the test continues it."""

    SCRIPT = """
import json, sys, threading
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.storage import open_storage
from hpo.studyfile import parse_study

def report(event):
    print(json.dumps(event.to_json()), flush=True)
    sys.stdin.readline()

study = parse_study(json.loads(sys.argv[1]), "studies/tiny.toml")
launch(study, open_storage(sys.argv[2]), LaunchOptions(device="cpu"), on_event=report, stop=threading.Event())
"""

    def __init__(self, study: Study, storage: Storage) -> None:
        args = [json.dumps(study.resolved()), storage.location.full_url]
        self.process = Fork(args, script=self.SCRIPT, stdin=PIPE, stdout=PIPE)
        self._deadline = threading.Timer(deadline(), self.process.kill)
        self._deadline.start()
        self._waiting = False

    def wait_for(self, name: str) -> None:
        """Continue the launch up to the next event of this name, and leave the launch waiting there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if self._waiting:
            self._continue()
        while line := self.process.stdout.readline():
            self._waiting = True
            if json.loads(line)["event"] == name:
                return
            self._continue()
        raise AssertionError(f"the process ended, or the deadline passed, before {name}")

    def _continue(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._waiting = False

    def resume(self) -> None:
        """Continue the launch without further waiting."""
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()

    def finish(self) -> int:
        """Continue the launch to its end; return the exit status."""
        self.finish_with_output()
        return self.process.returncode

    def finish_with_output(self) -> list[dict[str, Any]]:
        """Continue the launch to its end; return the remaining events."""
        self.resume()
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        self.process.wait()
        return [json.loads(line) for line in output.splitlines()]

    def end(self) -> None:
        """Kill the process and cancel its deadline."""
        self._deadline.cancel()
        with self.process:
            self.process.kill()

    def kill(self) -> None:
        """Kill the process and leave it unreaped in the process table, as happens in many containers."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait_unreaped(deadline())


def age_heartbeats(storage: Storage) -> None:
    """Set all heartbeats back by an hour."""
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE trial_heartbeats SET heartbeat = datetime(heartbeat, '-1 hour')"))
