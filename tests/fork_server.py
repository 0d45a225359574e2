"""A server that starts Python processes in milliseconds: forks of itself, after it has imported what `hpo` imports.

A message on its socket is a line of JSON, and so is the answer. `start` comes with the three standard streams of the
process as file descriptors, and is answered by its number; `reap` by the status of a process that has ended, and null
before that: until somebody asks, it is a zombie, as a killed process is in many containers. At the end of the socket,
which also the death of whoever asks brings about, everything that still runs is killed.

A process does what `hpo ARGS` does or, with a script, `python -c SCRIPT ARGS`, except that OMP_NUM_THREADS is 1 and
that Python's own variables (PYTHONPATH, PYTHONIOENCODING, ...) are those of the server.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import types
from typing import Any

import optuna_dashboard  # noqa: F401
import psycopg  # noqa: F401
import sklearn.datasets  # noqa: F401

import hpo.results.display.progress
import hpo.results.display.summary
import hpo.search.launch
import hpo.service.launching
import hpo.service.worker_process  # noqa: F401
from hpo.cli import main

LONGEST = 2**20  # bytes of a request


def serve(connection: socket.socket) -> int:
    """Answer requests; in a process that was started, do its work and return its status."""
    gc.freeze()  # otherwise each process copies most of the memory, when it first looks for garbage and when it ends
    running: set[int] = set()
    while True:
        message, streams, _, _ = socket.recv_fds(connection, LONGEST, 3)
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
                return work(streams, **request["process"])
            running.add(answer)
            for stream in streams:
                os.close(stream)
        connection.sendall(json.dumps(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return 0


def work(
    streams: list[int], args: list[str], script: str, folder: str, environment: dict[str, str], new_session: bool
) -> Any:
    if new_session:
        os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # Those of the server believe that they can seek where its own stdout was a file.
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # What multiprocessing starts imports the main module, if it has a file.
    sys.modules["__main__"] = types.ModuleType("__main__")
    if not script:
        sys.argv = ["hpo", *args]
        return main(args)
    sys.argv = ["-c", *args]
    exec(compile(script, "<string>", "exec"), sys.modules["__main__"].__dict__)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1]))))
