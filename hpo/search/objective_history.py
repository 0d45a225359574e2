"""The study as the user's own objective sees it: Optuna's study in memory, whose trial in hand is kept in the storage.

The objective is given a trial of this study, and everything about that is Optuna's own: its samplers and pruners, its
checks, its attributes. What the trial is given to keep (parameters, reports, attributes) goes to the storage at once,
by the trial's claim; what a sampler notes for itself stays here. Trials are known as the storage has them, and what
other processes do comes in by `sync`; until then a trial of theirs is a running one.

Knows nothing of the objective.
"""

from __future__ import annotations

import copy
import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hpo.search.sampling.in_memory_study import STUDY, Mirror
from hpo.search.sampling.sampler_history import RUNG
from hpo.search.sampling.samplers import objective_pruner
from hpo.storage.pareto import directions, since_best
from hpo.studyfile import ObjectiveStudy

SAMPLERS_OWN = ("tpe:", "gp:", "cma:", "sepcma:", "cmawm:", "x_for_tell")
"""How attributes begin that samplers keep for themselves: that of CMA-ES is a pickle, which stays in this process."""


class Keep(Protocol):
    """Keeps something of the trial in hand; raises where another process has that trial by now."""

    def __call__(
        self,
        number: int,
        *,
        params: Mapping[str, tuple[float, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep these with the trial of that number."""


class _Kept(Mirror):
    """The mirror whose trials' changes are kept, too: whatever the storage refuses is not changed here either."""

    def __init__(self, keep: Keep, report: Callable[[int, int, float], None]) -> None:
        super().__init__()
        self._keep, self._report = keep, report

    def put(self, trial: FrozenTrial) -> None:
        """Put in a trial, and hold later ones to the kind of parameters that it has, as Optuna does."""
        super().put(trial)
        self._studies[STUDY].param_distribution.update(trial.distributions)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best of the trials, those of other processes among them."""
        return BaseStorage.get_best_trial(self, study_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._keep(trial_id, params={param_name: (param_value_internal, distribution)})

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set what was reported at a step."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._report(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a user attribute, as it is now: the function may go on with its list."""
        super().set_trial_user_attr(trial_id, key, copy.deepcopy(value))
        self._keep(trial_id, user_attrs={key: value})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute, such as the name of an artifact, or what the pruner knows of the trial."""
        super().set_trial_system_attr(trial_id, key, value)
        if not key.startswith(SAMPLERS_OWN):
            self._keep(trial_id, system_attrs={key: value})


class ObjectiveHistory:
    """All trials of a study, by number; see `hpo.search.loop.Known`. `study` is what Optuna works on."""

    def __init__(
        self,
        study: ObjectiveStudy,
        trials: Iterable[FrozenTrial],
        keep: Keep,
        report: Callable[[int, int, float], None],
    ) -> None:
        self._mirror = _Kept(keep, report)
        self.study = optuna.create_study(
            study_name=study.name,
            directions=directions(study),
            storage=self._mirror,
            pruner=objective_pruner(study.search.pruner),
        )
        self._ids: dict[int, int] = {}  # of the unfinished
        self.last = -1
        self.sync(trials)

    @property
    def count(self) -> int:
        """How many trials the study has."""
        return self._mirror.count

    @property
    def unfinished(self) -> set[int]:
        """The storage's ids of the trials that have not ended."""
        return set(self._ids.values())

    @property
    def since_best(self) -> int:
        """See `hpo.storage.pareto.since_best`."""
        return since_best(self.study.get_trials(deepcopy=False), self.study.directions)

    def sync(self, trials: Iterable[FrozenTrial]) -> None:
        """Take over stored trials: new ones, and known ones that have ended elsewhere."""
        for trial in sorted(trials, key=lambda each: each.number):
            self.last = max(self.last, trial._trial_id)
            if trial.state.is_finished():
                self._ids.pop(trial.number, None)
                self._mirror.put(copy.copy(trial))
            else:
                self._ids[trial.number] = trial._trial_id
                self._begin(trial)
        self.study._thread_local.cached_all_trials = None  # Optuna reads the trials once a trial, unless it is told

    def restart(self, trials: Iterable[FrozenTrial]) -> None:
        """Take note that trials are trained from their beginning, with the parameters that they had."""
        for trial in trials:
            self._begin(trial)

    def _begin(self, trial: FrozenTrial) -> None:
        """Put in a trial as one that runs, also one that waits; what was reported of it before does not count."""
        running = copy.copy(trial)
        running.state = TrialState.RUNNING
        running.datetime_start = trial.datetime_start or datetime.datetime.now()
        running.values, running.intermediate_values = None, {}
        running.params, running.distributions = dict(trial.params), dict(trial.distributions)
        running.user_attrs = dict(trial.user_attrs)
        running.system_attrs = {k: v for k, v in trial.system_attrs.items() if not k.startswith(RUNG)}
        self._mirror.put(running)

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """The trial itself has noted it."""

    def tell(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """Take note of how a trial ended, with which values."""
        self._ids.pop(number, None)
        if not self._mirror.get_trial(number).state.is_finished():
            self._mirror.set_trial_state_values(number, state, values or None)
