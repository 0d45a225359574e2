"""Train one population: store its learning curves, prune, and complete or fail each trial.

Promises: an epoch is stored before the next begins; a member that has ended, or whose claim was lost to another worker,
is dropped before the next epoch; an exception raised by the training fails the members and does not leave this module.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from optuna.trial import TrialState

from hpo.errors import HpoError
from hpo.search.checkpoints import CheckpointWriter, PopulationCheckpoints
from hpo.search.events import EpochEnded, Note, PopulationEnded, PopulationStarted
from hpo.search.loop import Search
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.study_records import CURVE, Curve
from hpo.storage import ATTEMPTS, FAILURE_REASON, TrialResult
from hpo.studyfile import Study
from hpo.studyfile.models import is_minimized
from hpo.training.population import EpochResult, TrialTimeout
from hpo.training.stack import Member
from hpo.training.trainer import Trainer, has_stopped_improving
from hpo.usercode import LONGEST_TRACEBACK, error_kind, one_line_error, user_traceback


class PopulationRun:
    """The training of one population of a search. `error_line` is the exception that training raised, in one line."""

    def __init__(
        self,
        search: Search,
        study: Study,
        trainer: Trainer,
        history: SamplerHistory,
        writer: CheckpointWriter | None,
        members: list[Member],
    ) -> None:
        self._search, self._study, self._trainer, self._history = search, study, trainer, history
        self._members = members
        self._metrics = study.search.metrics
        self._metric = study.search.first_metric
        self._epochs = members[0].config.training.epochs
        self._configs = {member.number: member.config for member in members}
        self._patience = {member.number: member.config.training.patience for member in members}
        self._curves: dict[int, Curve] = {}
        self._states: list[TrialState] = []
        self._dropped: set[int] = set()
        self._scores: list[float] = []
        self._seconds: dict[int, list[float]] = defaultdict(list)  # a member's share of each epoch's time
        self._error_kind: str | None = None
        self.error_line = ""
        self._checkpoints = None if writer is None else PopulationCheckpoints(writer)

    def train(self) -> str | None:
        """Train until all members have ended or a stop is requested; return the kind of exception raised, if any."""
        search, start = self._search, time.perf_counter()
        search.on_event(PopulationStarted(tuple(member.number for member in self._members), self._epochs))
        epochs = self._trainer.train(self._members)
        try:
            result = self._advance(lambda: next(epochs))
            while result is not None:
                self._epoch_ended(result)
                if search.stop.is_set():
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
                seconds=time.perf_counter() - start,
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
            if result.epoch == 1:  # a population that ran out of memory restarts with fewer members a stack
                self._seconds[number] = []
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

    def _epoch_ended(self, result: EpochResult) -> None:
        """Store an epoch's metrics, and the members that ended with it."""
        epoch, search = result.epoch, self._search
        metrics = {number: values for number, values in result.metrics.items() if number not in self._dropped}
        for number, values in metrics.items():
            # A population that ran out of memory restarts: so do its members' curves.
            curve = self._curves[number] = self._curves[number] if epoch > 1 else defaultdict(list)
            for name, value in values.items():
                curve[name].append(value)
        scores = {number: values[self._metric] for number, values in metrics.items()}
        self._dropped |= search.report(epoch, scores)
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
        self._end(endings)
        reached = [*self._scores, *(self._score(number) for number in scores)]
        best = self._best(reached) if reached else None
        search.on_event(EpochEnded(epoch, self._epochs, len(self._remaining), best))

    def _has_ended(self, epoch: int, number: int) -> bool:
        """Return whether a trial is complete: after its last epoch, or by early stopping."""
        return epoch == self._epochs or has_stopped_improving(
            self._patience[number], self._curves[number][self._metric], self._metric
        )

    def _completed(self, result: EpochResult, numbers: Iterable[int]) -> list[tuple[int, TrialResult]]:
        """Return the endings of trials that complete, with the file names of checkpoints."""
        values = {number: self._values(number) for number in numbers}
        self._scores += [scores[0] for scores in values.values()]
        files = {} if self._checkpoints is None else self._checkpoints.write(result, values)
        return [(number, self._complete(number, values[number], files.get(number))) for number in values]

    def _complete(self, number: int, values: tuple[float, ...], files: dict[str, Any] | None) -> TrialResult:
        scored_by_best = self._study.search.score == "best"
        attrs = {"score_epoch": self._score_epoch(number)} if scored_by_best else {}
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
        system_attrs = {CURVE: dict(self._curves[number]), **self._history.attrs(number), **(files or {})}
        return TrialResult(self._search.trial_id(number), state, values, attrs or {}, system_attrs)

    def _score_epoch(self, number: int) -> int:
        """Return the epoch whose value is a member's score so far: the last, or the best."""
        values = self._curves[number][self._metric]
        return values.index(self._best(values)) + 1 if self._study.search.score == "best" else len(values)

    def _score(self, number: int) -> float:
        """Return a member's score so far."""
        return self._curves[number][self._metric][self._score_epoch(number) - 1]

    def _values(self, number: int) -> tuple[float, ...]:
        """Return a member's objective values so far, one a metric."""
        return tuple(self._value(number, metric) for metric in self._metrics)

    def _value(self, number: int, metric: str) -> float:
        match metric:
            case "parameters":
                return float(self._trainer.parameters(self._configs[number]))
            case "seconds_per_epoch":  # the first epoch also builds the stack
                seconds = self._seconds[number]
                return statistics.median(seconds[1:] or seconds)
            case _:
                return self._curves[number][metric][self._score_epoch(number) - 1]

    def _failure(self, number: int, reason: str) -> TrialResult:
        attrs = {CURVE: dict(self._curves.get(number, {}))}
        return TrialResult(self._search.trial_id(number), TrialState.FAIL, (), {FAILURE_REASON: reason}, attrs)

    def _handle_exception(self, reason: str, details: str) -> None:
        """Requeue the remaining members, or fail those without retries left."""
        remaining = self._remaining
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

    def _end(self, endings: list[tuple[int, TrialResult]]) -> None:
        lost = self._search.end(endings)
        self._states += [ending.state for number, ending in endings if number not in lost]
        self._dropped |= {number for number, _ in endings}
        if self._checkpoints is not None:
            self._checkpoints.ended({number for number, _ in endings} - lost)

    def _best(self, values: Iterable[float]) -> float:
        return (min if is_minimized(self._metric) else max)(values)
