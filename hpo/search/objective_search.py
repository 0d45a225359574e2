"""The search of the user's own objective: one trial after the other, each handed to the function until that ends.

A trial ends as Optuna would end it: what the function returns is its value, unless that is no number; `TrialPruned`
prunes it; whatever else it raises, `sys.exit` among it, fails it, and is kept with the trial. Three failures of one
kind in a row end the search.

The function cannot be interrupted from outside. After a stop, when its time is over, or when the trial was given to
another process, its next `report`, `should_prune` or write raises `Leave`, which no `except Exception` catches; a
function that does none of these runs on to its end.
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
from hpo.search.objective_history import ObjectiveHistory
from hpo.search.sampling.samplers import objective_sampler
from hpo.storage import ATTEMPTS, REASON, Ending, Parts, StudyState, set_state
from hpo.studyfile import ObjectiveStudy
from hpo.studyfile.messages import key_shown
from hpo.usercode import Code

Function = Callable[[optuna.Trial], Any]
"""What the user wrote."""


class Leave(BaseException):
    """Takes the user's function out of a trial: why nobody wants to know how it goes on."""

    def __init__(self, why: Literal["stop", "lost", "timeout"]) -> None:
        self.why = why
        super().__init__(why)


class ObjectiveTrial(optuna.Trial):
    """Optuna's trial, as the user's function gets it; `look` raises `Leave`, `learn` asks what others have done."""

    def __init__(self, study: optuna.Study, number: int, look: Callable[[], None], learn: Callable[[], None]) -> None:
        super().__init__(study, number)
        self._look, self._learn = look, learn

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Suggest one of the choices, as Optuna does.

        Raises ValueError for choices that are equal to Optuna and not the same, such as True and 1: it would store one
        for the other.
        """
        for index, choice in enumerate(choices):
            for other in choices[:index]:
                if choice == other and repr(choice) != repr(other):
                    raise ValueError(f"'{name}': choices {other!r} and {choice!r} are stored as one; give one of them")
        return super().suggest_categorical(name, choices)

    def report(self, value: float, step: int) -> None:
        """Report a value at a step, as Optuna does."""
        super().report(value, step)
        self._look()

    def should_prune(self) -> bool:
        """Return whether to give the trial up, as Optuna's pruner says."""
        self._look()
        self._learn()
        return super().should_prune()


@dataclass(frozen=True)
class _Failure:
    """Why a trial failed. `kind` is what failures of one kind share, None where it says nothing of the code.

    `again` says whether another attempt might do better, as `search.retries` allows.
    """

    reason: str
    kind: str | None = None
    details: str = ""
    again: bool = True


@dataclass(frozen=True)
class _Outcome:
    """How a trial ends."""

    state: TrialState
    values: tuple[float, ...] = ()
    failure: _Failure | None = None


@dataclass(kw_only=True)
class ObjectiveSearch(Search):
    """See the module, and `Search`. `code` is what the function is made of."""

    study: ObjectiveStudy
    function: Function
    code: Code
    history: ObjectiveHistory = field(init=False)
    _learnt: float = field(init=False, default=0.0)  # when, by the monotonic clock

    def __post_init__(self) -> None:
        self.history = ObjectiveHistory(self.study, self._read(-1, ()), self._keep, self._report)

    @property
    def _parts(self) -> Parts:
        """All: the function may look at earlier trials."""
        return Parts()

    def _create(self, count: int) -> list[FrozenTrial]:
        """Store a new trial, of which nothing is known yet; again where another process was faster."""
        while count and self._missing > 0 and not self.stop.is_set():
            template = create_trial(state=TrialState.RUNNING)
            created = self.storage.create_trials(self._study_id, [template], self.history.count, self.claim_conditions)
            if created:
                self.history.sync(created)
                return created
            self._catch_up()
        return []

    def _train(self) -> None:
        """Hand the running trials to the function."""
        for number in list(self._running):
            if self.stop.is_set():
                return
            failure = self._train_one(number)
            if self._is_repeated(None if failure is None else failure.kind) and failure is not None:
                if failure.details:
                    self.on_event(Note(failure.details.rstrip(), "warning"))
                often = f"{self.study.objective} failed alike in {RAISES_IN_A_ROW} trials in a row ({failure.reason})"
                raise TrainingError(self.study.name, often, self._has_trials_left)

    def _train_one(self, number: int) -> _Failure | None:
        """Hand a trial to the function, and end it or send it back; return how it failed."""
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
        """Call the function; return how the trial ends, None where it goes back to the queue, or is another's."""
        study, search = self.history.study, self.study.search
        study.sampler = objective_sampler(search.sampler, search.seed, number)
        study._thread_local.in_optimize_loop = True  # so that the function may call study.stop()
        until = math.inf if search.trial_timeout is None else time.monotonic() + search.trial_timeout
        value: Any = None
        state: TrialState | None = None
        try:
            trial = ObjectiveTrial(study, number, lambda: self._look(number, until), self._learn)
            value = self.function(trial)
            self._look_for_what_was_asked(trial)
        except TrialPruned:
            state = TrialState.PRUNED
        except Leave as left:
            if left.why != "timeout":
                return None
            return _failed(f"has taken longer than search.trial_timeout ({search.trial_timeout:g} s)")
        except SystemExit as error:
            if self.stop.is_set():
                raise
            return _failed(f"called sys.exit({'' if error.code is None else repr(error.code)})", "sys.exit")
        except Exception as error:  # noqa: BLE001 - whatever the function raises fails its trial, and is kept with it
            if self.stop.is_set():  # it may be the stop that it has met, as its child processes do
                return None
            kind, details = usercode.kind_of(error, self.code.folder), usercode.shortened(error, self.code.folder)
            return _failed(usercode.in_a_line(error, self.code.folder), kind, details)
        finally:
            if study._stop_flag:
                study._stop_flag = False
                set_state(self.storage, self._study_id, StudyState.STOPPED, "the objective called study.stop()")
        try:
            told, values, problem = tell_with_warning(study, trial, value, state, suppress_warning=True)
        except Exception as error:  # noqa: BLE001 - what is returned may be anything: a text, a tensor of many numbers
            told, values, problem = TrialState.FAIL, None, str(error)
        if problem is None:
            return _Outcome(told, tuple(values or ()))
        same = None if _is_nan(value) else problem
        return _Outcome(told, (), _Failure(f"returned no value: {problem.rstrip('.')}", same, again=False))

    def _end_one(self, number: int, outcome: _Outcome) -> TrialState | None:
        """Store how a trial ended; return its state, None where it is tried again or was given away."""
        failure = outcome.failure
        if failure is None:
            ending = Ending(self.trial_id(number), outcome.state, outcome.values)
        else:
            if failure.again and not self.requeue_failed([number], failure.reason, failure.details):
                return None
            kept = {ATTEMPTS: self.attempts(number, failure.reason, failure.details)}
            ending = Ending(self.trial_id(number), TrialState.FAIL, (), {REASON: failure.reason}, kept)
            self.on_event(Note(f"{trials_text([number])} failed: {failure.reason}", "warning"))
        return None if self.end([(number, ending)]) else ending.state

    def _look_for_what_was_asked(self, trial: ObjectiveTrial) -> None:
        """Say what an enqueued trial was to have and the function has not suggested: it may have been misspelt."""
        params = trial.params
        for name in trial._fixed_params.keys() - params.keys():
            text = f"{trials_text([trial.number])}: {self.study.objective} has not suggested {key_shown(name)}"
            self.on_event(Note(f"{text}, which was asked for{nearest(name, params)}", "warning"))

    def _look(self, number: int, until: float) -> None:
        """Raise Leave where the trial is not to go on."""
        if number not in self._running:
            raise Leave("lost")
        if self.stop.is_set():
            raise Leave("stop")
        if time.monotonic() > until:
            raise Leave("timeout")

    def _learn(self) -> None:
        """Take note of what other processes have done, now and then: the pruner compares with it."""
        if time.monotonic() - self._learnt >= POLL_S:
            self._sync()
            self._learnt = time.monotonic()

    def _report(self, number: int, step: int, value: float) -> None:
        if number not in self._running or self.report(step, {number: value}):
            raise Leave("lost")
        self.on_event(EpochEnded(step, None, 1, value))

    def _keep(
        self,
        number: int,
        *,
        params: Mapping[str, tuple[float, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> None:
        if number not in self._running:
            raise Leave("lost")
        trial_id = self.trial_id(number)
        if not self.storage.keep(trial_id, params=params, user_attrs=user_attrs, system_attrs=system_attrs):
            self._drop_lost_claims({trial_id})
            raise Leave("lost")


def _is_nan(returned: Any) -> bool:
    """Whether numbers were returned, of any type that is one, and one of them is NaN."""
    try:
        return any([math.isnan(each) for each in (returned if isinstance(returned, Sequence) else [returned])])
    except Exception:  # noqa: BLE001 - then it is not numbers, which is said in Optuna's words
        return False


def _failed(reason: str, kind: str | None = None, details: str = "") -> _Outcome:
    return _Outcome(TrialState.FAIL, (), _Failure(reason, kind, details))
