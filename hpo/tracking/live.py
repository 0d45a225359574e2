"""Live tracking of a launch: start the process that follows the study, show its messages, end it with the launch.

The search is never in wait of it: its process is started when the study is stored, and gets a limited time to write
what is left when the search has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from hpo.search.events import Event, Note, StudyStarted
from hpo.storage import Storage
from hpo.text import hpo_command
from hpo.tracking.targets import Target

FLUSH_S = 120.0
"""Seconds that the process may take to write what is left once the search has ended."""

KILL_S = 5.0
"""Seconds after which it is killed then."""

SILENT_S = 2.0
"""Seconds of that time after which the user is told."""

TOO_LATE = 3
"""Exit status of a follower that has not written everything in the time after the search."""

LONGEST_MESSAGE = 1 << 16


class LiveTracking:
    """Listener that calls another listener, starts the follower with the study, and passes on its messages.

    A context manager: it ends the follower when it exits. Without targets it only calls the other listener.
    """

    def __init__(self, storage: Storage, targets: Sequence[Target], on_event: Callable[[Event], None]) -> None:
        self._storage, self._targets, self._on_event = storage, targets, on_event
        self._study = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is None:
            return
        try:
            if kind is None or not issubclass(kind, SystemExit | KeyboardInterrupt):
                self._end(process)
        finally:  # also if a second signal interrupts the wait
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def __call__(self, event: Event) -> None:
        """Pass on an event, and the messages of the follower so far."""
        self._on_event(event)
        if isinstance(event, StudyStarted) and self._process is None and self._targets:
            self._start(event.study)
        self._show_messages()

    def _start(self, study: str) -> None:
        self._study = study
        python_path = os.pathsep.join(filter(None, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-m", "hpo.tracking.follower"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches all processes of a terminal, and the follower writes the end
        )
        assert process.stdin is not None
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        targets = [f"{target.kind}:{target.place}" for target in self._targets]
        url = self._storage.location.full_url
        first = {"storage": url, "study": study, "targets": targets, "flush_s": FLUSH_S}
        self._process = process
        with contextlib.suppress(OSError):  # it has ended at once: its status says so in the end
            process.stdin.write(json.dumps(first).encode() + b"\n")
            process.stdin.flush()

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Let the follower write what is left, for a limited time."""
        assert process.stdin is not None
        with contextlib.suppress(OSError):  # the follower has ended
            process.stdin.write(b"end\n")
            process.stdin.close()
        start = time.monotonic()
        announced = False
        while process.poll() is None and time.monotonic() - start < FLUSH_S + KILL_S:
            self._show_messages()
            if not announced and time.monotonic() - start > SILENT_S:
                self._on_event(Note(f"writes what is left to {', '.join(target.shown for target in self._targets)}"))
                announced = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        self._show_messages()
        if process.poll() != 0:
            status = process.poll()
            why = "took too long at the end" if status in (None, TOO_LATE) else f"ended with status {status}"
            commands = " and ".join(
                f"`{hpo_command('export', self._study, f'--to {target.shown}')}`" for target in self._targets
            )
            self._on_event(Note(f"tracking {why}: {commands} writes what is missing", "warning"))

    def _show_messages(self) -> None:
        """Pass on the messages that the follower has sent."""
        if self._process is None or self._process.stdout is None:
            return
        try:
            self._unread += os.read(self._process.stdout.fileno(), LONGEST_MESSAGE)
        except BlockingIOError:
            return
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            message = json.loads(line)
            self._on_event(Note(message["text"], message["level"]))
