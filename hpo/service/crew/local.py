"""Local crew: a launch's workers as processes of this machine.

A worker that is killed is restarted unless it died within 10 s. Its warnings are shown by the launch. A worker stops by
itself when the launch is gone. The storage's URL, which may contain a password, is sent to the workers through a pipe.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Self

from hpo import garbage_collection
from hpo.errors import HpoError
from hpo.search.events import Event, Note
from hpo.service.worker import WorkerOptions, work
from hpo.service.worker_process import REQUEUE_S, STOP_S, shutdown_timeout, wait_for_storage
from hpo.signals import StopRequest

RESTART_AFTER_S = 10.0
"""A worker that is killed within so many seconds is not restarted: the next one would die as soon."""

SPAWN = multiprocessing.get_context("spawn")


@dataclass
class _Slot:
    """A worker of the crew: its process, the pipe for its messages, the start of its work, and its error."""

    process: BaseProcess
    messages: Connection
    since: float | None = None
    over: bool = False
    problem: str = ""


class LocalCrew:
    """A `Crew` of processes. `on_event` is called with notes for the user."""

    def __init__(self, url: str, options: WorkerOptions, workers: int, on_event: Callable[[Event], None]) -> None:
        self._url, self._options, self._workers, self._on_event = url, options, workers, on_event
        (self.study,) = options.names
        self._slots: list[_Slot] = []
        self._shown: set[str] = set()  # problems

    def __enter__(self) -> Self:
        self._slots = [self._start() for _ in range(self._workers)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + STOP_S + REQUEUE_S
        try:
            if kind is None or not issubclass(kind, SystemExit | KeyboardInterrupt):
                for slot in self._slots:
                    slot.process.terminate()
                for slot in self._slots:
                    slot.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # also if a second signal interrupts the wait
            for slot in self._slots:
                slot.process.kill()
            for slot in self._slots:
                slot.process.join()
                slot.messages.close()
            self._slots = []

    def check(self) -> int:
        """Return the number of working workers; show their messages, and restart those that were killed."""
        ended = []
        for index, slot in enumerate(self._slots):
            alive = slot.process.is_alive()  # before its last messages are read
            self._read_messages(slot)
            if not alive and not slot.over:
                self._slots[index] = self._restarted(slot)
                ended.append(slot)
        problems = [slot.problem for slot in self._slots if slot.over and slot.problem]
        if len(problems) == len(self._slots):
            last = problems[-1]
            raise HpoError("all workers have ended: see the warnings above" if last in self._shown else last)
        for problem in {slot.problem for slot in ended if slot.problem} - self._shown:
            self._shown.add(problem)
            self._on_event(Note(problem, "warning"))
        return sum(not slot.over for slot in self._slots)

    def _start(self) -> _Slot:
        options = replace(self._options, names=(self.study,))
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_work, args=(self._url, options, theirs), name="hpo-worker", daemon=True)
        # Ctrl-C reaches all processes of a terminal. The launch stops its workers itself, so they ignore the signal.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Slot(process, ours)

    def _read_messages(self, slot: _Slot) -> None:
        """Read the worker's messages and show its notes."""
        try:
            while not slot.messages.closed and slot.messages.poll():
                message = json.loads(slot.messages.recv_bytes())
                if message["level"] == "error":
                    slot.problem = message["text"]
                elif message["level"] == "begins":
                    slot.since = time.monotonic()
                else:
                    self._on_event(Note(message["text"], message["level"]))
        except (EOFError, OSError):  # the worker has ended
            slot.messages.close()

    def _restarted(self, slot: _Slot) -> _Slot:
        """Return a new worker for one that was killed, or the ended one, with its problem."""
        status = slot.process.exitcode or 0
        if status < 0:
            killed = f"worker process {slot.process.pid} was killed ({_signal_name(-status)})"
            if slot.since is not None and time.monotonic() - slot.since >= RESTART_AFTER_S:
                self._on_event(Note(f"{killed}; it is restarted", "warning"))
                return self._start()
            slot.problem = f"{killed} as it started"
        elif status and not slot.problem:
            slot.problem = f"worker process {slot.process.pid} ended with status {status}"
        slot.over = True
        return slot


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # only the first and the last real-time signal have names
        return f"signal {number}"


def _work(url: str, options: WorkerOptions, messages: Connection) -> None:
    """Run a worker in its process."""
    garbage_collection.delay()
    # Python forbids daemons to have child processes, but the user's objective function may start some, as a DataLoader.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    stop = threading.Event()
    request = StopRequest(stop)
    signal.signal(signal.SIGTERM, lambda number, frame: request())
    parent = multiprocessing.parent_process()
    assert parent is not None

    def stop_after(launch: BaseProcess) -> None:
        launch.join()
        stop.set()

    threading.Thread(target=stop_after, args=(parent,), daemon=True).start()

    def send(level: str, text: str) -> None:
        with contextlib.suppress(OSError):  # the launch is gone, and this worker stops soon
            messages.send_bytes(json.dumps({"level": level, "text": text}).encode())

    def listen(study: str, event: Event) -> None:
        if isinstance(event, Note):
            send(event.level, event.text)

    handler = _Handler(lambda record: send("warning", record.getMessage()))
    logging.getLogger("hpo").addHandler(handler)
    logging.getLogger("hpo").propagate = False
    try:
        storage = wait_for_storage(url, stop)
        if storage is not None:
            send("begins", "")
            with shutdown_timeout(storage, stop):
                work(storage, options, listen, stop)
    except HpoError as error:
        send("error", str(error))
        sys.exit(error.exit_status)
    except Exception as error:  # noqa: BLE001 - the process's outermost edge: the launch shows the error
        send("error", f"{type(error).__name__}: {error} (a defect in hpo)")
        sys.exit(1)


class _Handler(logging.Handler):
    def __init__(self, emit: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.WARNING)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit(record)
