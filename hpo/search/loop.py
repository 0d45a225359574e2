"""The loop: take what waits, ask for what is missing, train it, until the study has its trials.

Any number of processes may run it on one study. Each trial is claimed in the storage by one of them, new ones under
numbers that nobody else has taken, so that the study ends with exactly its trials. What a process that died had claimed
is taken back; a process with nothing left to do waits for the others, in case one of them dies.

What must not be lost is in the storage before the search goes on. On a stop what is in hand ends early, finished trials
are kept, and the others go back to the queue: they run first when the study is launched again.

Knows neither SQL nor how a trial is trained: `hpo.search.population_search` does.
"""

from __future__ import annotations

import datetime
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError, StudyClosedError, TrainingError
from hpo.search.events import Event, Note, OthersEnded, Reason, TrialsFailed
from hpo.storage import (
    ATTEMPTS,
    Ending,
    Gate,
    Parts,
    Storage,
    attempt,
    end_study,
    retake,
    running_trials,
    unfinished,
)
from hpo.studyfile import AnyStudy

POLL_S = 1.0
"""How often a process that has nothing to do looks what became of the others' trials."""

RAISES_IN_A_ROW = 3
"""Populations in a row whose training may raise the same exception before the search gives up."""

DEATHS_IN_COMPANY = 1
"""Deaths after which a trial trains alone: should it be what kills processes, it takes no others with it."""


class Known(Protocol):
    """What a process knows of the study's trials. `last` is the storage's id of the last of them."""

    last: int

    @property
    def count(self) -> int:
        """How many trials the study has."""

    @property
    def unfinished(self) -> set[int]:
        """The storage's ids of the trials that have not ended."""

    @property
    def since_best(self) -> int:
        """How many trials have ended since the last improvement: see `hpo.storage.pareto.since_best`."""

    def sync(self, trials: Iterable[FrozenTrial]) -> None:
        """Take over stored trials: new ones, and known ones that have ended elsewhere."""

    def restart(self, trials: Iterable[FrozenTrial]) -> None:
        """Take note that trials are trained from their beginning."""

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """Take note of what trials, by number, reached at an epoch."""

    def tell(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """Take note of how a trial ended, with which values."""


@dataclass
class Search(ABC):
    """One process's search of a stored study, up to the trials and within the limits that its file asks for.

    `step` by `step`, for who has other things to do in between, or `run` to the end. `population` is how many trials it
    takes at once, at most.
    """

    study: AnyStudy
    stored: optuna.Study
    gate: Gate
    began: datetime.datetime
    storage: Storage
    population: int
    on_event: Callable[[Event], None]
    stop: threading.Event
    raised_before: list[str] = field(default_factory=list)  # by the last populations, one after the other
    history: Known = field(init=False)
    _running: dict[int, FrozenTrial] = field(init=False, default_factory=dict)

    @property
    def bytes_at_hand(self) -> int:
        """How much of the device's memory the search takes while nothing is trained."""
        return 0

    @abstractmethod
    def _create(self, count: int) -> list[FrozenTrial]:
        """Store up to `count` new trials, as running, and return them; none where no more can be had."""

    @abstractmethod
    def _train(self) -> None:
        """Train the running trials."""

    @property
    @abstractmethod
    def _parts(self) -> Parts:
        """What has to be read of the trials."""

    def run(self) -> Reason:
        """Search until the study has what it asked for, or gives out no more trials; return why it ended.

        The caller keeps up `heartbeats`.
        """
        try:
            while not self.stop.is_set():
                if not self.step():
                    if reason := self.over():
                        return reason
                    self.stop.wait(POLL_S)
        except StudyClosedError as closed:
            return closed.how
        return (self.over() if self._missing <= 0 else None) or "interrupted"  # a stop may come too late

    def step(self) -> bool:
        """Take trials and train them; return whether there were any to be had.

        Raises StudyClosedError where the study gives out no more, or is not what it was.
        """
        if self.stop.is_set():
            return False
        try:
            self._take()
            taken = bool(self._running)
            if taken:
                self._train()
        finally:
            self.storage.requeue(trial._trial_id for trial in self._running.values())
            self._running = {}
        return taken

    def over(self) -> Reason | None:
        """Return why the study has come to its end, after a step that found nothing; None while others may fail it.

        The end is stored, so that nobody looks for trials there any more. None, too, where a stop may be why the step
        has found nothing.
        """
        limit = self._limit
        if self.stop.is_set() and self._missing > 0 and limit is None:
            return None
        if unfinished(self.storage, self._study_id, waiting=limit is None):  # by now: others may have created the last
            return None
        has_all = self._missing <= 0 and not (limit and self.history.unfinished)
        reason: Reason = "finished" if has_all else limit or "space exhausted"
        end_study(self.storage, self.gate, reason)
        return reason

    @property
    def _missing(self) -> int:
        return self.study.search.trials - self.history.count

    @property
    def _left(self) -> bool:
        """Whether there is anything left to train, here or elsewhere."""
        return self._missing > 0 or bool(self.history.unfinished)

    @property
    def _limit(self) -> Reason | None:
        """Which of the study's own limits has been reached."""
        search = self.study.search
        if search.timeout is not None:
            age = datetime.datetime.now(datetime.UTC) - self.began
            if age.total_seconds() >= search.timeout:
                return "timeout"
        if search.patience is not None and self.history.since_best >= search.patience:
            return "no improvement"
        return None

    def _take(self) -> None:
        """Claim trials: those that wait first, and then new ones, a population in all."""
        self._retake()
        self._sync()
        if self._limit:
            return
        waiting = self.storage.claim(self.history.unfinished - self.storage.claims, self.population, self.gate)
        self._running = {trial.number: trial for trial in waiting}
        self._send_back_who_trains_alone(waiting)
        self.history.restart(self._running.values())
        if not any(map(_trains_alone, self._running.values())):
            new = self._create(self.population - len(self._running))
            self._running |= {trial.number: trial for trial in new}

    def _retake(self) -> None:
        """Take back the trials of processes that died."""
        running = running_trials(self.storage, self._study_id)
        lost = [trial for trial in running if trial.lost and trial.trial_id not in self.storage.claims]
        waiting, failed = retake(self.storage, lost)
        if waiting:
            one = len(waiting) == 1
            who = f"{len(waiting)} trial{'' if one else 's'} of a process that ended {'is' if one else 'are'}"
            self.on_event(Note(f"{who} trained again"))
        if failed:
            self.on_event(TrialsFailed(tuple(sorted(failed)), "the process that trained them died again and again"))

    def _sync(self) -> None:
        """Take note of what other processes have done."""
        news = self._read(self.history.last, self.history.unfinished - self.storage.claims)
        self.history.sync(news)
        states = [trial.state for trial in news]
        counts = [states.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)]
        if any(counts):
            self.on_event(OthersEnded(*counts))

    def _catch_up(self) -> None:
        """Take note of the trials that another process has stored, which was faster to take their numbers.

        Raises HpoError where there are none: then trials are missing in the storage, and no number would ever be right.
        """
        known = self.history.count
        self._sync()
        if self.history.count == known:
            said = "trials that were there have been taken out of its storage; `hpo doctor` says what is left"
            raise HpoError(f"study '{self.study.name}': {said}")

    def _read(self, after: int, ended: Collection[int]) -> list[FrozenTrial]:
        """Return what samplers and pruners need of trials beyond an id, and of those of `ended` that have ended."""
        return self.storage.read(self._study_id, after, ended, self._parts)

    def _send_back_who_trains_alone(self, claimed: Sequence[FrozenTrial]) -> None:
        """Leave one such trial where nothing else is claimed, and none otherwise."""
        alone = [trial for trial in claimed if _trains_alone(trial)]
        later = alone if len(alone) < len(claimed) else alone[1:]
        self.storage.requeue(trial._trial_id for trial in later)
        for trial in later:
            del self._running[trial.number]

    def _raised_once(self, raised: str | None, said: str) -> None:
        """Take note of what training raised, or of none; raise TrainingError where it was the same again and again.

        `said` is what it was this time, in a line.
        """
        if self._in_a_row(raised):
            often = f"training raised the same in {RAISES_IN_A_ROW} populations in a row ({said})"
            raise TrainingError(self.study.name, often, self._left)

    def _in_a_row(self, raised: str | None) -> bool:
        """Take note of what training raised, or of none; return whether it was the same again and again."""
        if raised not in self.raised_before[-1:]:
            self.raised_before.clear()
        self.raised_before.append(raised or "")
        return bool(raised) and len(self.raised_before) >= RAISES_IN_A_ROW

    def report(self, epoch: int, scores: Mapping[int, float]) -> set[int]:
        """Store the metric of members (by number) after an epoch; return those lost to other processes."""
        lost = self.storage.report(epoch, {self.trial_id(number): score for number, score in scores.items()})
        numbers = self._given_away(lost)
        self.history.report(epoch, {number: score for number, score in scores.items() if number not in numbers})
        return numbers

    def end(self, endings: Sequence[tuple[int, Ending]]) -> set[int]:
        """Store how trials (by number) ended, in one transaction; return those lost to other processes."""
        lost = self.storage.finish([ending for _, ending in endings]) if endings else set()
        numbers = self._given_away(lost)
        for number, ending in endings:
            if number not in numbers:
                self.history.tell(number, ending.state, ending.values)
                del self._running[number]
        return numbers

    def raised(self, numbers: Sequence[int], reason: str, details: str) -> list[int]:
        """Send members whose training raised back to the queue; return those that have been tried often enough."""
        again: dict[int, dict[str, Any]] = {}
        for number in numbers:
            attempts = self.attempts(number, reason, details)
            if sum(each["ended"] == "raised" for each in attempts) <= self.study.search.retries:
                again[number] = {ATTEMPTS: attempts}
        lost = self.storage.requeue(map(self.trial_id, again), {self.trial_id(n): kept for n, kept in again.items()})
        self._given_away(lost)
        for number in again:
            self._running.pop(number, None)
        if again:
            self.on_event(Note(f"{named(again)}: {reason}; trained again, each alone", "warning"))
        return [number for number in numbers if number not in again]

    def trial_id(self, number: int) -> int:
        """Return the storage's id of a running trial."""
        return self._running[number]._trial_id

    def attempts(self, number: int, reason: str, details: str) -> list[dict[str, Any]]:
        """Return how the attempts at a running trial have ended, with this last one, which raised something."""
        before: list[dict[str, Any]] = self._running[number].system_attrs.get(ATTEMPTS, [])
        return [*before, attempt("raised", reason, self.storage.worker, details)]

    @property
    def _study_id(self) -> int:
        return self.stored._study_id

    def _given_away(self, trial_ids: set[int]) -> set[int]:
        """Let go of trials that another process has taken over, and return their numbers."""
        numbers = {number for number, trial in self._running.items() if trial._trial_id in trial_ids}
        for number in numbers:
            del self._running[number]
        if numbers:
            self.on_event(
                Note(f"{named(numbers)}: no longer held by this process; what it made of them is dropped", "warning")
            )
        return numbers


def named(numbers: Sequence[int] | set[int] | Mapping[int, Any]) -> str:
    """Return `trial 3` or `trials 3, 4, 5`; of many, the first few."""
    ordered = sorted(numbers)
    listed = ", ".join(map(str, ordered[:5])) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
    return f"trial{'s' if len(ordered) > 1 else ''} {listed}"


def _trains_alone(trial: FrozenTrial) -> bool:
    """Whether a trial must not take others with it: its training raised, or its process died more than once."""
    ends = [each["ended"] for each in trial.system_attrs.get(ATTEMPTS, [])]
    return "raised" in ends or ends.count("died") > DEATHS_IN_COMPANY
