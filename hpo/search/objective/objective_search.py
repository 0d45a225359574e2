"""The search of an objective study: trials run one after the other in the objective function.

A trial ends as in Optuna: the returned number is its value; `TrialPruned` prunes it; any other exception, `sys.exit`
among them, fails it and is stored with it. Three failures of the same kind in a row end the search.

Trial t of a study with `search.points` runs point t // repeats, as if Optuna's `enqueue_trial` had fixed its values.
With `repeats` nothing is sampled: a parameter that a point does not name has the middle of its range. A trial has its
seed as the user attribute `seed`, for the function to use; repeats of all points have the same seeds.

The function cannot be interrupted from outside. After a stop, a timeout, or the loss of the trial's claim, its next
`report`, `should_prune` or attribute write raises `TrialInterrupted`, which no `except Exception` catches; a function
that calls none of these runs to its end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import TrialPruned
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo import usercode
from hpo.errors import TrainingError, nearest
from hpo.optuna_internals import tell_with_warning
from hpo.search.events import EpochEnded, Note, PopulationEnded, PopulationStarted
from hpo.search.loop import POLL_S, RAISES_IN_A_ROW, Search, trials_text
from hpo.search.objective.objective_history import ObjectiveHistory
from hpo.search.points import FIXED, SEED, trial_seed
from hpo.search.sampling.samplers import MiddleSampler, objective_sampler
from hpo.storage import ATTEMPTS, FAILURE_REASON, StudyState, TrialFields, TrialResult, set_state
from hpo.studyfile import ObjectiveStudy
from hpo.studyfile.messages import format_key
from hpo.usercode import UserCode

Function = Callable[[optuna.Trial], Any]
"""The user's objective function."""


class TrialInterrupted(BaseException):
    """Ends the objective function's trial after a stop, the loss of its claim, or a timeout."""

    def __init__(self, reason: Literal["stop", "lost", "timeout"]) -> None:
        self.reason = reason
        super().__init__(reason)


class ObjectiveTrial(optuna.Trial):
    """The trial that the objective function gets.

    `check` raises `TrialInterrupted` where the trial has to end; `refresh` reads the trials of other workers. `seed` is
    the seed of a repeated point, which the function cannot replace: runs with equal seeds are compared.
    """

    def __init__(
        self,
        study: optuna.Study,
        number: int,
        check: Callable[[], None],
        refresh: Callable[[], None],
        seed: int | None = None,
    ) -> None:
        super().__init__(study, number)
        self._check, self._refresh, self._seed = check, refresh, seed

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set a user attribute, except the seed of a repeated point."""
        if key == SEED and self._seed is not None:
            value = self._seed
        super().set_user_attr(key, value)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggest one of the choices, as Optuna does.

        Raises ValueError for choices such as True and 1, which Optuna takes for equal and stores as one.
        """
        for index, choice in enumerate(choices):
            for other in choices[:index]:
                if choice == other and repr(choice) != repr(other):
                    raise ValueError(f"'{name}': choices {other!r} and {choice!r} are stored as one; give one of them")
        return super().suggest_categorical(name, choices)

    def report(self, value: float, step: int) -> None:
        """Report a value at a step, as Optuna does."""
        super().report(value, step)
        self._check()

    def should_prune(self) -> bool:
        """Return whether the pruner wants to prune the trial."""
        self._check()
        self._refresh()
        return super().should_prune()


@dataclass(frozen=True)
class _Failure:
    """The failure of a trial. `kind` is a text that failures of one kind share, None where the code is not the cause.

    `retry` says whether another attempt may succeed, as `search.retries` allows.
    """

    reason: str
    kind: str | None = None
    details: str = ""
    retry: bool = True


@dataclass(frozen=True)
class _Outcome:
    """The end of a trial."""

    state: TrialState
    values: tuple[float, ...] = ()
    failure: _Failure | None = None


@dataclass(kw_only=True)
class ObjectiveSearch(Search):
    """The search of an objective study; `code` has the files of the function."""

    study: ObjectiveStudy
    function: Function
    code: UserCode
    history: ObjectiveHistory = field(init=False)
    _refreshed: float = field(init=False, default=0.0)  # monotonic time of the last read of other workers' trials

    def __post_init__(self) -> None:
        super().__post_init__()
        self.history = ObjectiveHistory(self.study, self._read(-1, ()), self._store, self._store_report)

    @property
    def _parts(self) -> TrialFields:
        """All parts: the function may read earlier trials."""
        return TrialFields()

    @property
    def _repeated(self) -> bool:
        """Whether all trials are repeated points."""
        return self.study.search.repeats > 1

    def _create(self, count: int) -> list[FrozenTrial]:
        """Store a new trial without parameters; try again where another worker has stored trials meanwhile."""
        while count and self._missing > 0 and not self.stop.is_set():
            number, points = self.history.count, self.study.search.points
            point = number // self.study.search.repeats
            template = create_trial(
                state=TrialState.RUNNING,
                user_attrs={SEED: trial_seed(self.study, number)},
                system_attrs={FIXED: points[point]} if point < len(points) else {},
            )
            created = self.storage.create_trials(self._study_id, [template], self.history.count, self.claim_conditions)
            if created:
                self.history.sync(created)
                return created
            self._catch_up()
        return []

    def _train(self) -> None:
        """Call the function with each running trial."""
        for number in list(self._running):
            if self.stop.is_set():
                return
            failure = self._train_one(number)
            if self._repeated and number % self.study.search.repeats:
                continue  # the other repeats of a point fail for the same reason as its first one
            if self._is_repeated(None if failure is None else failure.kind) and failure is not None:
                if failure.details:
                    self.on_event(Note(failure.details.rstrip(), "warning"))
                which = "points" if self._repeated else "trials"
                alike = f"failed alike in {RAISES_IN_A_ROW} {which} in a row"
                problem = f"{self.study.objective} {alike} ({failure.reason})"
                raise TrainingError(self.study.name, problem, self._has_trials_left)

    def _train_one(self, number: int) -> _Failure | None:
        """Call the function with a trial and end or requeue the trial; return its failure, if any."""
        start = time.perf_counter()
        self.on_event(PopulationStarted((number,), None))
        outcome = self._outcome(number)
        ended = None if outcome is None or number not in self._running else self._end_one(number, outcome)
        states = [] if ended is None else [ended]
        value = outcome.values[0] if outcome is not None and outcome.values else None
        self.on_event(
            PopulationEnded(
                members=(number,),
                completed=states.count(TrialState.COMPLETE),
                pruned=states.count(TrialState.PRUNED),
                failed=states.count(TrialState.FAIL),
                best=value if ended == TrialState.COMPLETE else None,
                seconds=time.perf_counter() - start,
            )
        )
        return None if outcome is None else outcome.failure

    def _outcome(self, number: int) -> _Outcome | None:
        """Call the function; return the end of the trial, None where it is requeued or its claim was lost."""
        study, search = self.history.study, self.study.search
        study.sampler = MiddleSampler() if self._repeated else objective_sampler(search.sampler, search.seed, number)
        study._thread_local.in_optimize_loop = True  # so that the function may call study.stop()
        until = math.inf if search.trial_timeout is None else time.monotonic() + search.trial_timeout
        value: Any = None
        state: TrialState | None = None
        try:
            seed = trial_seed(self.study, number)
            fixed_seed = seed if self._repeated else None
            trial = ObjectiveTrial(study, number, lambda: self._check(number, until), self._refresh, fixed_seed)
            if SEED not in trial.user_attrs:  # enqueued, perhaps by another program
                trial.set_user_attr(SEED, seed)
            value = self.function(trial)
            self._warn_of_unused_values(trial)
        except TrialPruned:
            state = TrialState.PRUNED
        except TrialInterrupted as interrupted:
            if interrupted.reason != "timeout":
                return None
            return _failed(f"took longer than search.trial_timeout ({search.trial_timeout:g} s)")
        except SystemExit as error:
            if self.stop.is_set():
                raise
            return _failed(f"called sys.exit({'' if error.code is None else repr(error.code)})", "sys.exit")
        except Exception as error:  # noqa: BLE001 - any exception of the function fails its trial, and is stored with it
            if self.stop.is_set():  # the stop may be the cause: child processes of the function get the signal, too
                return None
            kind, details = (
                usercode.error_kind(error, self.code.folder),
                usercode.user_traceback(error, self.code.folder),
            )
            return _failed(usercode.one_line_error(error, self.code.folder), kind, details)
        finally:
            if study._stop_flag:
                study._stop_flag = False
                set_state(self.storage, self._study_id, StudyState.STOPPED, "the objective called study.stop()")
        try:
            final_state, values, problem = tell_with_warning(study, trial, value, state, suppress_warning=True)
        except Exception as error:  # noqa: BLE001 - the function may return anything: a text, a tensor of many numbers
            final_state, values, problem = TrialState.FAIL, None, str(error)
        if problem is None:
            return _Outcome(final_state, tuple(values or ()))
        kind_of_problem = None if _is_nan(value) else problem
        reason = f"returned no value: {problem.rstrip('.')}"
        return _Outcome(final_state, (), _Failure(reason, kind_of_problem, retry=False))

    def _end_one(self, number: int, outcome: _Outcome) -> TrialState | None:
        """Store the end of a trial; return its state, None where it was requeued or its claim was lost."""
        failure = outcome.failure
        if failure is None:
            ending = TrialResult(self.trial_id(number), outcome.state, outcome.values)
        else:
            if failure.retry and not self.requeue_failed([number], failure.reason, failure.details):
                return None
            attempts = {ATTEMPTS: self.attempts(number, failure.reason, failure.details)}
            ending = TrialResult(self.trial_id(number), TrialState.FAIL, (), {FAILURE_REASON: failure.reason}, attempts)
            self.on_event(Note(f"{trials_text([number])} failed: {failure.reason}", "warning"))
        return None if self.end([(number, ending)]) else ending.state

    def _warn_of_unused_values(self, trial: ObjectiveTrial) -> None:
        """Warn of values of a point, or enqueued ones, that the function has not suggested: a name may be misspelt."""
        params, search = trial.params, self.study.search
        why = "its point names" if trial.number // search.repeats < len(search.points) else "was enqueued"
        for name in trial._fixed_params.keys() - params.keys():
            text = f"{trials_text([trial.number])}: {self.study.objective} did not suggest {format_key(name)}"
            self.on_event(Note(f"{text}, which {why}{nearest(name, params)}", "warning"))

    def _check(self, number: int, until: float) -> None:
        """Raise TrialInterrupted where the trial has to end."""
        if number not in self._running:
            raise TrialInterrupted("lost")
        if self.stop.is_set():
            raise TrialInterrupted("stop")
        if time.monotonic() > until:
            raise TrialInterrupted("timeout")

    def _refresh(self) -> None:
        """Read the trials of other workers, at most once in POLL_S: the pruner compares with them."""
        if time.monotonic() - self._refreshed >= POLL_S:
            self._sync()
            self._refreshed = time.monotonic()

    def _store_report(self, number: int, step: int, value: float) -> None:
        if number not in self._running or self.report(step, {number: value}):
            raise TrialInterrupted("lost")
        self.on_event(EpochEnded(step, None, 1, value))

    def _store(
        self,
        number: int,
        *,
        params: Mapping[str, tuple[float, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> None:
        if number not in self._running:
            raise TrialInterrupted("lost")
        trial_id = self.trial_id(number)
        if not self.storage.update_trial(trial_id, params=params, user_attrs=user_attrs, system_attrs=system_attrs):
            self._drop_lost_claims({trial_id})
            raise TrialInterrupted("lost")


def _is_nan(returned: Any) -> bool:
    """Whether the returned numbers, of any numeric type, include NaN."""
    try:
        return any([math.isnan(each) for each in (returned if isinstance(returned, Sequence) else [returned])])
    except Exception:  # noqa: BLE001 - not numbers: Optuna's message says so
        return False


def _failed(reason: str, kind: str | None = None, details: str = "") -> _Outcome:
    return _Outcome(TrialState.FAIL, (), _Failure(reason, kind, details))
