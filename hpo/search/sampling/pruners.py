"""Incremental pruners: Optuna's median and hyperband, made fast for long histories.

They decide the same as Optuna's. Optuna's pruners read all trials for every member and epoch; these read each trial
once. Each instance serves one study with one objective value.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.sampling.halving import Halving
from hpo.studyfile import Study


def halving_of(study: Study) -> Halving | None:
    """Return the settings of successive halving, where it is the study's pruner. No rung lies inside the warm-up."""
    search = study.search
    if search.pruner != "halving":
        return None
    warmup = max(map(float, study.possible_values(("optimizer", "warmup")).values()))
    first = max(search.rung, math.ceil(warmup) + 1 if warmup else 0)
    return Halving(first, search.factor, search.random_share, search.seed)


class IncrementalMedianPruner(MedianPruner):
    """Prune a member whose best value so far is worse than the median of completed trials at its epoch."""

    def __init__(self) -> None:
        super().__init__()
        self._completed = 0
        self._reached: defaultdict[int, list[float]] = defaultdict(list)  # epoch -> values of completed trials
        self._medians: dict[int, float] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that has ended."""
        if trial.state == TrialState.COMPLETE:
            self._completed += 1
            self._medians.clear()
            for epoch, value in trial.intermediate_values.items():
                self._reached[epoch].append(value)

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Return whether to prune the trial, as Optuna's median pruner does."""
        epoch = trial.last_step
        if epoch is None or self._completed < max(1, self._n_startup_trials) or not self._reached[epoch]:
            return False
        if epoch not in self._medians:
            self._medians[epoch] = float(np.nanpercentile(self._reached[epoch], 50))
        sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
        values = [sign * value for value in trial.intermediate_values.values() if not math.isnan(value)]
        return not values or min(values) > sign * self._medians[epoch]


class IncrementalHyperbandPruner(HyperbandPruner):
    """Hyperband that remembers which bracket each trial is in."""

    def __init__(self, max_resource: int) -> None:
        super().__init__(min_resource=1, max_resource=max_resource, reduction_factor=3)
        self._brackets: dict[int, int] = {}

    def _get_bracket_id(self, study: optuna.Study, trial: FrozenTrial) -> int:
        if not self._pruners:
            return super()._get_bracket_id(study, trial)
        bracket = self._brackets.get(trial.number)
        if bracket is None:
            bracket = self._brackets[trial.number] = super()._get_bracket_id(study, trial)
        return bracket
