"""A crew on this machine: a launch's workers as processes of their own.

Promises: a worker that is killed has a successor, unless it was young; what a worker warns of is said; a worker
whose launch is gone stops by itself. The storage's URL goes to the workers through a pipe, where nobody else sees it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
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

from hpo.errors import HpoError
from hpo.search.events import Event, Note
from hpo.service.worker import Duty, work
from hpo.service.worker_process import HAND_BACK_S, STOP_S, await_storage, ends_in_time
from hpo.signals import StopRequest

YOUNG_S = 10.0
"""A worker that is killed within so many seconds of its work gets no successor: it would not live longer."""

SPAWN = multiprocessing.get_context("spawn")


@dataclass
class _Seat:
    """A worker's process, what it says through a pipe, when it began to work, and the error with which it ended."""

    process: BaseProcess
    messages: Connection
    since: float | None = None
    over: bool = False
    problem: str = ""


class LocalCrew:
    """See the module, and `hpo.service.crew.crew.Crew`. `say` takes what the user should know of the workers."""

    def __init__(self, url: str, duty: Duty, workers: int, say: Callable[[Event], None]) -> None:
        self._url, self._duty, self._workers, self._say = url, duty, workers, say
        (self.study,) = duty.names
        self._seats: list[_Seat] = []
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        self._seats = [self._start() for _ in range(self._workers)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        deadline = time.monotonic() + STOP_S + HAND_BACK_S
        try:
            if kind is None or not issubclass(kind, SystemExit | KeyboardInterrupt):
                for seat in self._seats:
                    seat.process.terminate()
                for seat in self._seats:
                    seat.process.join(max(0.0, deadline - time.monotonic()))
        finally:  # a second signal may come while they are waited for
            for seat in self._seats:
                seat.process.kill()
            for seat in self._seats:
                seat.process.join()
                seat.messages.close()
            self._seats = []

    def check(self) -> int:
        """Return how many are at work; pass on what they said, and start successors of those that were killed."""
        ended = []
        for index, seat in enumerate(self._seats):
            alive = seat.process.is_alive()  # before its last words are read
            self._listen(seat)
            if not alive and not seat.over:
                self._seats[index] = self._after(seat)
                ended.append(seat)
        at_work = sum(not seat.over for seat in self._seats)
        problems = [seat.problem for seat in self._seats if seat.over and seat.problem]
        if len(problems) == len(self._seats):
            last = problems[-1]
            raise HpoError("all workers have ended, for what is said above" if last in self._said else last)
        for problem in {seat.problem for seat in ended if seat.problem} - self._said:
            self._said.add(problem)
            self._say(Note(problem, "warning"))
        return at_work

    def _start(self) -> _Seat:
        duty = replace(self._duty, names=(self.study,))
        ours, theirs = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=_work, args=(self._url, duty, theirs), name="hpo-worker", daemon=True)
        # Ctrl-C reaches all processes of a terminal, and the launch passes it on: theirs begins, and stays, without it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Seat(process, ours)

    def _listen(self, seat: _Seat) -> None:
        """Pass on what a worker has said; it closes the pipe with its end."""
        try:
            while not seat.messages.closed and seat.messages.poll():
                said = json.loads(seat.messages.recv_bytes())
                if said["level"] == "error":
                    seat.problem = said["text"]
                elif said["level"] == "begins":
                    seat.since = time.monotonic()
                else:
                    self._say(Note(said["text"], said["level"]))
        except (EOFError, OSError):
            seat.messages.close()

    def _after(self, seat: _Seat) -> _Seat:
        """Return who sits there after a process has ended."""
        status = seat.process.exitcode or 0
        if status < 0:
            killed = f"worker process {seat.process.pid} was killed ({_signal_name(-status)})"
            if seat.since is not None and time.monotonic() - seat.since >= YOUNG_S:
                self._say(Note(f"{killed}; another takes its place", "warning"))
                return self._start()
            seat.problem = f"{killed} as it started"
        elif status and not seat.problem:
            seat.problem = f"worker process {seat.process.pid} ended with status {status}"
        seat.over = True
        return seat


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # of the real-time signals only the first and the last have names
        return f"signal {number}"


def _work(url: str, duty: Duty, messages: Connection) -> None:
    """What the process of a worker does."""
    atexit.register(gc.freeze)  # at the end, nothing that torch brought is taken apart piece by piece
    # A daemon may have no child processes, which the user's own objective may want, as a DataLoader does.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    stop = threading.Event()
    request = StopRequest(stop)
    signal.signal(signal.SIGTERM, lambda number, frame: request())
    parent = multiprocessing.parent_process()
    assert parent is not None

    def outlive(launch: BaseProcess) -> None:
        launch.join()
        stop.set()

    threading.Thread(target=outlive, args=(parent,), daemon=True).start()

    def say(level: str, text: str) -> None:
        with contextlib.suppress(OSError):  # the launch has gone, and so will this worker
            messages.send_bytes(json.dumps({"level": level, "text": text}).encode())

    def listen(study: str, event: Event) -> None:
        if isinstance(event, Note):
            say(event.level, event.text)

    handler = _Handler(lambda record: say("warning", record.getMessage()))
    logging.getLogger("hpo").addHandler(handler)
    logging.getLogger("hpo").propagate = False
    try:
        storage = await_storage(url, stop)
        if storage is not None:
            say("begins", "")
            with ends_in_time(storage, stop):
                work(storage, duty, listen, stop)
    except HpoError as error:
        say("error", str(error))
        sys.exit(error.exit_status)
    except Exception as error:  # noqa: BLE001 - this process's outermost edge: the launch says it in one line
        say("error", f"{type(error).__name__}: {error} (a defect in hpo)")
        sys.exit(1)


class _Handler(logging.Handler):
    def __init__(self, emit: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.WARNING)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        self._emit(record)
