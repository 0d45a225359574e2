"""The search loop: claim waiting trials, sample the missing ones, train them, until the study has all its trials.

Any number of workers may run the loop on one study. Each trial is claimed by one worker, and new trials get numbers
that no other worker has taken, so that the study ends with exactly `search.trials` trials. Orphaned trials are
requeued; a worker without trials waits for the others, in case one of them dies.

Results are stored before the search continues. On a stop, the epoch ends, finished trials are stored and the others
requeued: they run first when the study is launched again.

The subclasses (population_search, objective_search) know how trials are trained; nothing here does.
"""

from __future__ import annotations

import datetime
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError, StudyClosedError, TrainingError
from hpo.garbage_collection import end_startup
from hpo.search.events import Event, Note, OthersEnded, Reason, TrialsFailed
from hpo.storage import (
    ATTEMPTS,
    ClaimConditions,
    Storage,
    TrialFields,
    TrialResult,
    attempt_record,
    count_unfinished,
    deaths_without_progress,
    end_study,
    requeue_orphaned,
    running_trials,
)
from hpo.storage.work_records import WorkRecord
from hpo.studyfile import AnyStudy
from hpo.text import first_few

POLL_S = 1.0
"""Seconds between two reads of the storage while a worker waits for the trials of others."""

RAISES_IN_A_ROW = 3
"""Consecutive populations that fail with the same exception before the search ends with an error."""

DEATHS_BEFORE_ALONE = 1
"""Deaths of its worker without progress after which a trial trains alone: it then kills no other trial."""


class TrialHistory(Protocol):
    """The study's trials as one worker knows them. `last` is the storage id of the newest known trial."""

    last: int

    @property
    def count(self) -> int:
        """The number of trials."""

    @property
    def unfinished(self) -> set[int]:
        """The storage ids of the trials that have not ended."""

    @property
    def trials_since_best(self) -> int:
        """The number of trials that ended since the last improvement: see `hpo.storage.pareto.trials_since_best`."""

    def sync(self, trials: Iterable[FrozenTrial]) -> None:
        """Add stored trials: new ones, and known ones that other workers have ended."""

    def restart(self, trials: Iterable[FrozenTrial]) -> None:
        """Reset trials that are trained again from epoch 1."""

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """Add the trials' values, by number, after an epoch."""

    def tell(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """Set the final state and values of a trial."""


@dataclass
class Search(ABC):
    """One worker's search of a stored study, up to `search.trials` and within the study's limits.

    Call `step` repeatedly to do other work in between, or `run` once. `population` is the largest number of trials that
    are trained at a time.
    """

    study: AnyStudy
    stored: optuna.Study
    claim_conditions: ClaimConditions
    began: datetime.datetime
    storage: Storage
    population: int
    on_event: Callable[[Event], None]
    stop: threading.Event
    recent_errors: list[str] = field(default_factory=list)  # of the last populations, in order
    history: TrialHistory = field(init=False)
    _work: WorkRecord = field(init=False)
    _running: dict[int, FrozenTrial] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._work = WorkRecord(self.storage, self._study_id)

    @property
    def idle_bytes(self) -> int:
        """The bytes of device memory that the search occupies while nothing is trained."""
        return 0

    @abstractmethod
    def _create(self, count: int) -> list[FrozenTrial]:
        """Store up to `count` new trials as RUNNING and return them; none where the search space is exhausted."""

    @abstractmethod
    def _train(self) -> None:
        """Train the running trials."""

    def _thaw(self, partly: bool) -> bool:
        """Add frozen trials to the running ones, a whole population of them unless `partly`; return whether any."""
        return False

    @property
    @abstractmethod
    def _parts(self) -> TrialFields:
        """The parts of trials that the search reads from the storage."""

    def run(self) -> Reason:
        """Search until the study has ended, or gives out no more trials; return the reason.

        The caller runs `heartbeats`.
        """
        try:
            while not self.stop.is_set():
                if not self.step():
                    if reason := self.end_if_done():
                        return reason
                    self.stop.wait(POLL_S)
        except StudyClosedError as closed:
            return closed.how
        finally:
            self.close()
        return (self.end_if_done() if self._missing <= 0 else None) or "interrupted"  # a stop may come too late

    def step(self) -> bool:
        """Claim or create trials and train them; return whether there were any.

        Raises StudyClosedError where the study is paused, stopped, changed or deleted.
        """
        if self.stop.is_set():
            return False
        end_startup()
        try:
            self._claim_trials()
            claimed = bool(self._running)
            if claimed:
                start = time.perf_counter()
                try:
                    self._train()
                finally:
                    self._work.add(time.perf_counter() - start)
        finally:
            self.storage.requeue(trial._trial_id for trial in self._running.values())
            self._running = {}
        return claimed

    def close(self) -> None:
        """Requeue the trials that the search still claims. To be called when the search is not continued."""
        self._work.write()

    def end_if_done(self) -> Reason | None:
        """Store the end of the study and return its reason; None while another worker's trials may still be requeued.

        To be called after a step that found no trials. None also where a requested stop may be why it found none.
        """
        limit = self._limit_reached
        if self.stop.is_set() and self._missing > 0 and limit is None:
            return None
        # Read again: others may have created the last one.
        if count_unfinished(self.storage, self._study_id, waiting=limit is None):
            return None
        has_all = self._missing <= 0 and not (limit and self.history.unfinished)
        reason: Reason = "finished" if has_all else limit or "space exhausted"
        end_study(self.storage, self.claim_conditions, reason)
        return reason

    @property
    def _missing(self) -> int:
        return self.study.search.trials - self.history.count

    @property
    def _has_trials_left(self) -> bool:
        """Whether trials are left to train, here or in other workers."""
        return self._missing > 0 or bool(self.history.unfinished)

    @property
    def _limit_reached(self) -> Reason | None:
        """The limit of the study that has been reached: timeout or patience."""
        search = self.study.search
        if search.timeout is not None:
            age = datetime.datetime.now(datetime.UTC) - self.began
            if age.total_seconds() >= search.timeout:
                return "timeout"
        if search.patience is not None and self.history.trials_since_best >= search.patience:
            return "no improvement"
        return None

    def _claim_trials(self) -> None:
        """Claim waiting trials first, then create new ones, up to one population. Frozen ones come before new ones.

        A part of a population of frozen trials is trained only where there is nothing else to train.
        """
        self._requeue_orphaned()
        self._sync()
        goes_on = self._limit_reached is None
        if goes_on:
            self._claim_waiting()
        alone = any(map(trains_alone, self._running.values()))
        if goes_on and not alone and (self._running or not self._thaw(partly=False)):
            new = self._create(self._free_places)
            self._running |= {trial.number: trial for trial in new}
        if not self._running:
            self._thaw(partly=True)

    @property
    def _free_places(self) -> int:
        """The number of new trials that can train together with the running ones."""
        return self.population - len(self._running)

    def _claim_waiting(self) -> list[FrozenTrial]:
        """Claim waiting trials, up to a population of running ones; return the claimed ones."""
        waiting = self.storage.claim(
            self.history.unfinished - self.storage.claimed_ids,
            self.population - len(self._running),
            self.claim_conditions,
        )
        self._running |= {trial.number: trial for trial in waiting}
        self._separate_trials_that_train_alone(waiting)
        claimed = [trial for trial in waiting if trial.number in self._running]
        self.history.restart(claimed)
        return claimed

    def _requeue_orphaned(self) -> None:
        """Requeue trials whose worker is dead; fail those that were orphaned too often."""
        running = running_trials(self.storage, self._study_id)
        lost = [trial for trial in running if trial.orphaned and trial.trial_id not in self.storage.claimed_ids]
        waiting, failed = requeue_orphaned(self.storage, lost)
        if waiting:
            orphaned = f"{len(waiting)} orphaned trial{'' if len(waiting) == 1 else 's'} requeued"
            self.on_event(Note(f"{orphaned}: the worker that trained them is dead"))
        if failed:
            self.on_event(TrialsFailed(tuple(sorted(failed)), "the worker that trained them died repeatedly"))

    def _sync(self) -> None:
        """Read the trials that other workers have created or ended."""
        news = self._read(self.history.last, self.history.unfinished - self.storage.claimed_ids)
        self.history.sync(news)
        self._learn(news)
        states = [trial.state for trial in news]
        counts = [states.count(state) for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)]
        if any(counts):
            values = [trial.values[0] for trial in news if trial.state == TrialState.COMPLETE]
            best = (min if self.study.search.minimized else max)(filter(math.isfinite, values), default=None)
            completed, pruned, failed = counts
            self.on_event(OthersEnded(completed, pruned, failed, best))

    def _learn(self, trials: Sequence[FrozenTrial]) -> None:  # noqa: B027 - nothing to learn
        """Use what trials have that were read from the storage, besides the history."""

    def _catch_up(self) -> None:
        """Read the trials of another worker that stored its trials first, under the same numbers.

        Raises HpoError where there are none: then trials are missing in the storage, and no new number would be valid.
        """
        known = self.history.count
        self._sync()
        if self.history.count == known:
            missing = "trials are missing in its storage, which had them before; check the storage with `hpo doctor`"
            raise HpoError(f"study '{self.study.name}': {missing}")

    def _read(self, after: int, ended: Collection[int]) -> list[FrozenTrial]:
        """Read the trials after an id, and those of `ended` that have ended."""
        return self.storage.read_trials(self._study_id, after, ended, self._parts)

    def _separate_trials_that_train_alone(self, claimed: Sequence[FrozenTrial]) -> None:
        """Requeue the trials that must train alone; keep one of them where no other trial is running."""
        alone = [trial for trial in claimed if trains_alone(trial)]
        later = alone if len(alone) < len(self._running) else alone[1:]
        self.storage.requeue(trial._trial_id for trial in later)
        for trial in later:
            del self._running[trial.number]

    def _check_repeated_error(self, kind: str | None, line: str) -> None:
        """Raise TrainingError where consecutive populations failed alike; `line` is the exception in one line."""
        if self._is_repeated(kind):
            problem = f"training raised the same exception in {RAISES_IN_A_ROW} populations in a row ({line})"
            raise TrainingError(self.study.name, problem, self._has_trials_left)

    def _is_repeated(self, kind: str | None) -> bool:
        """Record a population's kind of exception, or None; return whether it occurred too often in a row."""
        if kind not in self.recent_errors[-1:]:
            self.recent_errors.clear()
        self.recent_errors.append(kind or "")
        return bool(kind) and len(self.recent_errors) >= RAISES_IN_A_ROW

    def report(self, epoch: int, scores: Mapping[int, float]) -> set[int]:
        """Store the members' metric (by number) after an epoch; return the members whose claim was lost."""
        lost = self.storage.report(epoch, {self.trial_id(number): score for number, score in scores.items()})
        numbers = self._drop_lost_claims(lost)
        self.history.report(epoch, {number: score for number, score in scores.items() if number not in numbers})
        return numbers

    def end(self, endings: Sequence[tuple[int, TrialResult]]) -> set[int]:
        """Store the endings of trials (by number) in one transaction; return the trials whose claim was lost."""
        lost = self.storage.finish([ending for _, ending in endings]) if endings else set()
        numbers = self._drop_lost_claims(lost)
        for number, ending in endings:
            if number not in numbers:
                self.history.tell(number, ending.state, ending.values)
                del self._running[number]
        return numbers

    def requeue_failed(self, numbers: Sequence[int], reason: str, details: str) -> list[int]:
        """Requeue members whose training raised an exception; return those without retries left."""
        requeued: dict[int, dict[str, Any]] = {}
        for number in numbers:
            attempts = self.attempts(number, reason, details)
            if sum(each["ended"] == "raised" for each in attempts) <= self.study.search.retries:
                requeued[number] = {ATTEMPTS: attempts}
        attrs = {self.trial_id(number): each for number, each in requeued.items()}
        lost = self.storage.requeue(map(self.trial_id, requeued), attrs)
        self._drop_lost_claims(lost)
        for number in requeued:
            self._running.pop(number, None)
        if requeued:
            self.on_event(Note(f"{trials_text(requeued)}: {reason}; requeued, to be trained alone", "warning"))
        return [number for number in numbers if number not in requeued]

    def waiting_among(self, trial_ids: Collection[int]) -> set[int]:
        """Return the numbers of the trials that wait, among those whose claims were lost: a pause has requeued them.

        The others have ended, train elsewhere or were deleted.
        """
        trials = self.storage.read_unfinished(trial_ids, TrialFields(False, user_attrs=False, system_attrs=None))
        return {trial.number for trial in trials if trial.state == TrialState.WAITING}

    def trial_id(self, number: int) -> int:
        """Return the storage id of a running trial."""
        return self._running[number]._trial_id

    def attempts(self, number: int, reason: str, details: str) -> list[dict[str, Any]]:
        """Return the record of a running trial's attempts, with the last one that raised an exception."""
        before: list[dict[str, Any]] = self._running[number].system_attrs.get(ATTEMPTS, [])
        return [*before, attempt_record("raised", reason, self.storage.worker, details)]

    @property
    def _study_id(self) -> int:
        return self.stored._study_id

    def _drop_lost_claims(self, trial_ids: set[int]) -> set[int]:
        """Drop the trials whose claim was lost to another worker or a pause; return their numbers."""
        numbers = {number for number, trial in self._running.items() if trial._trial_id in trial_ids}
        for number in numbers:
            del self._running[number]
        if numbers:
            lost = "claim lost to another worker or a pause; the results are not stored"
            self.on_event(Note(f"{trials_text(numbers)}: {lost}", "warning"))
        return numbers


def trials_text(numbers: Sequence[int] | set[int] | Mapping[int, Any]) -> str:
    """Return `trial 3` or `trials 3, 4, 5`; of many, the first few."""
    ordered = sorted(numbers)
    return f"trial{'s' if len(ordered) > 1 else ''} {first_few(ordered, 5)}"


def trains_alone(trial: FrozenTrial) -> bool:
    """Return whether a trial trains alone: its training raised an exception, or its worker died twice at one epoch."""
    attempts = trial.system_attrs.get(ATTEMPTS, [])
    raised = any(each["ended"] == "raised" for each in attempts)
    return raised or deaths_without_progress(attempts) > DEATHS_BEFORE_ALONE
