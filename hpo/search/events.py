"""What happens while a study is searched, as records: progress displays, logs, metrics and tests all read these.

Counts in `StudyStarted` and `StudyEnded` are of the whole study, in `PopulationEnded` of that population, in
`OthersEnded` of what other processes did meanwhile.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hpo.text import encode_non_finite

Reason = Literal[
    "finished", "space exhausted", "timeout", "no improvement", "interrupted", "paused", "stopped", "changed", "deleted"
]
"""Why a process ended its work on a study; the first four end the study."""


@dataclass(frozen=True)
class Event:
    """Something that happened while a study was searched."""

    def to_json(self) -> dict[str, Any]:
        """Return the event as a JSON object: its name under "event", and its fields."""
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        written: dict[str, Any] = encode_non_finite({"event": name, **asdict(self)})
        return written


@dataclass(frozen=True)
class StudyStarted(Event):
    """The search begins or goes on: trials asked for in all, and what was there before.

    `images` are those that an epoch trains on, `parameters` those of one network. A study of the user's own `objective`
    has neither, and no device and precision that hpo knows of. `best` is the best score of a completed trial so far,
    and `minimized` is true where a lower score is better.
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


@dataclass(frozen=True)
class PopulationStarted(Event):
    """These trials (by number) train together from now on; for how many epochs, None where nobody can know."""

    members: tuple[int, ...]
    epochs: int | None


@dataclass(frozen=True)
class EpochEnded(Event):
    """An epoch of the population in hand is over; `best` is the best score its members would have if it ended here.

    Of an objective it is the step that it has reported, with the value.
    """

    epoch: int
    epochs: int | None
    left: int
    best: float | None


@dataclass(frozen=True)
class PopulationEnded(Event):
    """The population in hand is done and stored; `best` is its best score."""

    members: tuple[int, ...]
    completed: int
    pruned: int
    failed: int
    best: float | None
    seconds: float


@dataclass(frozen=True)
class TrialsFailed(Event):
    """These trials (by number) failed without being trained here."""

    members: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class TrialsLeftOut(Event):
    """These trials (by number) exceed a limit of the study: they end as pruned ones, and are not trained."""

    members: tuple[int, ...]
    why: str


@dataclass(frozen=True)
class OthersEnded(Event):
    """So many trials of the study were ended by other processes since the last such event; `best` is the best score."""

    completed: int
    pruned: int
    failed: int
    best: float | None = None


@dataclass(frozen=True)
class WorkerSeen:
    """A worker of the study: the members that it trains, none between populations, and the last epoch of theirs."""

    worker: str
    device: str
    members: int
    epoch: int


@dataclass(frozen=True)
class WorkersSeen(Event):
    """Who works on the study now, where several processes do."""

    workers: tuple[WorkerSeen, ...]
    epochs: int | None


@dataclass(frozen=True)
class Note(Event):
    """Something the user should know."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class StudyEnded(Event):
    """The work of this process on the study is over."""

    reason: Reason
    completed: int
    pruned: int
    failed: int
    seconds: float

    @property
    def interrupted(self) -> bool:
        """Whether the search has not come to its own end, and nobody has ended it as they would finish it."""
        return self.reason in ("interrupted", "paused", "changed", "deleted")

    @property
    def all_failed(self) -> bool:
        """Whether it has come to its end, and every trial of the study has failed."""
        return not self.interrupted and self.failed > 0 and not (self.completed or self.pruned)
