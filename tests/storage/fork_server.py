"""A server that starts `hpo` commands as processes of their own, in milliseconds: torch is loaded once, here.

A command's process is a fork of this one that has done nothing but import. It runs what the installed script runs, on
the same arguments, and writes to two files. A line of JSON comes in on stdin, and one goes out on stdout: for a command
the number of its process, for null the [number, status] of those that ended since. At the end of stdin, which also the
death of whoever asks brings about, everything that still runs is killed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys

import optuna_dashboard  # noqa: F401
import psycopg  # noqa: F401
import sklearn.datasets  # noqa: F401

import hpo.results.closing
import hpo.results.progress
import hpo.search.launch  # noqa: F401
from hpo.cli import main


def serve() -> int:
    """Answer requests; in the process of a command, return the command's status."""
    gc.freeze()  # otherwise each process copies most of the memory, when it first looks for garbage and when it ends
    running: set[int] = set()
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if request is None:
            answer = ended(running)
        else:
            answer = os.fork()
            if answer == 0:
                return command(**request)
            running.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    return 0


def command(args: list[str], out: str, err: str) -> int:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    return main(args)


def ended(running: set[int]) -> list[tuple[int, int]]:
    """Wait for those that have ended; before that they are zombies, as a killed process is in many containers."""
    found = []
    for pid in sorted(running):
        waited, status = os.waitpid(pid, os.WNOHANG)
        if waited:
            running.discard(pid)
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


if __name__ == "__main__":
    sys.exit(serve())
