"""Train one population up to an epoch: store its learning curves, and freeze, prune, complete or fail each trial.

Promises: an epoch is stored before the next begins; a member that has ended, or whose claim was lost to another worker,
is dropped before the next epoch; an exception raised by the training fails the members and does not leave this module.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import TrialState

from hpo.errors import HpoError
from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.checkpoints.weights import CheckpointWriter, PopulationCheckpoints
from hpo.search.events import EpochEnded, Note, PopulationEnded, PopulationStarted
from hpo.search.loop import Search
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.scoring import fold_scores, objective_values, score_epoch
from hpo.search.study_records import CURVE, Curve
from hpo.storage import ATTEMPTS, FAILURE_REASON, TrialResult
from hpo.studyfile import Study
from hpo.training.early_stopping import has_stopped_improving
from hpo.training.population import EpochResult, TrialTimeout
from hpo.training.stack import Member
from hpo.training.trainer import Trainer
from hpo.usercode import LONGEST_TRACEBACK, error_kind, one_line_error, user_traceback

Freeze = Callable[[Mapping[int, FrozenMember]], set[int]]
"""Freezes members; returns those whose claim was lost."""


class PopulationRun:
    """The training of one population of a search. `error_line` is the exception that training raised, in one line.

    `frozen` has the training so far of members that continue. `checkpoints` writes the members' states.
    """

    def __init__(
        self,
        search: Search,
        study: Study,
        trainer: Trainer,
        history: SamplerHistory,
        writer: CheckpointWriter | None,
        members: list[Member],
        *,
        frozen: Mapping[int, FrozenMember],
        checkpoints: TrainingCheckpoints,
    ) -> None:
        self._search, self._study, self._trainer, self._history = search, study, trainer, history
        self._members, self._frozen, self._training_checkpoints = members, frozen, checkpoints
        self._freeze: Freeze | None = None
        self._write_frozen: Callable[[], None] = lambda: None
        self._metrics = study.search.metrics
        self._metric = study.search.first_metric
        self._epochs = members[0].config.training.epochs
        self._until = self._epochs
        self._start, self._started_at = members[0].epoch, time.perf_counter()
        self._spent_s = max((member.elapsed_s for member in frozen.values()), default=0.0)
        self._ids = {member.number: search.trial_id(member.number) for member in members}
        self._by_number = {member.number: member for member in members}
        self._patience = {member.number: member.config.training.patience for member in members}
        self._curves: dict[int, Curve] = {number: member.curve for number, member in frozen.items()}
        self._frozen_count = 0
        self._shapes = self._stacks = 1
        self._states: list[TrialState] = []
        self._dropped: set[int] = set()
        self._scores: list[float] = []
        self._seconds: dict[int, list[float]] = {}  # a member's share of each epoch's time
        self._error_kind: str | None = None
        self.error_line = ""
        best = {number: member.best for number, member in frozen.items() if member.best is not None}
        self._checkpoints = None if writer is None else PopulationCheckpoints(writer, best)

    def freeze_at(self, epoch: int, freeze: Freeze, write_frozen: Callable[[], None]) -> None:
        """Freeze the members that have not ended after an epoch, instead of training until they end.

        `write_frozen` writes states of frozen members for which there was no time earlier. It is called before the
        states of members in training are written.
        """
        self._until, self._freeze, self._write_frozen = epoch, freeze, write_frozen

    def train(self) -> str | None:
        """Train until all members have ended or a stop is requested; return the kind of exception raised, if any."""
        search = self._search
        search.on_event(PopulationStarted(tuple(member.number for member in self._members), self._until))
        epochs = self._trainer.train(self._members, self._spent_s)
        try:
            result = self._advance(lambda: next(epochs))
            while result is not None:
                self._epoch_ended(result)
                if search.stop.is_set():
                    self._write_states(result, self._in_training(result))
                    break
                result = self._advance(lambda: epochs.send(set(self._dropped)))
        finally:
            epochs.close()
        search.on_event(
            PopulationEnded(
                members=tuple(member.number for member in self._members),
                completed=self._states.count(TrialState.COMPLETE),
                pruned=self._states.count(TrialState.PRUNED),
                failed=self._states.count(TrialState.FAIL),
                best=self._best(self._scores) if self._scores else None,
                seconds=time.perf_counter() - self._started_at,
                frozen=self._frozen_count,
                frozen_at=self._until if self._frozen_count else None,
                shapes=self._shapes,
                stacks=self._stacks,
            )
        )
        return self._error_kind

    def _advance(self, train_epoch: Callable[[], EpochResult]) -> EpochResult | None:
        """Train an epoch; return None after the last one, or after an exception."""
        start = time.perf_counter()
        try:
            result = train_epoch()
            self._record_time(result, time.perf_counter() - start)
            return result
        except StopIteration:
            return None
        except HpoError as error:  # these members cannot be trained; those of other populations may be
            self._fail(self._remaining, str(error))
        except TrialTimeout as error:
            self._handle_exception(str(error), "")
        except Exception as error:  # noqa: BLE001 - any exception of a network fails its trials, and is stored with them
            self._error_kind = self._kind(error)
            self.error_line, details = self._described(error)
            self._handle_exception(self.error_line, details)
        return None

    def _record_time(self, result: EpochResult, seconds: float) -> None:
        trained = [*result.metrics, *result.failed]
        for number in trained:
            if self._is_first(result):  # a population that ran out of memory restarts with fewer members a stack
                self._seconds[number] = list(self._frozen[number].seconds) if number in self._frozen else []
            self._seconds[number].append(seconds / len(trained))

    def _kind(self, error: Exception) -> str:
        """Return a text that exceptions of the same kind share."""
        return error_kind(error, self._study.folder) if self._study.references else self._described(error)[0]

    def _described(self, error: Exception) -> tuple[str, str]:
        """Return an exception as one line, and its traceback: of user code, with the user's frames only."""
        if self._study.references:
            return one_line_error(error, self._study.folder), user_traceback(error, self._study.folder)
        line = " ".join("".join(traceback.format_exception_only(error)).split())
        return line, traceback.format_exc()[-LONGEST_TRACEBACK:]

    @property
    def _remaining(self) -> list[int]:
        return [member.number for member in self._members if member.number not in self._dropped]

    def _in_training(self, result: EpochResult) -> list[int]:
        """Return the remaining members that have trained in an epoch: where memory is short, a part of the population.

        The other parts train afterwards.
        """
        return [number for number in result.metrics if number not in self._dropped]

    def _is_first(self, result: EpochResult) -> bool:
        return result.epoch == self._start + 1

    def _epoch_ended(self, result: EpochResult) -> None:
        """Store an epoch's metrics, and the members that ended with it."""
        epoch, search = result.epoch, self._search
        self._shapes, self._stacks = max(self._shapes, result.shapes), max(self._stacks, result.stacks)
        metrics = {number: values for number, values in result.metrics.items() if number not in self._dropped}
        if self._is_first(result):  # a population that ran out of memory restarts: so do its members' curves
            for number, values in metrics.items():
                before = self._frozen[number].curve if number in self._frozen else {}
                self._curves[number] = {name: list(before.get(name, ())) for name in values}
            if self._checkpoints is not None:
                self._checkpoints.restart(metrics)
        for number, values in metrics.items():
            for name, value in values.items():
                self._curves[number][name].append(value)
        scores = {number: values[self._metric] for number, values in metrics.items()}
        lost = search.report(epoch, scores)
        self._dropped |= lost
        scores = {number: score for number, score in scores.items() if number not in self._dropped}
        if self._checkpoints is not None:
            self._checkpoints.epoch_ended(result, scores)
        done = [number for number in scores if self._has_ended(epoch, number)]
        # Members that have completed are passed to the pruner for comparison, but not pruned.
        pruned = set() if epoch == self._epochs else self._history.prune(scores) - set(done)
        # A population that restarts trains members that have already ended for one more epoch.
        failed = {number: reason for number, reason in result.failed.items() if number not in self._dropped}
        endings = [(number, self._failure(number, reason)) for number, reason in failed.items()]
        endings += [(number, self._pruned(number)) for number in sorted(pruned)]
        endings += self._completed(result, done) if done else []
        self._end(endings, result)
        self._save(result, lost)
        reached = [*self._scores, *(self._score(number) for number in scores)]
        best = self._best(reached) if reached else None
        left = len(self._remaining) + (self._frozen_count if epoch == self._until else 0)
        search.on_event(EpochEnded(epoch, self._until, left, best))

    def _save(self, result: EpochResult, lost: Collection[int]) -> None:
        """Freeze the remaining members at the last epoch of this population, and write the states that are due.

        Members that a pause has requeued are written too: they continue from that state.
        """
        trained = self._in_training(result)
        if self._freeze and result.epoch == self._until and trained:
            frozen = self._freezable(result, trained)
            lost_at_rung = self._freeze(frozen)
            self._frozen_count += len(frozen.keys() - lost_at_rung)
            self._dropped |= frozen.keys()
            lost = {*lost, *lost_at_rung}
        else:
            self._write_frozen()
            self._write_states(result, self._training_checkpoints.due(result.epoch, trained))
        if lost:
            self._write_states(result, self._search.waiting_among({self._ids[number] for number in lost}))

    def _write_states(self, result: EpochResult, numbers: Collection[int]) -> None:
        if numbers and self._training_checkpoints.enabled:
            with self._training_checkpoints.spending():
                self._training_checkpoints.write(self._freezable(result, numbers))

    def _freezable(self, result: EpochResult, numbers: Collection[int]) -> dict[int, FrozenMember]:
        """Return these members with their training so far; none where their networks cannot be frozen."""
        if not self._trainer.can_freeze(self._members[0]):
            return {}
        elapsed_s = self._spent_s + time.perf_counter() - self._started_at
        best = self._checkpoints.best if self._checkpoints is not None else lambda number: None
        return {
            n: FrozenMember(
                replace(self._by_number[n], state=state), self._curves[n], self._seconds[n], best(n), elapsed_s
            )
            for n, state in result.freeze(numbers).items()
        }

    def _has_ended(self, epoch: int, number: int) -> bool:
        """Return whether a trial is complete: after its last epoch, or by early stopping."""
        return epoch == self._epochs or self._stops_early(number)

    def _stops_early(self, number: int) -> bool:
        return has_stopped_improving(
            self._patience[number], self._curves[number][self._metric], self._study.search.minimized
        )

    def _completed(self, result: EpochResult, numbers: Iterable[int]) -> list[tuple[int, TrialResult]]:
        """Return the endings of trials that complete, with the file names of checkpoints."""
        values = {number: self._values(number) for number in numbers}
        self._scores += [scores[0] for scores in values.values()]
        files = {} if self._checkpoints is None else self._checkpoints.write(result, values)
        return [(number, self._complete(number, values[number], files.get(number))) for number in values]

    def _complete(self, number: int, values: tuple[float, ...], files: dict[str, Any] | None) -> TrialResult:
        scored_by_best = self._study.search.score == "best"
        attrs: dict[str, Any] = {}
        if scored_by_best:
            attrs["score_epoch"] = score_epoch(self._study, self._curves[number])
        if scores := fold_scores(self._study, self._curves[number]):
            attrs["fold_scores"] = scores
        return self._ending(number, TrialState.COMPLETE, values, attrs, files)

    def _pruned(self, number: int) -> TrialResult:
        """Return a pruned trial's ending, with its last value, as Optuna does."""
        return self._ending(number, TrialState.PRUNED, (self._curves[number][self._metric][-1],))

    def _ending(
        self,
        number: int,
        state: TrialState,
        values: tuple[float, ...],
        attrs: dict[str, Any] | None = None,
        files: dict[str, Any] | None = None,
    ) -> TrialResult:
        more = {**self._history.attrs(number), **(files or {})}
        return ending(self._search.trial_id(number), state, values, self._curves[number], more, attrs or {})

    def _values(self, number: int) -> tuple[float, ...]:
        """Return a member's objective values so far, one a metric."""
        config = self._by_number[number].config
        return objective_values(self._study, self._trainer, config, self._curves[number], self._seconds[number])

    def _score(self, number: int) -> float:
        """Return a member's score so far."""
        curve = self._curves[number]
        return curve[self._metric][score_epoch(self._study, curve) - 1]

    def _failure(self, number: int, reason: str) -> TrialResult:
        attrs = {CURVE: dict(self._curves.get(number, {}))}
        return TrialResult(self._search.trial_id(number), TrialState.FAIL, (), {FAILURE_REASON: reason}, attrs)

    def _handle_exception(self, reason: str, details: str) -> None:
        """Requeue the remaining members, which continue from their last states, or fail those without retries left."""
        remaining = self._remaining
        self._training_checkpoints.write_for_retry((self._by_number[number] for number in remaining), self._frozen)
        failed = self._search.requeue_failed(remaining, reason, details)
        self._dropped |= set(remaining) - set(failed)
        self._fail(failed, reason, details)

    def _fail(self, numbers: Sequence[int], reason: str, details: str = "") -> None:
        endings = []
        for number in numbers:
            ending = self._failure(number, reason)
            if details:
                system_attrs = {**ending.system_attrs, ATTEMPTS: self._search.attempts(number, reason, details)}
                ending = TrialResult(ending.trial_id, ending.state, (), ending.user_attrs, system_attrs)
            endings.append((number, ending))
        if endings:
            traceback_text = f"\n{details.rstrip()}" if details and self._study.references else ""
            count = "1 trial" if len(endings) == 1 else f"{len(endings)} trials"
            self._search.on_event(Note(f"{count} failed: {reason}{traceback_text}", "warning"))
        self._end(endings)

    def _end(self, endings: list[tuple[int, TrialResult]], result: EpochResult | None = None) -> None:
        """Store the endings of trials; `result` is the epoch that they ended with, where they were trained."""
        lost = self._search.end(endings)
        self._states += [ending.state for number, ending in endings if number not in lost]
        ended = {number for number, _ in endings} - lost
        self._dropped |= {number for number, _ in endings}
        extendable = self._extendable(result.epoch, ended) if result is not None else set()
        self._training_checkpoints.remove(ended - extendable)
        # Written once the trial is complete, so that no other trial finds a state without epochs left to train, and
        # before the states of trials that are not among the best are removed.
        if result is not None:
            self._write_states(result, extendable)
        if self._checkpoints is not None:
            self._checkpoints.ended(ended)

    def _extendable(self, epoch: int, ended: Collection[int]) -> set[int]:
        """Return the trials that complete with their last epoch and a checkpoint of it: an extension continues them."""
        if self._checkpoints is None or epoch < self._epochs or not self._training_checkpoints.enabled:
            return set()
        return {number for number in self._checkpoints.written & set(ended) if not self._stops_early(number)}

    def _best(self, values: Iterable[float]) -> float:
        return (min if self._study.search.minimized else max)(values)


def ending(
    trial_id: int,
    state: TrialState,
    values: tuple[float, ...],
    curve: Curve,
    system_attrs: Mapping[str, Any],
    user_attrs: Mapping[str, Any] | None = None,
) -> TrialResult:
    """Return the result of a trial that completed or was pruned."""
    return TrialResult(trial_id, state, values, user_attrs or {}, {CURVE: dict(curve), **system_attrs})
