"""The loop: ask a population, train it, report every epoch, drop what the pruner prunes, tell.

What must not be lost is in the storage before the next epoch begins. On a stop the epoch in hand ends, finished trials
are kept, and the others go back to the queue: they run first when the study is launched again.

Knows neither layers nor SQL: it hands members to the objective and records to the storage.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import HpoError
from hpo.search.events import EpochEnded, Event, Note, PopulationEnded, PopulationStarted
from hpo.search.history import History
from hpo.search.space import config_of, distributions
from hpo.storage import Ending, Storage
from hpo.studyfile import Study
from hpo.training.objective import Objective
from hpo.training.population import EpochResult
from hpo.training.randomness import member_seed
from hpo.training.stack import Member

CURVE = "hpo:curve"
"""The system attribute that holds a trial's learning curve: metric -> a value an epoch."""

Curve = dict[str, list[float]]


@dataclass
class Search:
    """One launch's search of a stored study, up to `trials` trials in all."""

    study: Study
    stored: optuna.Study
    storage: Storage
    objective: Objective
    population: int
    on_event: Callable[[Event], None]
    stop: threading.Event
    history: History = field(init=False)
    _running: dict[int, FrozenTrial] = field(init=False, default_factory=dict)

    def run(self) -> bool:
        """Search until the study has its trials; return whether that is so (a stop or an exhausted space: not)."""
        waiting = self._requeued()
        trials = self.stored.get_trials(deepcopy=False)
        self.history = History(self.study, trials)
        missing = self.study.search.trials - len(trials)
        try:
            while (missing > 0 or waiting) and not self.stop.is_set():
                batch, waiting = waiting[: self.population], waiting[self.population :]
                started = self.storage.start(trial._trial_id for trial in batch)
                self._running = {trial.number: trial for trial in batch if trial._trial_id in started}
                new = self._create(min(self.population - len(self._running), missing))
                self._running |= {trial.number: trial for trial in new}
                missing -= len(new)
                if not self._running:
                    return False
                self._train()
                assert self.stop.is_set() or not self._running, "a population trains until all its members have ended"
        finally:
            self.storage.requeue(trial._trial_id for trial in self._running.values())
        return missing <= 0 and not waiting and not self._running

    def _requeued(self) -> list[FrozenTrial]:
        """Return the trials that wait, after those of a process that died have been put back to them."""
        orphans = self.stored.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        if orphans:
            self.storage.requeue(trial._trial_id for trial in orphans)
            self.on_event(Note(f"{len(orphans)} trials of a process that ended are trained again"))
        return self.stored.get_trials(deepcopy=False, states=(TrialState.WAITING,))

    def _create(self, count: int) -> list[FrozenTrial]:
        """Ask for new trials and store them, as running."""
        space = distributions(self.study)
        templates = [
            create_trial(
                state=TrialState.RUNNING,
                params=values,
                distributions=space,
                user_attrs={"seed": member_seed(self.study.search.seed, number)},
            )
            for number, values in self.history.ask(count)
        ]
        return self.storage.create_trials(self.stored._study_id, templates) if templates else []

    def _train(self) -> None:
        """Train the running trials, in as many populations as they have shapes."""
        members = [
            Member(trial.number, config_of(self.study, trial.params), member_seed(self.study.search.seed, trial.number))
            for trial in self._running.values()
        ]
        for group in self.objective.groups(members):
            if self.stop.is_set():
                return
            _Run(self, group).train()

    def end(self, endings: Sequence[tuple[int, Ending]]) -> None:
        """Store how trials (by number) ended; a population's endings of an epoch are one transaction."""
        if endings:
            self.storage.finish([ending for _, ending in endings])
        for number, ending in endings:
            self.history.tell(number, ending.state, ending.value)
            del self._running[number]

    def trial_id(self, number: int) -> int:
        """Return the storage's id of a running trial."""
        return self._running[number]._trial_id


class _Run:
    """One population on its way: its curves so far, and what became of its members."""

    def __init__(self, search: Search, members: list[Member]) -> None:
        self._search, self._members = search, members
        self._metric = search.study.search.metric
        self._epochs = members[0].config.training.epochs
        self._curves: dict[int, Curve] = {}
        self._ended: dict[int, TrialState] = {}
        self._scores: list[float] = []

    def train(self) -> None:
        """Train to the end, or to the epoch in which a stop is asked for."""
        search, start = self._search, time.perf_counter()
        search.on_event(PopulationStarted(tuple(member.number for member in self._members), self._epochs))
        epochs = search.objective.train(self._members)
        try:
            result = self._advance(lambda: next(epochs))
            while result is not None:
                self._epoch_ended(result)
                if search.stop.is_set():
                    break
                result = self._advance(lambda: epochs.send(set(self._ended)))
        finally:
            epochs.close()
        states = list(self._ended.values())
        search.on_event(
            PopulationEnded(
                completed=states.count(TrialState.COMPLETE),
                pruned=states.count(TrialState.PRUNED),
                failed=states.count(TrialState.FAIL),
                best=self._best(self._scores),
                seconds=time.perf_counter() - start,
            )
        )

    def _advance(self, train_epoch: Callable[[], EpochResult]) -> EpochResult | None:
        """Train an epoch; return None where there is none left, or none can be trained."""
        try:
            return train_epoch()
        except StopIteration:
            return None
        except HpoError as error:  # this shape cannot be trained; others can
            self._fail_all(str(error))
            return None

    def _epoch_ended(self, result: EpochResult) -> None:
        """Store an epoch's metrics and whatever ended with it."""
        epoch, search = result.epoch, self._search
        metrics = {number: values for number, values in result.metrics.items() if number not in self._ended}
        for number, values in metrics.items():
            # A population that had to be made smaller begins again: its members' curves do, too.
            curve = self._curves[number] = self._curves[number] if epoch > 1 else defaultdict(list)
            for name, value in values.items():
                curve[name].append(value)
        scores = {number: values[self._metric] for number, values in metrics.items()}
        search.storage.report(epoch, {search.trial_id(number): score for number, score in scores.items()})
        search.history.report(epoch, scores)
        last = epoch == self._epochs
        pruned = set() if last else search.history.judge(scores)
        # A population that had to be made smaller trains those that have ended once more, for an epoch.
        failed = {number: reason for number, reason in result.failed.items() if number not in self._ended}
        endings = [(number, self._failure(number, reason)) for number, reason in failed.items()]
        endings += [(number, self._ending(number, TrialState.PRUNED)) for number in sorted(pruned)]
        endings += [(number, self._ending(number, TrialState.COMPLETE)) for number in scores if last]
        self._end(endings)
        best = self._best([self._score(number) for number in scores])
        search.on_event(EpochEnded(epoch, self._epochs, len(self._members) - len(self._ended), best))

    def _ending(self, number: int, state: TrialState) -> Ending:
        """Return a completed trial's ending with its score, or a pruned one's with its last value, as Optuna does."""
        curve = self._curves[number]
        values = curve[self._metric]
        score, attrs = values[-1], {}
        if state == TrialState.COMPLETE:
            score = self._score(number)
            self._scores.append(score)
            if self._search.study.search.score == "best":
                attrs = {"score_epoch": values.index(score) + 1}
        system_attrs = {CURVE: dict(curve), **self._search.history.attrs(number)}
        return Ending(self._search.trial_id(number), state, score, attrs, system_attrs)

    def _score(self, number: int) -> float:
        """Return the score that a member would have if it ended now."""
        values = self._curves[number][self._metric]
        return (self._best(values) or 0.0) if self._search.study.search.score == "best" else values[-1]

    def _failure(self, number: int, reason: str) -> Ending:
        attrs = {CURVE: dict(self._curves.get(number, {}))}
        return Ending(self._search.trial_id(number), TrialState.FAIL, None, {"reason": reason}, attrs)

    def _fail_all(self, reason: str) -> None:
        left = [member.number for member in self._members if member.number not in self._ended]
        self._end([(number, self._failure(number, reason)) for number in left])
        self._search.on_event(Note(f"{len(left)} trials failed: {reason}", "warning"))

    def _end(self, endings: list[tuple[int, Ending]]) -> None:
        self._search.end(endings)
        self._ended.update({number: ending.state for number, ending in endings})

    def _best(self, values: Sequence[float]) -> float | None:
        return (min if self._metric == "val_loss" else max)(values, default=None)
