"""The in-memory Optuna study of an objective study; the running trial's writes are stored at once.

Samplers, pruners, checks and attributes are Optuna's own. Parameters, reports and attributes of the running trial are
written to the storage under the trial's claim; a sampler's own attributes stay in memory. Trials of other workers come
in by `sync`; until then they count as running.
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

from hpo.search.sampling.in_memory_study import STUDY, InMemoryStudy
from hpo.search.sampling.pruners import HYPERBAND_RUNG
from hpo.search.sampling.samplers import objective_pruner
from hpo.search.study_records import directions
from hpo.storage.pareto import trials_since_best
from hpo.studyfile import ObjectiveStudy

SAMPLER_ATTRIBUTES = ("tpe:", "gp:", "cma:", "sepcma:", "cmawm:", "x_for_tell")
"""Prefixes of the samplers' own attributes, which are not stored: that of CMA-ES is a pickle."""


class Store(Protocol):
    """Writes to the running trial in the storage; raises where its claim was lost."""

    def __call__(
        self,
        number: int,
        *,
        params: Mapping[str, tuple[float, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Write these to the trial of that number."""


class _StoredStudy(InMemoryStudy):
    """An in-memory study whose changes are stored, too: a change that the storage refuses is not made."""

    def __init__(self, store: Store, report: Callable[[int, int, float], None]) -> None:
        super().__init__()
        self._store, self._report = store, report

    def put(self, trial: FrozenTrial) -> None:
        """Put in a trial; later trials must have the same distributions for its parameters, as in Optuna."""
        super().put(trial)
        self._studies[STUDY].param_distribution.update(trial.distributions)

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best of all trials, those of other workers included."""
        return BaseStorage.get_best_trial(self, study_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Set a parameter."""
        super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
        self._store(trial_id, params={param_name: (param_value_internal, distribution)})

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Set the value reported at a step."""
        super().set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._report(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a copy of a user attribute: the function may change its list later."""
        super().set_trial_user_attr(trial_id, key, copy.deepcopy(value))
        self._store(trial_id, user_attrs={key: value})

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Set a system attribute, such as an artifact's name or a rung of the pruner."""
        super().set_trial_system_attr(trial_id, key, value)
        if not key.startswith(SAMPLER_ATTRIBUTES):
            self._store(trial_id, system_attrs={key: value})


class ObjectiveHistory:
    """All trials of a study by number, a `hpo.search.loop.TrialHistory`. `study` is the Optuna study."""

    def __init__(
        self,
        study: ObjectiveStudy,
        trials: Iterable[FrozenTrial],
        store: Store,
        report: Callable[[int, int, float], None],
    ) -> None:
        self._in_memory = _StoredStudy(store, report)
        self.study = optuna.create_study(
            study_name=study.name,
            directions=directions(study),
            storage=self._in_memory,
            pruner=objective_pruner(study.search.pruner),
        )
        self._ids: dict[int, int] = {}  # of the unfinished
        self.last = -1
        self.sync(trials)

    @property
    def count(self) -> int:
        """The number of trials."""
        return self._in_memory.count

    @property
    def unfinished(self) -> set[int]:
        """The storage ids of the trials that have not ended."""
        return set(self._ids.values())

    @property
    def trials_since_best(self) -> int:
        """See `hpo.storage.pareto.trials_since_best`."""
        return trials_since_best(self.study.get_trials(deepcopy=False), self.study.directions)

    def sync(self, trials: Iterable[FrozenTrial]) -> None:
        """Add stored trials: new ones, and known ones that other workers have ended."""
        for trial in sorted(trials, key=lambda each: each.number):
            self.last = max(self.last, trial._trial_id)
            if trial.state.is_finished():
                self._ids.pop(trial.number, None)
                self._in_memory.put(copy.copy(trial))
            else:
                self._ids[trial.number] = trial._trial_id
                self._begin(trial)
        self.study._thread_local.cached_all_trials = None  # Optuna would reuse its cached trials

    def restart(self, trials: Iterable[FrozenTrial]) -> None:
        """Reset trials that are trained again from the start, with the same parameters."""
        for trial in trials:
            self._begin(trial)

    def _begin(self, trial: FrozenTrial) -> None:
        """Put in a running or waiting trial as running, without its earlier reports."""
        running = copy.copy(trial)
        running.state = TrialState.RUNNING
        running.datetime_start = trial.datetime_start or datetime.datetime.now()
        running.values, running.intermediate_values = None, {}
        running.params, running.distributions = dict(trial.params), dict(trial.distributions)
        running.user_attrs = dict(trial.user_attrs)
        running.system_attrs = {k: v for k, v in trial.system_attrs.items() if not k.startswith(HYPERBAND_RUNG)}
        self._in_memory.put(running)

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """Do nothing: the trial has reported its value itself."""

    def tell(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """Set the final state and values of a trial."""
        self._ids.pop(number, None)
        if not self._in_memory.get_trial(number).state.is_finished():
            self._in_memory.set_trial_state_values(number, state, values or None)
