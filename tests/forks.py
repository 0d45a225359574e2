"""Processes that are forks of a server which has loaded torch and `hpo` already: they start in milliseconds.

Use them where a process is the point (it is killed, suspended, sent signals, or beside others), and not how it begins.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any, Self

from deadlines import deadline

LONGEST = 2**16  # bytes of an answer


class ForkServer:
    """The server's process (see fork_server.py). When this process ends, so do the forks, whatever happens."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = Lock()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py"), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**environment, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in the terminal is for the tests
        )
        theirs.close()

    def ask(self, streams: Sequence[int] = (), **request: Any) -> Any:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], streams)
            return json.loads(self._socket.recv(LONGEST))

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def fork_server() -> ForkServer:
    """The server of this process, which starts with the first fork."""
    server = ForkServer()
    atexit.register(server.close)
    return server


class Fork:
    """A process of the fork server: what `subprocess.Popen` offers, as far as tests use it.

    `stdin`, `stdout` and `stderr` take what Popen takes; pipes are of text, or without `text` of bytes and unbuffered.
    """

    def __init__(
        self,
        args: Sequence[str | Path],
        *,
        script: str = "",
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[Any] = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        text: bool = True,
        start_new_session: bool = False,
    ) -> None:
        self.args = args
        self.returncode: int | None = None
        ours: list[IO[Any] | None] = []
        theirs: list[int] = []
        with open(os.devnull, "r+b") as nothing:
            for number, wanted in enumerate((stdin, stdout, stderr)):
                mine: IO[Any] | None = None
                if wanted == subprocess.PIPE:
                    reading, writing = os.pipe()
                    mode, fd, other = ("w", writing, reading) if number == 0 else ("r", reading, writing)
                    mine = os.fdopen(fd, mode) if text else os.fdopen(fd, f"{mode}b", buffering=0)
                    theirs.append(other)
                else:
                    file = number if wanted is None else nothing if wanted == subprocess.DEVNULL else wanted
                    theirs.append(os.dup(file if isinstance(file, int) else file.fileno()))
                ours.append(mine)
            self.stdin, self.stdout, self.stderr = ours
            process = {
                "args": [str(word) for word in args],
                "script": script,
                "folder": str(cwd or Path.cwd()),
                "environment": dict(os.environ if env is None else env),
                "new_session": start_new_session,
            }
            self.pid: int = fork_server().ask(theirs, do="start", process=process)
        for fd in theirs:
            os.close(fd)
        self._ended = os.pidfd_open(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        self.wait()
        os.close(self._ended)

    def poll(self) -> int | None:
        """Return the status, -N for signal N, or None while it runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = fork_server().ask(do="reap", pid=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the status, or raise TimeoutExpired."""
        self.wait_unreaped(timeout)
        status = self.poll()
        assert status is not None
        return status

    def wait_unreaped(self, timeout: float | None = None) -> None:
        """Wait for the end, and leave a zombie behind, as happens in many containers: nobody asks for the status."""
        if self.returncode is None and not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Read what stdout and stderr still have, and wait for the end."""
        if self.stdin is not None:
            self.stdin.close()
        with ThreadPoolExecutor(2) as pool:
            reads: list[Future[Any] | None] = [
                stream and pool.submit(stream.read) for stream in (self.stdout, self.stderr)
            ]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        return reads[0] and reads[0].result(), reads[1] and reads[1].result()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def run(args: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run(..., capture_output=True, text=True)` does, by a fork; its deadline is a generous one."""
    with Fork(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        out, err = process.communicate(deadline(120))
    assert process.returncode is not None
    return subprocess.CompletedProcess(args, process.returncode, out, err)
