"""One population on its way: its curves so far, what the pruner says of its members, and how each of them ends.

Promises: an epoch is stored before the next begins; a member that ended or was given to another process is left out
from the next epoch on; whatever the training raises ends here, as the members' own failure.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from hpo.errors import HpoError
from hpo.search.checkpoints import Weights
from hpo.search.events import EpochEnded, Note, PopulationEnded, PopulationStarted
from hpo.search.study_records import CURVE, Curve
from hpo.storage import ATTEMPTS, REASON, Ending
from hpo.studyfile.models import is_minimized
from hpo.training.patience import is_over
from hpo.training.population import EpochResult, TrialTimeout
from hpo.training.stack import Member
from hpo.usercode import LONGEST_TRACEBACK, in_a_line, kind_of, shortened

if TYPE_CHECKING:
    from hpo.search.population_search import PopulationSearch


class Run:
    """See the module. `said` is what the training raised, in a line."""

    def __init__(self, search: PopulationSearch, members: list[Member]) -> None:
        self._search, self._members = search, members
        self._metrics = search.study.search.metrics
        self._metric = search.study.search.first_metric
        self._epochs = members[0].config.training.epochs
        self._configs = {member.number: member.config for member in members}
        self._patience = {member.number: member.config.training.patience for member in members}
        self._curves: dict[int, Curve] = {}
        self._states: list[TrialState] = []
        self._gone: set[int] = set()
        self._scores: list[float] = []
        self._shares: dict[int, list[float]] = defaultdict(list)  # of its population's time, in seconds an epoch
        self._error: str | None = None
        self.said = ""
        self._weights = None if search.keeper is None else Weights(search.keeper)

    def train(self) -> str | None:
        """Train to the end, or to the epoch in which a stop is asked for; return which kind of error was raised."""
        search, start = self._search, time.perf_counter()
        search.on_event(PopulationStarted(tuple(member.number for member in self._members), self._epochs))
        epochs = search.objective.train(self._members)
        try:
            result = self._advance(lambda: next(epochs))
            while result is not None:
                self._epoch_ended(result)
                if search.stop.is_set():
                    break
                result = self._advance(lambda: epochs.send(set(self._gone)))
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
        return self._error

    def _advance(self, train_epoch: Callable[[], EpochResult]) -> EpochResult | None:
        """Train an epoch; return None where there is none left, or none can be trained."""
        start = time.perf_counter()
        try:
            result = train_epoch()
            self._note_time(result, time.perf_counter() - start)
            return result
        except StopIteration:
            return None
        except HpoError as error:  # this shape cannot be trained; others can
            self._fail(self._left, str(error))
        except TrialTimeout as error:
            self._raised(str(error), "")
        except Exception as error:  # noqa: BLE001 - whatever a network raises fails its trials, and is kept with them
            self._error = self._kind(error)
            self.said, details = self._told(error)
            self._raised(self.said, details)
        return None

    def _note_time(self, result: EpochResult, seconds: float) -> None:
        trained = [*result.metrics, *result.failed]
        for number in trained:
            if result.epoch == 1:  # a population that had to be made smaller begins again
                self._shares[number] = []
            self._shares[number].append(seconds / len(trained))

    def _kind(self, error: Exception) -> str:
        """Return what errors of one kind have in common."""
        study = self._search.study
        return kind_of(error, study.folder) if study.references else self._told(error)[0]

    def _told(self, error: Exception) -> tuple[str, str]:
        """Return what was raised, in a line, and its traceback: of the user's own code, with its frames only."""
        study = self._search.study
        if study.references:
            return in_a_line(error, study.folder), shortened(error, study.folder)
        line = " ".join("".join(traceback.format_exception_only(error)).split())
        return line, traceback.format_exc()[-LONGEST_TRACEBACK:]

    @property
    def _left(self) -> list[int]:
        return [member.number for member in self._members if member.number not in self._gone]

    def _epoch_ended(self, result: EpochResult) -> None:
        """Store an epoch's metrics and whatever ended with it."""
        epoch, search = result.epoch, self._search
        metrics = {number: values for number, values in result.metrics.items() if number not in self._gone}
        for number, values in metrics.items():
            # A population that had to be made smaller begins again: its members' curves do, too.
            curve = self._curves[number] = self._curves[number] if epoch > 1 else defaultdict(list)
            for name, value in values.items():
                curve[name].append(value)
        scores = {number: values[self._metric] for number, values in metrics.items()}
        self._gone |= search.report(epoch, scores)
        scores = {number: score for number, score in scores.items() if number not in self._gone}
        if self._weights is not None:
            self._weights.epoch_ended(result, scores)
        done = [number for number in scores if self._has_ended(epoch, number)]
        # Who is done is judged with the others, which are compared with it, but not pruned.
        pruned = set() if epoch == self._epochs else search.history.judge(scores) - set(done)
        # A population that had to be made smaller trains those that have ended once more, for an epoch.
        failed = {number: reason for number, reason in result.failed.items() if number not in self._gone}
        endings = [(number, self._failure(number, reason)) for number, reason in failed.items()]
        endings += [(number, self._pruned(number)) for number in sorted(pruned)]
        endings += self._completed(result, done) if done else []
        self._end(endings)
        reached = [*self._scores, *(self._score(number) for number in scores)]
        best = self._best(reached) if reached else None
        search.on_event(EpochEnded(epoch, self._epochs, len(self._left), best))

    def _has_ended(self, epoch: int, number: int) -> bool:
        """Return whether a trial is complete: after its last epoch, or when it has not become better for too long."""
        return epoch == self._epochs or is_over(
            self._patience[number], self._curves[number][self._metric], self._metric
        )

    def _completed(self, result: EpochResult, numbers: Iterable[int]) -> list[tuple[int, Ending]]:
        """Return the endings of trials that complete, with the names of the files of those whose weights are kept."""
        values = {number: self._values(number) for number in numbers}
        self._scores += [scores[0] for scores in values.values()]
        files = {} if self._weights is None else self._weights.write(result, values)
        return [(number, self._complete(number, values[number], files.get(number))) for number in values]

    def _complete(self, number: int, values: tuple[float, ...], files: dict[str, Any] | None) -> Ending:
        scored_by_best = self._search.study.search.score == "best"
        attrs = {"score_epoch": self._score_epoch(number)} if scored_by_best else {}
        return self._ending(number, TrialState.COMPLETE, values, attrs, files)

    def _pruned(self, number: int) -> Ending:
        """Return a pruned trial's ending, with its last value, as Optuna does."""
        return self._ending(number, TrialState.PRUNED, (self._curves[number][self._metric][-1],))

    def _ending(
        self,
        number: int,
        state: TrialState,
        values: tuple[float, ...],
        attrs: dict[str, Any] | None = None,
        files: dict[str, Any] | None = None,
    ) -> Ending:
        kept = {CURVE: dict(self._curves[number]), **self._search.history.attrs(number), **(files or {})}
        return Ending(self._search.trial_id(number), state, values, attrs or {}, kept)

    def _score_epoch(self, number: int) -> int:
        """Return the epoch that a member would be scored by if it ended now."""
        values = self._curves[number][self._metric]
        return values.index(self._best(values)) + 1 if self._search.study.search.score == "best" else len(values)

    def _score(self, number: int) -> float:
        """Return the score that a member would have if it ended now."""
        return self._curves[number][self._metric][self._score_epoch(number) - 1]

    def _values(self, number: int) -> tuple[float, ...]:
        """Return what a member would have for each metric if it ended now."""
        return tuple(self._value(number, metric) for metric in self._metrics)

    def _value(self, number: int, metric: str) -> float:
        match metric:
            case "parameters":
                return float(self._search.objective.parameters(self._configs[number]))
            case "seconds_per_epoch":  # the first epoch also builds what the others use
                shares = self._shares[number]
                return statistics.median(shares[1:] or shares)
            case _:
                return self._curves[number][metric][self._score_epoch(number) - 1]

    def _failure(self, number: int, reason: str) -> Ending:
        attrs = {CURVE: dict(self._curves.get(number, {}))}
        return Ending(self._search.trial_id(number), TrialState.FAIL, (), {REASON: reason}, attrs)

    def _raised(self, reason: str, details: str) -> None:
        """Try the members that are left again, or fail them."""
        left = self._left
        failed = self._search.raised(left, reason, details)
        self._gone |= set(left) - set(failed)
        self._fail(failed, reason, details)

    def _fail(self, numbers: Sequence[int], reason: str, details: str = "") -> None:
        endings = []
        for number in numbers:
            ending = self._failure(number, reason)
            if details:
                kept = {**ending.system_attrs, ATTEMPTS: self._search.attempts(number, reason, details)}
                ending = Ending(ending.trial_id, ending.state, (), ending.user_attrs, kept)
            endings.append((number, ending))
        if endings:
            own = f"\n{details.rstrip()}" if details and self._search.study.references else ""
            count = "1 trial" if len(endings) == 1 else f"{len(endings)} trials"
            self._search.on_event(Note(f"{count} failed: {reason}{own}", "warning"))
        self._end(endings)

    def _end(self, endings: list[tuple[int, Ending]]) -> None:
        lost = self._search.end(endings)
        self._states += [ending.state for number, ending in endings if number not in lost]
        self._gone |= {number for number, _ in endings}
        if self._weights is not None:
            self._weights.ended({number for number, _ in endings} - lost)

    def _best(self, values: Iterable[float]) -> float:
        return (min if is_minimized(self._metric) else max)(values)
