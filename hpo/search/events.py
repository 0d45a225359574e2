"""Events of a search, read by progress displays, logs, metrics and tests.

Counts in `StudyStarted` and `StudyEnded` are those of the whole study, in `PopulationEnded` those of one population, in
`OthersEnded` those of other workers since the last such event.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hpo.text import encode_non_finite

Reason = Literal[
    "finished", "space exhausted", "timeout", "no improvement", "interrupted", "paused", "stopped", "changed", "deleted"
]
"""The reason why a process ended its work on a study; the first four end the study."""


@dataclass(frozen=True)
class Event:
    """Base class of events."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as a JSON object: its name under "event", and its fields."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        written: dict[str, Any] = encode_non_finite({"event": name, **asdict(self)})
        return written


@dataclass(frozen=True)
class StudyStarted(Event):
    """A search starts or continues: the number of trials in all, and the trials that ended before.

    `images` is the number of training examples, `parameters` that of one network. A study with an `objective` function
    has neither, nor a device and a precision. `best` is the best score of a completed trial so far,
    and `minimized` is true where a lower score is better. `expected_epochs` are those that a trial trains on average
    with successive halving, None with other pruners.
    """

    study: str
    trials: int
    finished: int
    pruned: int
    failed: int
    population: int
    device: str
    precision: str
    parameters: int
    images: int
    objective: str | None = None
    best: float | None = None
    minimized: bool = False
    expected_epochs: float | None = None


@dataclass(frozen=True)
class PopulationStarted(Event):
    """These trials (by number) start training together, up to this epoch; None where the epoch is unknown."""

    members: tuple[int, ...]
    epochs: int | None


@dataclass(frozen=True)
class EpochEnded(Event):
    """An epoch of the population has ended; `best` is the best score of its members so far.

    In an objective study `epoch` is the reported step and `best` the reported value.
    """

    epoch: int
    epochs: int | None
    left: int
    best: float | None


@dataclass(frozen=True)
class PopulationEnded(Event):
    """A population has ended and is stored; `best` is its best score.

    `frozen` members have trained up to epoch `frozen_at` and may continue later. The members' networks had `shapes`
    different shapes, and trained in `stacks` stacks.
    """

    members: tuple[int, ...]
    completed: int
    pruned: int
    failed: int
    best: float | None
    seconds: float
    frozen: int = 0
    frozen_at: int | None = None
    shapes: int = 1
    stacks: int = 1


@dataclass(frozen=True)
class TrialsFailed(Event):
    """These trials (by number) failed without being trained in this process."""

    members: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class TrialsLeftOut(Event):
    """These trials (by number) exceed a limit of the study: they end as pruned, untrained."""

    members: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class TrialsNotPromoted(Event):
    """These frozen trials (by number) cannot be promoted from their rung any more: they end as pruned."""

    members: tuple[int, ...]


@dataclass(frozen=True)
class FrozenTrials(Event):
    """The frozen trials of this process, or of all workers of a launch: pairs of an epoch and a number of trials."""

    counts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class OthersEnded(Event):
    """Other workers ended so many trials since the last such event; `best` is the best score."""

    completed: int
    pruned: int
    failed: int
    best: float | None = None


@dataclass(frozen=True)
class WorkerSeen:
    """A worker of the study: the members that it trains and their last epoch, and its number of frozen trials."""

    worker: str
    device: str
    members: int
    epoch: int
    frozen: int = 0


@dataclass(frozen=True)
class WorkersSeen(Event):
    """The workers of a study that several processes train."""

    workers: tuple[WorkerSeen, ...]
    epochs: int | None


@dataclass(frozen=True)
class Note(Event):
    """A message to the user."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class StudyEnded(Event):
    """This process ended its work on the study."""

    reason: Reason
    completed: int
    pruned: int
    failed: int
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether the search ended before its own end, and can be continued."""
        return self.reason in ("interrupted", "paused", "changed", "deleted")

    @property
    def all_failed(self) -> bool:
        """Whether the search has ended and every trial of the study has failed."""
        return not self.interrupted and self.failed > 0 and not (self.completed or self.pruned)
