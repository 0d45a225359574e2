"""Workers for tests: in this thread, in another thread, or as a process whose output is read."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from subprocess import PIPE
from typing import Any, Self

from deadlines import deadline, wait_for
from forks import Fork

from hpo.search.events import Event, Note, PopulationStarted
from hpo.service.worker import WorkerOptions, work
from hpo.storage import Storage, open_storage

Happened = list[tuple[str, Event]]


def work_here(
    storage: Storage,
    options: WorkerOptions | None = None,
    on_event: Callable[[str, Event], None] = lambda study, event: None,
    stop: threading.Event | None = None,
) -> Happened:
    """Work in this thread, until nothing is left to do or as `options` say; return the events."""
    happened: Happened = []

    def take(study: str, event: Event) -> None:
        happened.append((study, event))
        on_event(study, event)

    work(storage, options or WorkerOptions(device="cpu", threads=1, until_idle=True), take, stop or threading.Event())
    return happened


class WorkerThread:
    """Worker in another thread; it appends its events to `happened`."""

    def __init__(self, storage: Storage, options: WorkerOptions) -> None:
        self.happened: Happened = []
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(storage, options), daemon=True)
        self._thread.start()

    def _work(self, storage: Storage, options: WorkerOptions) -> None:
        try:
            work(storage, options, lambda study, event: self.happened.append((study, event)), self.stop)
        except BaseException as error:  # noqa: BLE001 - raised again where it is asked for
            self.error = error

    def end(self) -> None:
        """Stop the worker, wait for its end, and raise its error."""
        self.stop.set()
        self.wait()

    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Wait at most `seconds` for its end."""
        self._thread.join(seconds)

    def wait(self) -> None:
        """Wait for its end, and raise its error."""
        self._thread.join(deadline())
        assert not self._thread.is_alive(), "the worker does not end"
        if self.error is not None:
            raise self.error


class ThreadCrew:
    """Crew of workers in threads of this process, each with its own connection to the storage."""

    def __init__(self, storage: Storage, options: WorkerOptions, workers: int = 1) -> None:
        self._url, self._options, self._count = storage.location.full_url, options, workers

    def __enter__(self) -> Self:
        self._storages = [open_storage(self._url) for _ in range(self._count)]
        self._workers = [WorkerThread(storage, self._options) for storage in self._storages]
        return self

    def __exit__(self, *raised: object) -> None:
        for worker, storage in zip(self._workers, self._storages, strict=True):
            worker.end()
            storage.close()

    def check(self) -> int:
        for worker in self._workers:
            if worker.error is not None:
                raise worker.error
        return sum(worker.is_at_work() for worker in self._workers)


@contextmanager
def worker_thread(storage: Storage, options: WorkerOptions) -> Iterator[WorkerThread]:
    """Run a worker during a block."""
    worker = WorkerThread(storage, options)
    try:
        yield worker
    finally:
        worker.end()


def populations(happened: Happened) -> list[str]:
    """Return the studies of the populations, in order."""
    return [study for study, event in happened if isinstance(event, PopulationStarted)]


def notes(happened: Happened) -> list[str]:
    return [event.text for _, event in happened if isinstance(event, Note)]


class Process:
    """Running command; `out` and `err` are the lines of its output so far."""

    def __init__(self, *args: str, script: str = "", **environment: str) -> None:
        self.process = Fork(
            args,
            script=script,
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            start_new_session=True,  # so that Ctrl-C reaches it and its children, and nobody else
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any, lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    def said(self, words: str) -> str:
        """Wait for a line of stderr with these words, and return it."""

        def look() -> str:
            line = next((line for line in list(self.err) if words in line), "")
            assert line or self.process.poll() is None or any(reader.is_alive() for reader in self._readers), self.err
            return line

        return wait_for(look, lambda: f"no {words!r} in {self.err}")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The JSON events of that name on stdout so far."""
        return [event for event in map(json.loads, list(self.out)) if event["event"] == name]

    def said_in_a_note(self, text: str) -> None:
        """Wait for a JSON event that says so."""
        wait_for(lambda: any(event["text"] == text for event in self.events("note")), lambda: self.out)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ctrl_c(self) -> None:
        """What a terminal does: all processes of the group get the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def status(self) -> int:
        """Wait for its end, and for all that it said; return its status."""
        status = self.process.wait(deadline())
        for reader in self._readers:
            reader.join(deadline())
        return status

    def end(self) -> None:
        """Kill what is left of it and of its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:
            for reader in self._readers:
                reader.join(deadline())


@contextmanager
def processes() -> Iterator[Callable[..., Process]]:
    """Start processes; whatever still runs at the end of the block is killed."""
    started: list[Process] = []

    def start(*args: str, script: str = "", **environment: str) -> Process:
        started.append(Process(*args, script=script, **environment))
        return started[-1]

    try:
        yield start
    finally:
        for each in started:
            each.end()


def columns(line: str, heading: str) -> Mapping[str, str]:
    """The cells of a table's line by the words of its heading, columns being two spaces apart."""
    names = [name for name in heading.split("  ") if name.strip()]
    starts = [heading.index(name.strip()) for name in names]
    ends = [*starts[1:], max(len(line), len(heading))]
    return {name.strip(): line[start:end].strip() for name, start, end in zip(names, starts, ends, strict=True)}
