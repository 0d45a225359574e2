"""What a launch shows while it runs: displays that are called with the events of a search.

    LiveProgress    two live lines on a terminal: the population, and the study
    PlainProgress   one line a population, where stderr is no terminal
    JsonProgress    one JSON object an event on stdout, for programs
    QuietProgress   warnings only
    CallingProgress a function of the caller's, and nothing else

Displays are context managers: leaving one restores the terminal, also after an error. They only show: no display can
slow, stop or change a search, except that a reader of the JSON lines who goes away ends it as an interruption would.
Text that a user wrote is never read as rich markup.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from hpo import stdout
from hpo.search.events import (
    EpochEnded,
    Event,
    Note,
    OthersEnded,
    PopulationEnded,
    PopulationStarted,
    StudyEnded,
    StudyStarted,
    TrialsFailed,
    TrialsLeftOut,
    WorkersSeen,
)
from hpo.text import json_line, printable

TEXT_WIDTH = 74  # columns that the live lines need beside their bars


class QuietProgress:
    """Warnings only; remembers how the study ended. The other displays build on it.

    `says` tells whether it is to show, too, what is said before and after a search.
    """

    says = False

    def __init__(self, console: Console) -> None:
        self.console = console
        self.ended: StudyEnded | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, event: Event) -> None:
        """Show an event of the search."""
        if isinstance(event, StudyEnded):
            self.ended = event
        self.show(event)

    @property
    def interrupted(self) -> bool:
        """Whether the search has not come to its own end, and nobody has ended it as they would finish it."""
        return self.ended is None or self.ended.interrupted

    def show(self, event: Event) -> None:
        """Show what this display shows of an event."""
        if isinstance(event, Note) and event.level == "warning":
            self.line(f"warning: {event.text}")

    def line(self, text: str) -> None:
        """Print a line of text as it is: no markup, no wrapping."""
        self.console.print(Text(printable(text)), soft_wrap=True)


class CallingProgress(QuietProgress):
    """Calls a function with each event, and shows nothing."""

    def __init__(self, console: Console, on_event: Callable[[Event], None]) -> None:
        super().__init__(console)
        self.on_event = on_event

    def show(self, event: Event) -> None:
        """Hand the event on."""
        self.on_event(event)


class JsonProgress(QuietProgress):
    """One JSON object an event, one event a line, on a stream of its own; None is stdout, which is kept for them."""

    def __init__(self, console: Console, stream: IO[str] | None, stop: threading.Event) -> None:
        super().__init__(console)
        self.stream, self.stop = stream, stop
        self.reader_left = False
        self._kept = ExitStack()

    def __enter__(self) -> Self:
        if self.stream is None:
            self._kept.enter_context(stdout.reserved())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.close()

    def show(self, event: Event) -> None:
        """Write the event, at once, so that a reader may act on it."""
        if self.reader_left:
            return
        try:
            print(json_line(event.to_json()), file=self.stream or stdout.stream(), flush=True)
        except BrokenPipeError:
            self.reader_left = True
            self.stop.set()  # nobody reads: end as on an interruption, so that finished trials are kept


class Tally:
    """The counts of a study while it runs, its pace, and the time left at that pace."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.trials = self.completed = self.pruned = self.failed = 0
        self.before = 0  # trials that an earlier launch had finished
        self.started = clock()

    def start(self, event: StudyStarted) -> None:
        """Take over the counts that the study starts with."""
        self.trials, self.completed, self.pruned, self.failed = event.trials, event.finished, event.pruned, event.failed
        self.before = self.done
        self.started = self.clock()

    def add(self, event: PopulationEnded | OthersEnded) -> None:
        """Count a population that has ended, or what others have done."""
        self.completed += event.completed
        self.pruned += event.pruned
        self.failed += event.failed

    @property
    def done(self) -> int:
        """Trials that will not be trained further, of whatever outcome."""
        return self.completed + self.pruned + self.failed

    def line(self, under_way: float = 0.0) -> str:
        """Return the study's counts and pace; `under_way` is the share of trials that running members amount to."""
        elapsed = self.clock() - self.started
        finished = self.done - self.before + under_way
        counts = f"{self.done}/{self.trials} trials, {self.pruned} pruned, {self.failed} failed"
        if finished <= 0 or elapsed <= 0:
            return counts
        per_second = finished / elapsed
        left = max(0.0, self.trials - self.done - under_way) / per_second
        return f"{counts}, {pace(per_second)}, {duration(left)} left"


class PlainProgress(QuietProgress):
    """One line a population."""

    says = True

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self.tally = Tally(clock)
        self.follows = False  # what other processes do, and nothing of its own
        self.objective = False  # whether the user's own is searched, trial by trial

    def show(self, event: Event) -> None:
        """Print the study's first line, notes, and each population's outcome."""
        match event:
            case StudyStarted():
                self.tally.start(event)
                self.objective = event.objective is not None
                self.line(opening(event))
            case Note():
                self.line(f"warning: {event.text}" if event.level == "warning" else event.text)
            case PopulationEnded():
                self.tally.add(event)
                said = own_outcome(event) if self.objective else outcome(event)
                self.line(f"{said}; {self.tally.line()}")
            case OthersEnded():
                self.tally.add(event)
                if self.follows:
                    self.line(self.tally.line())
            case TrialsFailed():
                self.tally.failed += len(event.members)
                self.line(f"warning: {failure(event)}")
            case TrialsLeftOut():
                self.tally.pruned += len(event.members)
                self.line(left_out(event))
            case WorkersSeen():
                self.follows = True
            case _:
                pass


class LiveProgress(PlainProgress):
    """Two live lines at the foot of the terminal; notes scroll above them."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=min(24, max(4, console.width - TEXT_WIDTH))),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            refresh_per_second=4,
        )
        self.population: TaskID = self.bars.add_task("population", total=None, text="starting")
        self.study: TaskID = self.bars.add_task("study", total=None, text="")
        self.members = 0
        self.workers: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def show(self, event: Event) -> None:
        """Redraw the line that the event changes."""
        match event:
            case PopulationStarted():
                self.members = len(event.members)
                at = "nothing reported yet" if event.epochs is None else f"epoch 0 of {event.epochs}"
                text = f"{at}, {self.members} members"
                self.bars.reset(self.population, total=event.epochs, completed=0, text=text)
            case EpochEnded(epochs=None):
                value = "-" if event.best is None else f"{event.best:.4f}"
                self.bars.update(self.population, text=f"step {event.epoch}: {value}")
            case EpochEnded():
                text = f"epoch {event.epoch} of {event.epochs}, {event.left} of {self.members} members left"
                self.bars.update(self.population, completed=event.epoch, text=text + _best(event.best))
                self._show_study(event.left * event.epoch / event.epochs if event.epochs else 0.0)
            case PopulationEnded():
                self.tally.add(event)
                self._show_study(0.0)
            case OthersEnded():
                self.tally.add(event)
                self._show_study(0.0)
            case StudyStarted():
                super().show(event)
                self._show_study(0.0)
            case WorkersSeen():
                self._show_workers(event)
            case _:
                super().show(event)

    def _show_workers(self, event: WorkersSeen) -> None:
        """A line a worker in the place of the population's, in the order in which they came."""
        self.bars.update(self.population, visible=False)
        names = {seen.worker for seen in event.workers}
        for name in self.workers.keys() - names:
            self.bars.remove_task(self.workers.pop(name))
        for seen in event.workers:
            if seen.worker not in self.workers:
                self.workers[seen.worker] = self.bars.add_task(printable(seen.worker), total=event.epochs, text="")
            at = f"step {seen.epoch}" if event.epochs is None else f"epoch {seen.epoch} of {event.epochs}"
            text = f"{at}, {seen.members} members" if seen.members else "no trials"
            where = f" on {seen.device}" if seen.device else ""
            self.bars.update(self.workers[seen.worker], completed=seen.epoch, text=text + where)
        reached = sum(seen.members * seen.epoch for seen in event.workers)
        self._show_study(reached / event.epochs if event.epochs else 0.0)

    def _show_study(self, under_way: float) -> None:
        tally = self.tally
        self.bars.update(self.study, total=tally.trials, completed=tally.done + under_way, text=tally.line(under_way))


def progress_on(console: Console) -> PlainProgress:
    """Return the display that suits the console."""
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(console)


def opening(event: StudyStarted) -> str:
    """Return what is trained, and on what."""
    done = event.finished + event.pruned + event.failed
    resumed = f", {done} of them done before" if done else ""
    trials = f"{event.trials} trial{'' if event.trials == 1 else 's'}"
    if event.objective is not None:
        where = f", by {event.device}" if event.device else ""
        return f"{event.study}: {trials} of {event.objective}{where}{resumed}"
    return (
        f"{event.study}: {trials}{resumed}, {event.population} at once on {event.device} "
        f"in {event.precision}, {event.parameters:,} parameters a network"
    )


def failure(event: TrialsFailed) -> str:
    """Return which trials failed, and why."""
    return f"{_named(event.members)} failed: {event.why}"


def left_out(event: TrialsLeftOut) -> str:
    """Return which trials are not trained, and why."""
    return f"{_named(event.members)} not trained: {event.why}"


def _named(numbers: Sequence[int]) -> str:
    return f"{'trials' if len(numbers) > 1 else 'trial'} {', '.join(map(str, numbers))}"


def outcome(event: PopulationEnded) -> str:
    """Return what became of a population."""
    counts = f"{event.completed} completed, {event.pruned} pruned, {event.failed} failed"
    return f"population: {counts}{_best(event.best)} in {duration(event.seconds)}"


def own_outcome(event: PopulationEnded) -> str:
    """Return what became of a trial of the user's own objective."""
    counts = {"completed": event.completed, "pruned": event.pruned, "failed": event.failed}
    state = next((state for state, count in counts.items() if count), "to be tried again")
    value = "" if event.best is None else f" with {event.best:.4f}"
    return f"trial {event.members[0]}: {state}{value} in {duration(event.seconds)}"


def _best(value: float | None) -> str:
    return "" if value is None else f", best {value:.4f}"


def pace(trials_a_second: float) -> str:
    """Return `2.5 trials/s`, or so many a minute."""
    if trials_a_second >= 0.1:
        return f"{trials_a_second:.1f} trials/s"
    return f"{60 * trials_a_second:.1f} trials/min"


def duration(seconds: float) -> str:
    """Return `1.5 s`, `2 min 05 s` or `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
