"""Progress displays of a running search: each is called with the events of the search.

    LiveProgress    two live lines on a terminal: the population, and the study
    PlainProgress   one line for each population, where stderr is not a terminal
    JsonProgress    one JSON object for each event on stdout, for programs
    QuietProgress   warnings only
    CallingProgress calls a function of the caller and prints nothing

Displays are context managers: leaving one restores the terminal, also after an error. No display changes a search, with
one exception: a closed pipe behind the JSON lines interrupts it. Text of users is never parsed as rich markup.
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
from hpo.results.study_facts import epochs_text, frozen_text
from hpo.search.events import (
    EpochEnded,
    Event,
    FrozenTrials,
    Note,
    OthersEnded,
    PopulationEnded,
    PopulationStarted,
    StudyEnded,
    StudyStarted,
    TrialsFailed,
    TrialsLeftOut,
    TrialsNotPromoted,
    WorkersSeen,
)
from hpo.text import duration, json_line, number_ranges, printable

TEXT_WIDTH = 74  # columns of the live lines without their bars


class QuietProgress:
    """Print warnings only, and store the last `StudyEnded` event; base class of the other displays.

    `prints_notes` is true where notes before and after a search are printed too.
    """

    prints_notes = False

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
        """True unless the search finished or was stopped for good."""
        return self.ended is None or self.ended.interrupted

    def show(self, event: Event) -> None:
        """Print what this display prints of an event."""
        if isinstance(event, Note) and event.level == "warning":
            self.line(f"warning: {event.text}")

    def line(self, text: str) -> None:
        """Print a line of text without markup or wrapping."""
        self.console.print(Text(printable(text)), soft_wrap=True)


class CallingProgress(QuietProgress):
    """Call a function with each event; print nothing."""

    def __init__(self, console: Console, on_event: Callable[[Event], None]) -> None:
        super().__init__(console)
        self.on_event = on_event

    def show(self, event: Event) -> None:
        """Call the function with the event."""
        self.on_event(event)


class JsonProgress(QuietProgress):
    """Write each event as a line of JSON to a stream; None is stdout, which is then reserved for these lines."""

    def __init__(self, console: Console, stream: IO[str] | None, stop: threading.Event) -> None:
        super().__init__(console)
        self.stream, self.stop = stream, stop
        self.pipe_closed = False
        self._reserved = ExitStack()

    def __enter__(self) -> Self:
        if self.stream is None:
            self._reserved.enter_context(stdout.reserved())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reserved.close()

    def show(self, event: Event) -> None:
        """Write the event and flush, so that a reader can act on it at once."""
        if self.pipe_closed:
            return
        try:
            print(json_line(event.to_json()), file=self.stream or stdout.stream(), flush=True)
        except BrokenPipeError:
            self.pipe_closed = True
            self.stop.set()  # interrupt the search: finished trials are stored


class Tally:
    """Counts of a running study, its best score so far, its pace, and the time left at that pace.

    With successive halving, trials end late and after few epochs or many. The pace is then that of epochs, and a trial
    is worth the epochs that a trial trains on average.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.trials = self.completed = self.pruned = self.failed = 0
        self.before = 0  # trials that an earlier launch has finished
        self.elsewhere = 0  # trials that other processes have ended since
        self.frozen: dict[int, int] = {}  # epoch -> trials
        self.expected_epochs: float | None = None
        self.training = 0  # members of the present population
        self.trained = 0  # epochs of all members
        self.best: float | None = None
        self.minimized = False
        self.started = clock()

    def start(self, event: StudyStarted) -> None:
        """Set the counts and the best score that the study starts with."""
        self.trials, self.completed, self.pruned, self.failed = event.trials, event.finished, event.pruned, event.failed
        self.best, self.minimized = event.best, event.minimized
        self.before, self.expected_epochs = self.done, event.expected_epochs
        self.started = self.clock()

    def start_population(self, event: PopulationStarted) -> None:
        """Set the number of members in training."""
        self.training = len(event.members)

    def add_epoch(self, event: EpochEnded) -> None:
        """Add an epoch of the members in training."""
        self.trained += self.training
        self.training = event.left

    def add(self, event: PopulationEnded | OthersEnded) -> None:
        """Add the counts of a population that has ended, or of trials that other processes ended."""
        if isinstance(event, OthersEnded):
            self.elsewhere += event.completed + event.pruned + event.failed
        self.completed += event.completed
        self.pruned += event.pruned
        self.failed += event.failed
        self.best = self.better(event.best)

    def better(self, score: float | None) -> float | None:
        """Return the better of the best score so far and this score; None where neither is known."""
        known = [each for each in (self.best, score) if each is not None]
        return (min if self.minimized else max)(known, default=None)

    @property
    def done(self) -> int:
        """Number of completed, pruned and failed trials."""
        return self.completed + self.pruned + self.failed

    def progress(self, under_way: float) -> float:
        """Return the work of this launch so far, in trials; `under_way` is the progress of running trials."""
        if self.expected_epochs is None:
            return self.done - self.before + under_way
        return self.elsewhere + self.trained / self.expected_epochs

    def line(self, under_way: float = 0.0, with_frozen: bool = True) -> str:
        """Return the study's counts and pace; `under_way` is the progress of running trials, in trials."""
        elapsed, progress = self.clock() - self.started, self.progress(under_way)
        line = f"{self.done}/{self.trials} trials, {self.pruned} pruned, {self.failed} failed"
        if with_frozen and self.frozen:
            line += f", {frozen_text(self.frozen)}"
        if progress <= 0 or elapsed <= 0:
            return line
        per_second = progress / elapsed
        line += f", {pace(per_second)}"
        left = max(0.0, self.trials - self.before - progress)
        # More trials than on average may have been promoted: then the time left is unknown.
        return f"{line}, {duration(left / per_second)} left" if left > 0 or self.done >= self.trials else line


class PlainProgress(QuietProgress):
    """Print a line for each population."""

    prints_notes = True

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console)
        self.tally = Tally(clock)
        self.only_workers = False  # worker processes train all trials
        self.objective = False  # the study has an objective function

    def show(self, event: Event) -> None:
        """Print the study's first line, notes, and the result of each population."""
        match event:
            case StudyStarted():
                self.tally.start(event)
                self.objective = event.objective is not None
                self.line(start_line(event))
            case Note():
                self.line(f"warning: {event.text}" if event.level == "warning" else event.text)
            case PopulationStarted():
                self.tally.start_population(event)
            case EpochEnded():
                self.tally.add_epoch(event)
            case FrozenTrials():
                self.tally.frozen = dict(event.counts)
            case PopulationEnded():
                self.tally.add(event)
                ended = objective_trial_line(event) if self.objective else population_line(event)
                self.line(f"{ended}{labelled('best so far', self.tally.best)}; {self.tally.line()}")
            case OthersEnded():
                self.tally.add(event)
                if self.only_workers:
                    self.line(f"{self.tally.line()}{labelled('best so far', self.tally.best)}")
            case TrialsFailed():
                self.tally.failed += len(event.members)
                self.line(f"warning: {failure_line(event)}")
            case TrialsLeftOut():
                self.tally.pruned += len(event.members)
                self.line(not_trained_line(event))
            case TrialsNotPromoted():
                self.tally.pruned += len(event.members)
            case WorkersSeen():
                self.only_workers = True
            case _:
                pass


class LiveProgress(PlainProgress):
    """Redraw two lines at the bottom of the terminal; notes scroll above them."""

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
        self.frozen: TaskID | None = None
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
                self.tally.start_population(event)
                self.members = len(event.members)
                at = "nothing reported yet" if event.epochs is None else f"epoch 0 of {event.epochs}"
                text = f"{at}, {self.members} members"
                self.bars.reset(self.population, total=event.epochs, completed=0, text=text)
            case EpochEnded(epochs=None):
                value = "-" if event.best is None else f"{event.best:.4f}"
                self.bars.update(self.population, text=f"step {event.epoch}: {value}")
            case EpochEnded():
                self.tally.add_epoch(event)
                text = f"epoch {event.epoch} of {event.epochs}, {event.left} of {self.members} members left"
                text += labelled("best so far", self.tally.better(event.best))
                self.bars.update(self.population, completed=event.epoch, text=text)
                self._show_study(event.left * event.epoch / event.epochs if event.epochs else 0.0)
            case PopulationEnded() | OthersEnded():
                self.tally.add(event)
                self._show_study(0.0)
            case FrozenTrials():
                super().show(event)
                self._show_frozen()
            case TrialsNotPromoted():
                super().show(event)
                self._show_study(0.0)
            case StudyStarted():
                super().show(event)
                self._show_study(0.0)
            case WorkersSeen():
                self._show_workers(event)
            case _:
                super().show(event)

    def _show_workers(self, event: WorkersSeen) -> None:
        """Show a line for each worker instead of the population's, in the order of their first appearance."""
        self.bars.update(self.population, visible=False)
        names = {seen.worker for seen in event.workers}
        for name in self.workers.keys() - names:
            self.bars.remove_task(self.workers.pop(name))
        for seen in event.workers:
            if seen.worker not in self.workers:
                self.workers[seen.worker] = self.bars.add_task(printable(seen.worker), total=event.epochs, text="")
            at = f"step {seen.epoch}" if event.epochs is None else f"epoch {seen.epoch} of {event.epochs}"
            parts = [f"{at}, {seen.members} members"] if seen.members else []
            text = ", ".join(parts + ([f"{seen.frozen} frozen"] if seen.frozen else [])) or "no trials"
            where = f" on {seen.device}" if seen.device else ""
            self.bars.update(self.workers[seen.worker], completed=seen.epoch, text=text + where)
        reached = sum(seen.members * seen.epoch for seen in event.workers)
        self._show_study(reached / event.epochs if event.epochs else 0.0)

    def _show_study(self, under_way: float) -> None:
        tally = self.tally
        done = tally.done if tally.done >= tally.trials else tally.before + tally.progress(under_way)
        text = tally.line(under_way, with_frozen=False)
        self.bars.update(self.study, total=tally.trials, completed=min(done, tally.trials), text=text)

    def _show_frozen(self) -> None:
        """Show a line with the frozen trials while there are any; its bar is their fraction of all trials."""
        frozen, total = self.tally.frozen, self.tally.trials
        if self.frozen is None:
            self.frozen = self.bars.add_task("frozen", total=total, text="")
        count, text = sum(frozen.values()), epochs_text(frozen)
        self.bars.update(self.frozen, total=total, completed=count, visible=bool(frozen), text=text)


def progress_on(console: Console) -> PlainProgress:
    """Return live lines for a terminal, plain lines otherwise."""
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(console)


def start_line(event: StudyStarted) -> str:
    """Return the first line of a launch: the number of trials, the population, the device and the network's size."""
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


def failure_line(event: TrialsFailed) -> str:
    """Return the numbers of failed trials with the reason."""
    return f"{_numbered(event.members)} failed: {event.why}"


def not_trained_line(event: TrialsLeftOut) -> str:
    """Return the numbers of trials that exceed a limit, with the reason."""
    return f"{_numbered(event.members)} not trained: {event.why}"


def not_promoted_line(event: TrialsNotPromoted) -> str:
    """Return the number of frozen trials that ended as pruned, and their numbers."""
    trials = f"{len(event.members)} trial{'s' if len(event.members) > 1 else ''}"
    return f"{trials} not promoted from a rung, pruned: trials {number_ranges(event.members)}"


def _numbered(numbers: Sequence[int]) -> str:
    return f"{'trials' if len(numbers) > 1 else 'trial'} {', '.join(map(str, numbers))}"


def population_line(event: PopulationEnded) -> str:
    """Return the counts of a population that has ended or is frozen, its duration, and its stacks if shapes differ."""
    counts = {"completed": event.completed, "pruned": event.pruned, "failed": event.failed}
    if event.frozen:
        counts = {f"frozen at epoch {event.frozen_at}": event.frozen, **{w: n for w, n in counts.items() if n}}
    stacks = f"{event.stacks} stack{'s' if event.stacks > 1 else ''}"
    shapes = f" ({event.shapes} shapes in {stacks})" if event.shapes > 1 else ""
    return f"population: {', '.join(f'{n} {word}' for word, n in counts.items())} in {duration(event.seconds)}{shapes}"


def objective_trial_line(event: PopulationEnded) -> str:
    """Return the state, value and duration of a trial of an objective function."""
    counts = {"completed": event.completed, "pruned": event.pruned, "failed": event.failed}
    state = next((state for state, count in counts.items() if count), "to be tried again")
    value = "" if event.best is None else f" with {event.best:.4f}"
    return f"trial {event.members[0]}: {state}{value} in {duration(event.seconds)}"


def labelled(label: str, score: float | None) -> str:
    """Return `, best so far 0.9750`; "" where there is no score."""
    return "" if score is None else f", {label} {score:.4f}"


def pace(trials_a_second: float) -> str:
    """Return `2.5 trials/s`, or `6.0 trials/min` for a slow study."""
    if trials_a_second >= 0.1:
        return f"{trials_a_second:.1f} trials/s"
    return f"{60 * trials_a_second:.1f} trials/min"
