"""Processes that search one study while they are killed, suspended and disconnected from the server at random.

A seed determines the plan. Times are counted in lines of output, not in seconds: a disturbance is due after a number of
epochs of populations, and then waits for some more lines of its process. How the lines of the processes interleave
depends on the machine, so a seed repeats the plan, not the race.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from deadlines import deadline
from forks import Fork
from postgresql_server import Server

from hpo.storage import RunningTrial, Storage, open_storage, running_trials

POLL_S = 0.002
MOST_LINES = 8  # of a process before it is disturbed; a population prints four or five
MOST_POLLS = 10
STARTING_POLLS = 60
GIVEN_AWAY_S = 3.0  # how long a suspended process may block the others
LOCK_S = 0.2
DUE_BEFORE = 0.7  # of the epochs have ended; later there is nothing to disturb
DROPPED = re.compile(r"trials? ([\d, ]+): claim lost to another worker")


@dataclass(frozen=True)
class Size:
    """The amount of chaos: kills, suspensions and server restarts, spread over the epochs of a study's populations.

    `epochs` is the number of these epochs without disturbance, `last_epoch` that of a trial.
    """

    processes: int
    trials: int
    epochs: int
    last_epoch: int
    kills: int
    stops: int
    restarts: int


class Process:
    """A launch and its output so far."""

    def __init__(self, args: Sequence[str], out: Path, err: Path, last_epoch: int) -> None:
        self.out, self.err, self.last_epoch = out, err, last_epoch
        with out.open("a") as stdout, err.open("a") as stderr:
            self.fork = Fork(args, stdout=stdout, stderr=stderr, cwd=out.parent)
        self.pid = self.fork.pid
        self.began = time.monotonic()
        self.status: int | None = None
        self.suspended = False
        self.events: list[dict[str, Any]] = []
        self.epochs = 0
        self.completed: list[int] = []
        self.pruned: list[int] = []
        self._members: set[int] = set()
        self._read = 0

    def read(self) -> None:
        """Read the new lines of the output; a killed process can leave an incomplete line."""
        if self.out.exists() and self.out.stat().st_size > self._read:
            with self.out.open("rb") as file:
                file.seek(self._read)
                whole, end, _ = file.read().rpartition(b"\n")
            self._read += len(whole + end)
            for line in whole.splitlines():
                self._add(json.loads(line))

    def _add(self, event: dict[str, Any]) -> None:
        """Record an event; trials have ended with their last epoch, unless another process has claimed them.

        Trials at a rung are not in training; those that are not promoted end there.
        """
        self.events.append(event)
        if event["event"] == "population_started":
            self._members = set(event["members"])
        elif event["event"] == "note":
            self._members -= dropped(event["text"])
        elif event["event"] == "trials_not_promoted":
            self.pruned += event["members"]
        elif event["event"] == "epoch_ended":
            self.epochs += 1
            if event["epoch"] == self.last_epoch:
                self.completed += sorted(self._members)
            if event["epoch"] == event["epochs"]:
                self._members = set()

    @property
    def ended(self) -> list[int]:
        """The trials that this process has ended, according to its output."""
        return self.completed + self.pruned

    @property
    def errors(self) -> list[str]:
        return self.err.read_text().splitlines()

    @property
    def runs(self) -> bool:
        return self.status is None

    @property
    def starts(self) -> bool:
        return not self.events

    @property
    def trains(self) -> bool:
        """Return whether a population is being trained, according to the output."""
        return bool(self._members)

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


def dropped(text: str) -> set[int]:
    """Return the trials that another process has claimed, according to a note."""
    found = DROPPED.match(text)
    return set() if found is None else {int(number) for number in found[1].split(",")}


@dataclass
class Chaos:
    """One study under chaos. After `run`, `processes` are all processes, `downs` the times without server."""

    size: Size
    seed: int
    file: Path  # the study file; the output of the processes is in files next to it
    url: str
    server: Server | None = None
    processes: list[Process] = field(default_factory=list)
    downs: list[tuple[float, float]] = field(default_factory=list)
    suspensions: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._began = time.monotonic()

    def run(self) -> None:
        """Start the processes, disturb them as planned, and wait for the end of all; none is left running."""
        try:
            for _ in range(self.size.processes):
                self._start()
            # The first kills hit processes that create the tables and the study at the same time.
            for _ in range(self.size.kills // 5):
                self._kill_at_start()
            for due, disturb in self._plan():
                self._wait(lambda due=due: self.epochs >= due)
                disturb()
            self._wait(lambda: not any(process.runs for process in self.processes))
        finally:
            for process in self.processes:
                with process.fork:
                    process.fork.kill()
        self.seconds = time.monotonic() - self._began

    def _plan(self) -> list[tuple[float, Callable[[], None]]]:
        at_start, twice = self.size.kills // 5, self.size.kills // 10
        disturbances = [self._kill] * (self.size.kills - at_start - 2 * twice) + [self._kill_twice] * twice
        disturbances += [self._suspend] * self.size.stops + [self._restart] * self.size.restarts
        self._random.shuffle(disturbances)
        last = DUE_BEFORE * self.size.epochs
        return list(zip(sorted(self._random.uniform(0, last) for _ in disturbances), disturbances, strict=True))

    @property
    def epochs(self) -> int:
        return sum(process.epochs for process in self.processes)

    @property
    def kills(self) -> int:
        return sum(process.killed for process in self.processes)

    def _start(self) -> None:
        number = len(self.processes)
        out, err = (self.file.with_name(f"{number}.{name}") for name in ("out", "err"))
        args = ("launch", str(self.file), "--trials", str(self.size.trials), "--storage", self.url, "--json")
        self.processes.append(Process(args, out, err, self.size.last_epoch))

    def _poll(self) -> None:
        """Read the output, record ended processes, and restart those that found no server at their start."""
        for process in self.processes:
            if process.runs:
                process.read()
                process.status = process.fork.poll()
                if not process.runs:
                    process.read()  # the output since the last read
                    if not process.killed and process.status != 0:
                        assert self.found_no_server(process), f"{process.out}: {process.status}, {process.errors}"
                        self._start()

    def found_no_server(self, process: Process) -> bool:
        """Return whether the process ended with one line because it found no server at its start."""
        now = time.monotonic()
        away = any(process.began < end and begin < now for begin, end in self.downs)
        return (process.status, process.starts, len(process.errors), away) == (1, True, 1, True)

    def _wait(self, condition: Callable[[], bool]) -> None:
        ends = time.monotonic() + deadline(120)
        self._poll()
        while not condition():
            assert time.monotonic() < ends, f"{self.epochs} epochs and {self.kills} kills, and then nothing more"
            time.sleep(POLL_S)
            self._poll()

    def _one(self, condition: Callable[[Process], bool]) -> Process:
        """Wait for processes that run and meet the condition, and return a random one."""
        self._wait(lambda: any(process.runs and condition(process) for process in self.processes))
        return self._random.choice([process for process in self.processes if process.runs and condition(process)])

    def _polls(self, most: int) -> None:
        left = iter(range(self._random.randrange(most)))
        self._wait(lambda: next(left, None) is None)

    def _kill(self) -> None:
        """Kill a process at a random point of its search."""
        struck = False
        while not struck:
            process = self._one(lambda process: not process.starts)
            lines = len(process.events) + self._random.randrange(MOST_LINES)
            self._wait(lambda: not process.runs or len(process.events) >= lines)  # noqa: B023
            self._polls(MOST_POLLS)
            struck = self._strike(process)

    def _kill_at_start(self) -> None:
        """Kill a process during or shortly after its start."""
        struck = False
        while not struck:
            self._poll()
            starting = [process for process in self.processes if process.runs and process.starts]
            if starting:
                process = self._random.choice(starting)
                self._polls(STARTING_POLLS)
                struck = self._strike(process)
            else:
                self._kill()  # its replacement starts

    def _kill_twice(self) -> None:
        """Kill a process, and its replacement during its start."""
        self._kill()
        self._kill_at_start()

    def _strike(self, process: Process) -> bool:
        """Kill a process and start a replacement; return False if it had just ended."""
        if process.runs:
            os.kill(process.pid, signal.SIGKILL)
            self._start()
            self._wait(lambda: not process.runs)
        return process.killed

    def _suspend(self) -> None:
        """Suspend a process that trains, make its heartbeats expire, and resume it later."""
        with closing(open_storage(self.url)) as storage:
            given_away = False
            while not given_away:
                process = self._one(lambda process: process.trains)
                os.kill(process.pid, signal.SIGSTOP)
                try:
                    given_away = self._give_away(process, storage)
                finally:
                    os.kill(process.pid, signal.SIGCONT)
                lines = len(process.events)
                self._wait(lambda: not process.runs or len(process.events) > lines)  # noqa: B023
        self.suspensions += 1

    def _give_away(self, process: Process, storage: Storage) -> bool:
        """Wait until others have claimed a suspended process's trials; return False if they cannot."""
        trials = held(process, storage)
        if not trials or not silence(trials, storage):
            return False
        process.suspended = True
        ends = time.monotonic() + GIVEN_AWAY_S
        # It can have a lock that the others wait for: then it must continue first.
        self._wait(lambda: not held(process, storage) or time.monotonic() > ends)
        return len(held(process, storage)) < len(trials)

    def _restart(self) -> None:
        """Restart the server, orderly or as after a crash, and kill a process meanwhile."""
        assert self.server is not None
        process = self._one(lambda process: not process.starts)
        self._polls(MOST_POLLS)
        self.downs.append((time.monotonic(), float("inf")))
        self.server.stop(self._random.choice(["fast", "immediate"]))
        try:
            self._strike(process)  # the replacement can find no server
        finally:
            self.server.start()
        self.downs[-1] = (self.downs[-1][0], time.monotonic())


def held(process: Process, storage: Storage) -> list[RunningTrial]:
    """Return the trials that a process has claimed."""
    trials = running_trials(storage)
    return [trial for trial in trials if trial.worker is not None and trial.worker.pid == process.pid]


def silence(trials: Sequence[RunningTrial], storage: Storage) -> bool:
    """Make the heartbeats of trials an hour older; return False if a lock prevents it."""
    hour, options = "datetime(heartbeat, '-1 hour')", {"timeout": LOCK_S}
    if storage.location.file is None:
        hour, options = "heartbeat - interval '1 hour'", {"options": f"-c lock_timeout={LOCK_S * 1000:.0f}"}
    ids = ", ".join(str(trial.trial_id) for trial in trials)
    engine = sa.create_engine(storage.location.url, poolclass=sa.NullPool, connect_args=options)
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE trial_heartbeats SET heartbeat = {hour} WHERE trial_id IN ({ids})")
    except sa.exc.OperationalError:
        return False
    return True
