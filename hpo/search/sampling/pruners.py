"""Incremental pruners: Optuna's median and hyperband, made fast for long histories.

They decide the same as Optuna's. Optuna's pruners read all trials for every member and epoch; these read each trial
once. Each instance serves one study with one objective value.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.search.sampling.halving import Halving
from hpo.studyfile import Study


@dataclass(frozen=True)
class PrunerChoice:
    """The pruner of a study, and the reason where `pruner = "auto"` chose it."""

    name: str
    why: str = ""


def choose_pruner(study: Study, stored: str | None = None) -> PrunerChoice:
    """Return the study's pruner; "auto" is the `stored` choice, where the study has one, else that of its file."""
    if study.search.pruner != "auto":
        return PrunerChoice(study.search.pruner)
    return _choice(study) if stored is None else PrunerChoice(stored, "chosen when the study began")


def halving_lines(study: Study, pruner: str) -> list[str]:
    """Return a line where halving has no rung, and one where too few trials complete to reach `search.patience`."""
    if pruner != "halving":
        return []
    search, halving, epochs = study.search, halving_of(study), max_epochs(study)
    if not halving.rungs(epochs):
        lower = "search.rung" if halving.first == search.rung else "optimizer.warmup or optimizer.pct_start"
        return [
            f"halving prunes no trial: its first rung, epoch {halving.first}, is not before the last epoch, {epochs}; "
            f"raise training.epochs, or lower {lower}"
        ]
    if search.patience is None:
        return []
    count = halving.expected_completions(-(-search.trials // search.repeats), epochs) * search.repeats
    if count > search.patience:
        return []
    return [
        f"search.patience = {search.patience} counts completed trials, and with halving about {count} of "
        f"{search.trials} complete: it will not end the study"
    ]


def _choice(study: Study) -> PrunerChoice:
    """Return what "auto" stands for: successive halving where it pays, else no pruner."""
    search = study.search
    least = min(map(int, study.possible_values(("training", "epochs")).values()))
    first, planned = halving_of(study).first, search.trials // search.repeats
    if len(search.metrics) > 1:
        return PrunerChoice("none", "several metrics")
    if search.sampler == "grid":
        return PrunerChoice("none", "grid compares all combinations")
    if search.sampler not in LEARNS_FROM_PRUNED:
        return PrunerChoice("none", f"{search.sampler} learns from completed trials only")
    if search.repeats > 1 or len(search.points) >= planned:
        return PrunerChoice("none", "the trials repeat or compare given configurations")
    if least < EPOCHS_PER_FIRST_RUNG * first or planned < MIN_TRIALS:
        limits = f"halving pays from {EPOCHS_PER_FIRST_RUNG * first} epochs and {MIN_TRIALS} trials"
        return PrunerChoice("none", f"{planned} trials of {least} epochs; {limits}")
    return PrunerChoice("halving", f"{planned} trials of {least} epochs")


def max_epochs(study: Study) -> int:
    """Return the largest number of epochs of a trial."""
    return max(map(int, study.possible_values(("training", "epochs")).values()))


def halving_of(study: Study) -> Halving:
    """Return the settings of successive halving. No rung lies inside the warm-up, nor inside the rise of `onecycle`."""
    search = study.search
    # A key that no schedule of the study uses has no value.
    rise = max(study.possible_values(("optimizer", "pct_start")).values(), default=0) * max_epochs(study)
    warmup = max([rise, *study.possible_values(("optimizer", "warmup")).values()])
    first = max(search.rung, math.ceil(warmup) + 1 if warmup else 0)
    return Halving(first, search.factor, search.random_share, search.seed)


LEARNS_FROM_PRUNED = ("random", "tpe", "qmc")
"""Samplers that lose nothing where most trials are pruned: they learn from pruned trials, or do not learn."""

EPOCHS_PER_FIRST_RUNG, MIN_TRIALS = 4, 32
"""Successive halving pays from so many times the epochs of the first rung, and from so many configurations
(docs/explanation/benchmarks.md)."""


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


HYPERBAND_RUNG = "completed_rung_"
"""Prefix of the attributes with the values that a trial reached at hyperband's rungs."""


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
