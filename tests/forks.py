"""Processes that start in milliseconds: forks of a server that has imported torch and `hpo` already.

Use them in tests that kill, suspend, signal or combine processes, not in tests of how a process starts.
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

LONGEST_ANSWER = 2**16  # bytes


class ForkServer:
    """The process of the server (see fork_server.py). When this process ends, the server kills all forks."""

    def __init__(self) -> None:
        self._socket, passed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = Lock()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HPO_")}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fork_server.py"), str(passed.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[passed.fileno()],
            env={**environment, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in the terminal must stop only the tests
        )
        passed.close()

    def request(self, streams: Sequence[int] = (), **message: Any) -> Any:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(message).encode()], streams)
            return json.loads(self._socket.recv(LONGEST_ANSWER))

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def fork_server() -> ForkServer:
    """Return the server of this process; the first call starts it."""
    server = ForkServer()
    atexit.register(server.close)
    return server


class Fork:
    """A process of the fork server, with the part of the interface of `subprocess.Popen` that tests use.

    `stdin`, `stdout` and `stderr` are as in Popen. Pipes carry text, or unbuffered bytes where `text` is false.
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
        own_ends: list[IO[Any] | None] = []
        passed: list[int] = []
        with open(os.devnull, "r+b") as null:
            for number, stream in enumerate((stdin, stdout, stderr)):
                pipe: IO[Any] | None = None
                if stream == subprocess.PIPE:
                    read_end, write_end = os.pipe()
                    mode, fd, passed_end = ("w", write_end, read_end) if number == 0 else ("r", read_end, write_end)
                    pipe = os.fdopen(fd, mode) if text else os.fdopen(fd, f"{mode}b", buffering=0)
                    passed.append(passed_end)
                else:
                    file = number if stream is None else null if stream == subprocess.DEVNULL else stream
                    passed.append(os.dup(file if isinstance(file, int) else file.fileno()))
                own_ends.append(pipe)
            self.stdin, self.stdout, self.stderr = own_ends
            process = {
                "args": [str(word) for word in args],
                "script": script,
                "folder": str(cwd or Path.cwd()),
                "environment": dict(os.environ if env is None else env),
                "new_session": start_new_session,
            }
            self.pid: int = fork_server().request(passed, do="start", process=process)
        for fd in passed:
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
        """Return the exit status (-N for signal N), or None while the process runs."""
        if self.returncode is None and select.select([self._ended], [], [], 0)[0]:
            self.returncode = fork_server().request(do="reap", pid=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process; return its exit status, or raise TimeoutExpired."""
        self.wait_unreaped(timeout)
        status = self.poll()
        assert status is not None
        return status

    def wait_unreaped(self, timeout: float | None = None) -> None:
        """Wait for the end without reading the exit status, which leaves a zombie, as in many containers."""
        if self.returncode is None and not select.select([self._ended], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Read the rest of stdout and stderr, and wait for the end."""
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
    """Do as `subprocess.run(..., capture_output=True, text=True)`, but in a fork and with a generous deadline."""
    with Fork(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        out, err = process.communicate(deadline(120))
    assert process.returncode is not None
    return subprocess.CompletedProcess(args, process.returncode, out, err)
