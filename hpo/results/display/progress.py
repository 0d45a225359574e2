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
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from hpo import stdout
from hpo.results.display.event_lines import (
    failure_line,
    labelled,
    not_trained_line,
    objective_trial_line,
    population_line,
    start_line,
)
from hpo.results.display.tally import Tally
from hpo.results.study_facts import epochs_text
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
from hpo.text import json_line, printable

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
