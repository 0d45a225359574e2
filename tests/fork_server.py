"""Server that starts Python processes in milliseconds: forks of itself, after it has imported torch and `hpo`.

Requests and answers on the socket are JSON. `start` brings the three standard streams of the process as file
descriptors; its answer is the process ID. The answer of `reap` is the exit status of a process that has ended, else
null. Until `reap`, an ended process is a zombie, like a killed process in many containers. When the socket closes,
also because the client died, the server kills all processes that still run.

A process runs `hpo ARGS` or, with a script, `python -c SCRIPT ARGS`, but with OMP_NUM_THREADS=1 and with the server's
values of Python's own variables (PYTHONPATH, PYTHONIOENCODING, ...).
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import signal
import socket
import sys
import threading
import types
from typing import Any

import optuna_dashboard  # noqa: F401
import psycopg  # noqa: F401
import sklearn.datasets  # noqa: F401

import hpo.results.display.progress
import hpo.results.display.summary
import hpo.results.figures.kinds
import hpo.results.figures.source
import hpo.search.launch
import hpo.service.launching
import hpo.service.worker_process  # noqa: F401
from hpo.cli import main

LONGEST_REQUEST = 2**20  # bytes


def serve(connection: socket.socket) -> int:
    """Answer requests until the socket closes; in a fork, run its command and return the exit status."""
    gc.freeze()  # else each fork copies most of the memory in its garbage collections
    running: set[int] = set()
    while True:
        message, streams, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 3)
        if not message:
            break
        request = json.loads(message)
        if request["do"] == "reap":
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                connection.close()
                status = run_command(streams, **request["process"])
                exit_without_destruction(status)
                return status
            running.add(answer)
            for stream in streams:
                os.close(stream)
        connection.sendall(json.dumps(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return 0


def run_command(
    streams: list[int], args: list[str], script: str, folder: str, environment: dict[str, str], new_session: bool
) -> Any:
    """Run the command of a fork; return its exit status."""
    if new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The server's stream objects seek if its own stdout was a file.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Child processes of multiprocessing import the main module if it has a file.
    sys.modules["__main__"] = types.ModuleType("__main__")
    if not script:
        sys.argv = ["hpo", *args]
        return main(args)
    sys.argv = ["-c", *args]
    exec(compile(script, "<string>", "exec"), sys.modules["__main__"].__dict__)
    return 0


def exit_without_destruction(status: int) -> None:
    """Exit as Python does, but do not destroy the modules, which copies the memory shared with the server first.

    Return if the output cannot be written: Python has an exit status for that.
    """
    threading._shutdown()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a further Ctrl-C ends the process, as in Python's last steps
    atexit._run_exitfuncs()
    gc.collect()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))
