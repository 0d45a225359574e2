"""Tally of a running study: its counts, its best score so far, its pace, and the time left at that pace.

Knows the events of a search, and nothing of displays.
"""

from __future__ import annotations

from collections.abc import Callable

from hpo.results.display.event_lines import pace
from hpo.results.study_facts import frozen_text
from hpo.search.events import EpochEnded, OthersEnded, PopulationEnded, PopulationStarted, StudyStarted
from hpo.text import duration


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
