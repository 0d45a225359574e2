"""A running `hpo` process for the end-to-end tests."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import termios
from pathlib import Path
from subprocess import PIPE
from typing import Any, NamedTuple

from deadlines import deadline, wait_for
from forks import Fork

HPO = Path(sys.executable).with_name("hpo")
PIPE_BYTES = 4096
LINE_BYTES = 200  # an event of an epoch is shorter


class Outcome(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


class Running:
    """A command in its own process, with pipes for its output.

    The pipes are small and read byte by byte, so a command that writes a line an epoch is at most some fifty epochs
    ahead of its reader, however slow the machine is.
    """

    def __init__(self, folder: Path, args: tuple[str, ...], environment: dict[str, str], script: str = "") -> None:
        env = {**os.environ, **environment}
        self.process = Fork(args, script=script, cwd=folder, env=env, stdout=PIPE, stderr=PIPE, text=False)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def line(self) -> str:
        """Return the next line of stdout; "" at its end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def wait_for(self, name: str) -> dict[str, Any]:
        """Read JSON events up to the next of that name, and return it."""
        while line := self.line():
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"no {name} before the end: {self.outcome()}")

    def wait_until_blocked(self) -> None:
        """Wait until the command has filled the pipe, so that its next line blocks."""
        assert self.process.stdout is not None
        stdout, unread = self.process.stdout, bytearray(4)

        def is_full() -> bool:
            assert self.process.poll() is None, self.outcome()
            fcntl.ioctl(stdout, termios.FIONREAD, unread)
            return int.from_bytes(unread, sys.byteorder) >= PIPE_BYTES - LINE_BYTES

        wait_for(is_full)

    def outcome(self) -> Outcome:
        """Wait for the end; return the status and the output not read yet."""
        out, err = self.process.communicate(deadline())
        return Outcome(self.process.returncode, out.decode(), err.decode())

    def end(self) -> None:
        """Kill the process, and close its pipes."""
        with self.process:
            self.process.kill()
