"""Create the sampler and the pruner that a study file names.

A sampler is created for every trial with a seed of its own: a trial's parameters depend on the study's seed, the
trial's number and the history, but not on how many trials the same process has sampled before.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.points import check_points
from hpo.search.sampling.pruners import IncrementalHyperbandPruner, IncrementalMedianPruner, max_epochs
from hpo.search.sampling.tpe import IncrementalTPESampler, Observations
from hpo.search.space import check_space, groups, middle
from hpo.studyfile import Study
from hpo.studyfile.messages import dotted_key
from hpo.training.global_locks import WARNINGS_LOCK
from hpo.training.seeds import derive_seed

GENERATION = "NSGAIISampler:generation"
"""The attribute with a trial's generation in NSGA-II."""

PRECISION = ("training", "precision")

DO_NOT_LEARN = ("random", "qmc", "grid")
"""Samplers whose values do not depend on the results of trials."""

MIN_SOURCE_TRIALS = 10
"""Completed trials from which CMA-ES starts where they were good, and not in the middle of the space."""


def check_search(study: Study) -> None:
    """Raise StudyFileError for a search that its sampler, its pruner or Optuna cannot run."""
    check_space(study)
    check_points(study)
    precisions = study.possible_values(PRECISION)
    for place, precision in precisions.items():
        if precision == "auto" and len(set(precisions.values())) > 1:
            only = "is chosen once for all trials, so it cannot be one of several choices; use float32 or bfloat16"
            raise study.error(dotted_key(place), f"{only} (got 'auto')")
    if len(study.search.metrics) > 1:
        _check_several(study)
    # Without searched parameters, as in an export, there is nothing to sample.
    if study.search.sampler == "cmaes" and study.parameters and len(joint_space("cmaes", groups(study, {})[0])) < 2:
        needs = "cmaes needs at least two searched numbers that every trial has; use tpe, gp or random"
        raise study.error("search.sampler", needs)


def _check_several(study: Study) -> None:
    search = study.search
    if search.pruner in ("median", "hyperband"):
        one = "median and hyperband compare trials by one metric; use halving or none, or a single metric"
        raise study.error("search.pruner", one)
    if search.sampler == "cmaes":
        raise study.error("search.sampler", "cmaes supports one metric only; use tpe, nsga2, gp, qmc, random or grid")


def make_sampler(
    name: str,
    seed: int,
    study_seed: int,
    joint: dict[str, BaseDistribution],
    earlier: Sequence[FrozenTrial],
    observations: Observations,
) -> BaseSampler:
    """Return the sampler for one trial, which samples the parameters of `joint` together.

    `earlier` are the trials before this launch, `observations` all trials so far, as TPE needs them. Grid has no
    sampler: the space is enumerated.
    """
    match name:
        case "tpe":
            return IncrementalTPESampler(seed, observations)
        case "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed)
        case "cmaes":
            # Its state is a pickle, which is not stored: after a restart CMA-ES starts from the trials instead.
            complete = [_part(trial, joint) for trial in earlier if trial.state == TrialState.COMPLETE]
            with _without_experimental_warning():
                return CmaEsSampler(
                    seed=seed,
                    warn_independent_sampling=False,
                    source_trials=complete if len(complete) >= MIN_SOURCE_TRIALS else None,
                )
        case "qmc":
            with _without_experimental_warning():
                # One sequence for the whole study: its seed is the study's.
                return QMCSampler(
                    seed=derive_seed("sequence", study_seed) % 2**32,
                    scramble=True,
                    independent_sampler=RandomSampler(seed=seed),
                    warn_independent_sampling=False,
                    warn_asynchronous_seeding=False,
                )
        case _:
            return RandomSampler(seed=seed)


@contextmanager
def _without_experimental_warning() -> Iterator[None]:
    """Create an experimental class of Optuna without its warning."""
    with WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class _NumberedQMCSampler(QMCSampler):
    """QMC that takes the point of the sequence with the trial's number, so that no two workers take the same one.

    While no trial has ended and the space is unknown, parameters are sampled at random with the trial's seed.
    """

    def __init__(self, study_seed: int, number: int, seed: int) -> None:
        super().__init__(
            independent_sampler=RandomSampler(seed=seed),
            seed=derive_seed("sequence", study_seed) % 2**32,
            scramble=True,
            warn_independent_sampling=False,
            warn_asynchronous_seeding=False,
        )
        self._number = number

    def _find_sample_id(self, study: optuna.Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._number


class MiddleSampler(BaseSampler):
    """Sampler of trials that are fixed: a parameter that their point does not name has the middle of its range."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return no parameters: each is suggested alone."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return no values."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the middle of the distribution."""
        return middle(param_distribution)


def objective_sampler(name: str, study_seed: int, number: int) -> BaseSampler:
    """Return the sampler for a trial of an objective study, whose search space is known only while it runs."""
    seed = derive_seed("sampler", study_seed, number, 0) % 2**32
    match name:
        case "tpe":
            return TPESampler(seed=seed)
        case "gp":
            return GPSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return NSGAIISampler(seed=seed)
        case "cmaes":
            return CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "qmc":
            with _without_experimental_warning():
                return _NumberedQMCSampler(study_seed, number, seed)
        case _:
            return RandomSampler(seed=seed)


def objective_pruner(name: str) -> BasePruner:
    """Return the pruner of an objective study; hyperband takes the number of steps from the first trials."""
    match name:
        case "median":
            return MedianPruner()
        case "hyperband":
            return HyperbandPruner()
        case _:
            return NopPruner()


def joint_space(name: str, space: dict[str, BaseDistribution]) -> dict[str, BaseDistribution]:
    """Return the parameters that a sampler samples together; it samples the others one by one."""
    return {
        parameter: distribution
        for parameter, distribution in space.items()
        if not (distribution.single() or (name == "cmaes" and isinstance(distribution, CategoricalDistribution)))
    }


def _part(trial: FrozenTrial, space: dict[str, BaseDistribution]) -> FrozenTrial:
    """Return a complete trial with these parameters only, as CMA-ES needs them to start from it."""
    return create_trial(
        value=trial.value, params={name: trial.params[name] for name in space}, distributions=dict(space)
    )


def make_pruner(study: Study) -> BasePruner:
    """Return the study's pruner."""
    match study.search.pruner:
        case "median":
            return IncrementalMedianPruner()
        case "hyperband":
            return IncrementalHyperbandPruner(max_epochs(study))
        case _:
            return NopPruner()
