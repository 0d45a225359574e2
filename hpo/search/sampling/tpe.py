"""Incremental TPE (Bergstra et al. 2011): Optuna's, made fast for long histories.

It proposes the same as Optuna's sampler with the same seed and history. Optuna's sorts all trials and converts their
parameters to numbers for every proposal; here that is done once a trial (`Observations`). Estimators and candidates are
Optuna's own; only the densities are computed faster, for all candidates and kernels at once, and agree to rounding:
where two candidates are equally good to twelve digits, the other one may be taken.

Conditional parameters are sampled as a group of their own, from the good and the other trials that have them, as in
Optuna. With several objective values, Optuna's own function decides which trials are good.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import (
    BatchedCategoricalDistributions,
    MixtureOfProductDistribution,
    default_gamma,
    default_gamma_multiobjective,
    split_trials,
)
from hpo.search.sampling.halving import sorted_by_rank
from hpo.storage.pareto import Losses

Array = np.ndarray[Any, np.dtype[np.float64]]


LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))

Merit = tuple[int, float, float, int]
"""The sort key of trials that have ended or were frozen: the best first, equal ones by number."""


class Observations:
    """The trials of a study as TPE needs them: parameters as numbers, and which trials are good.

    Only the directions of the study are read. `before` is the number of trials of `search.start_from`, which are
    numbered from -before to -1.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], study: Study, before: int = 0) -> None:
        self._space = dict(space)
        self._study = study
        self.several = len(study.directions) > 1
        self._sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
        self._before = before
        self._numbers = np.empty((64, len(space)))  # one row a trial, by number; those of search.start_from first
        self._known = np.zeros(64, bool)  # which rows are used: running trials, and ended ones that did not fail
        self._merits: dict[int, Merit] = {}  # of ended and frozen trials, by number
        self._best_first: list[Merit] = []  # sorted
        self._reached: dict[int, Losses] = {}  # by trials that were frozen, at their last step
        self._completed: dict[int, FrozenTrial] = {}  # with several objective values
        self._good: list[int] | None = None  # likewise: the good trials, where they are known

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial that runs now or has ended; a failed trial is ignored."""
        place = self._before + trial.number
        while place >= len(self._known):
            self._numbers = np.concatenate([self._numbers, np.empty_like(self._numbers)])
            self._known = np.concatenate([self._known, np.zeros_like(self._known)])
        self._known[place] = trial.state != TrialState.FAIL
        if trial.state == TrialState.FAIL:
            self._unrank(trial.number)
            return
        self._numbers[place] = [
            each.to_internal_repr(trial.params[name]) if name in trial.params else math.nan
            for name, each in self._space.items()
        ]
        if trial.state == TrialState.RUNNING or (trial.state == TrialState.PRUNED and trial.number in self._reached):
            return
        if self.several and trial.state == TrialState.COMPLETE:
            self._completed[trial.number] = trial
        self._rank(trial.number, self._merit(trial))

    def freeze(self, number: int, step: int, reached: Losses) -> None:
        """Add what a running trial has reached at a step: it counts like a trial that was pruned there."""
        self._reached[number] = reached
        self._rank(number, (1, -step, 0.0 if self.several else reached[0], number))

    @property
    def ended(self) -> int:
        """The number of trials that have ended or reached a step where they were frozen."""
        return len(self._merits)

    def _rank(self, number: int, merit: Merit) -> None:
        self._unrank(number)
        self._merits[number] = merit
        bisect.insort(self._best_first, merit)
        self._good = None

    def _unrank(self, number: int) -> None:
        if (merit := self._merits.pop(number, None)) is not None:
            del self._best_first[bisect.bisect_left(self._best_first, merit)]
            self._completed.pop(number, None)
            self._good = None

    def forget(self, first: int) -> None:
        """Remove the running trials from this number on."""
        self._known[self._before + first :] = False

    def split(self, names: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return these parameters of the good trials, and of all others, in the order of the trials."""
        good = sorted(self._before + number for number in self._good_ones())
        others = self._known.copy()
        others[good] = False
        return self._columns(good, names), self._columns(others, names)

    def _good_ones(self) -> list[int]:
        """Return the numbers of the good trials."""
        if not self.several:
            return [merit[-1] for merit in self._best_first[: default_gamma(self.ended)]]
        if self._good is None:  # once for a population
            self._good = self._good_of_several(default_gamma_multiobjective(self.ended))
        return self._good

    def _good_of_several(self, count: int) -> list[int]:
        """Return the good trials of several objective values: completed ones first, then those with more steps.

        Optuna splits the completed ones. It cannot compare pruned trials by several values: they are ranked by
        non-domination here.
        """
        feasible = [self._completed[number] for number in sorted(self._completed) if self._merits[number][0] == 0]
        good = [trial.number for trial in split_trials(self._study, feasible, count)[0]]
        if len(good) < count:
            others = [merit for merit in self._best_first if merit[0] > 0]
            for _, equal in itertools.groupby(others, key=lambda merit: merit[:2]):
                numbers = [number for *_, number in equal]
                reached = {number: self._reached[number] for number in numbers if number in self._reached}
                good += sorted_by_rank(reached) + [number for number in numbers if number not in reached]
        return good[:count]

    def _columns(self, which: list[int] | np.ndarray, names: Collection[str]) -> dict[str, np.ndarray]:
        columns = [column for column, name in enumerate(self._space) if name in names]
        rows = self._numbers[which][:, columns]
        rows = rows[~np.isnan(rows).any(axis=1)]
        return {name: rows[:, column] for column, name in enumerate(name for name in self._space if name in names)}

    def _merit(self, trial: FrozenTrial) -> Merit:
        """Return the sort key of Optuna's TPE: pruned trials after completed ones, those with more steps first.

        Trials that violate a constraint come last, those with the smallest violation first.
        """
        excess = sum(max(0.0, value) for value in trial.constraints.values())
        if excess > 0:
            return 2, excess, 0.0, trial.number
        if trial.state == TrialState.COMPLETE:
            assert trial.values is not None, "a completed trial has a value"
            return 0, 0.0 if self.several else self._sign * trial.values[0], 0.0, trial.number
        if not trial.intermediate_values:
            return 1, 1.0, 0.0, trial.number
        step, value = max(trial.intermediate_values.items())
        return 1, -step, math.inf if math.isnan(value) else self._sign * value, trial.number


class IncrementalTPESampler(TPESampler):
    """Multivariate TPE with running trials counted as bad ones (constant liar).

    Members of a population, sampled one after the other, thus get different parameters. The trial to sample must not be
    among the observations yet.
    """

    def __init__(self, seed: int, observations: Observations) -> None:
        super().__init__(seed=seed, multivariate=True, constant_liar=True)
        self._observations = observations

    def _sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space or self._observations.ended < self._n_startup_trials:
            return {}
        return self._sample(study, trial, search_space)

    def _sample(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        good, others = self._observations.split(search_space)
        below, above = (
            self._parzen_estimator_cls(each, search_space, self._parzen_estimator_parameters, weights)
            for each, weights in ((good, self._weights(good)), (others, None))
        )
        candidates = below.sample(self._rng.rng, self._n_ei_candidates)
        points = below._transform(candidates)
        gain = log_density(below._mixture_distribution, points) - log_density(above._mixture_distribution, points)
        best = self._compare(candidates, gain)
        return {name: distribution.to_external_repr(best[name]) for name, distribution in search_space.items()}

    def _weights(self, good: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Return the weights of the good trials; with several objective values all have the same weight."""
        return np.ones(len(next(iter(good.values())))) if self._observations.several else None


def log_density(mixture: MixtureOfProductDistribution, candidates: Array) -> Array:
    """Return the logarithm of a mixture's density at each candidate: [candidates, parameters] -> [candidates]."""
    # A normal kernel's log density is a polynomial of the value: all of them together are one matrix product.
    powers = [np.ones(len(candidates))]
    factors = [np.log(mixture.weights)]
    for column, kernels in enumerate(mixture.distributions):
        if not isinstance(kernels, BatchedCategoricalDistributions) and kernels.step == 0:
            values = np.log(candidates[:, column]) if kernels.is_log else candidates[:, column]
            constant, linear, square, values = _polynomial(kernels, values)
            factors[0] = factors[0] + constant
            factors += [linear, square]
            powers += [values, values**2]
    # Not `@`: a BLAS that splits so small a product over threads waits for each of them (docs/log.md).
    total: Array = np.einsum("pc,pk->ck", np.stack(powers), np.stack(factors))
    for column, kernels in enumerate(mixture.distributions):
        if isinstance(kernels, BatchedCategoricalDistributions):
            total += np.log(kernels.weights).T[candidates[:, column].astype(np.int64)]
        elif kernels.step != 0:
            total += _discrete(kernels, candidates[:, column])
    highest = total.max(axis=1)
    total -= highest[:, np.newaxis]
    np.exp(total, out=total)
    result: Array = np.log(total.sum(axis=1)) + highest
    return result


def _polynomial(kernels: Any, values: Array) -> tuple[Array, Array, Array, Array]:
    """Return the factors of 1, v and v**2 in each kernel's log density, cut off at the range's ends, and the values v.

    Values are relative to the middle of the range, where squares are small enough to lose no precision.
    """
    middle = (kernels.adapted_low + kernels.adapted_high) / 2
    mu, precision = kernels.mu - middle, kernels.sigma**-2.0
    constant = -0.5 * mu**2 * precision - np.log(kernels.sigma) - LOG_SQRT_2PI
    return (
        constant - _log_mass_inside(kernels, kernels.mu, kernels.sigma),
        mu * precision,
        -0.5 * precision,
        values - middle,
    )


def _discrete(kernels: Any, values: Array) -> Array:
    """Return the log of each kernel's mass within half a step of each value, computed once for equal ones."""
    each, of_value = np.unique(values, return_inverse=True)
    pairs, of_kernel = np.unique(kernels.mu + 1j * kernels.sigma, return_inverse=True)
    mu, sigma = pairs.real, pairs.imag
    ends = each[:, np.newaxis] - kernels.step / 2, each[:, np.newaxis] + kernels.step / 2
    left, right = (np.log(end) for end in ends) if kernels.is_log else ends
    masses = _log_mass((left - mu) / sigma, (right - mu) / sigma) - _log_mass_inside(kernels, mu, sigma)
    found: Array = masses[np.ix_(of_value, of_kernel)]
    return found


def _log_mass_inside(kernels: Any, mu: Array, sigma: Array) -> Array:
    return _log_mass((kernels.adapted_low - mu) / sigma, (kernels.adapted_high - mu) / sigma)


def _log_mass(low: Array, high: Array) -> Array:
    """Return the log of the standard normal distribution's mass between `low` and `high`."""
    # Left of the mean, where the integral from minus infinity is not rounded to 1.
    flipped = low > 0
    left, right = np.where(flipped, -high, low), np.where(flipped, -low, high)
    whole = _log_mass_below(right)
    result: Array = whole + np.log1p(-np.exp(_log_mass_below(left) - whole))
    return result


def _log_mass_below(values: Array) -> Array:
    # torch has been imported, and scipy's function takes a fifth of a second to import.
    found: Array = torch.special.log_ndtr(torch.from_numpy(values)).numpy()
    return found
