"""Optuna's TPE, made to cost little when the history is long.

It proposes what Optuna's own does with the same seed and history. Optuna's sorts all trials and turns their parameters
into numbers anew for every trial it proposes; here that is done once a trial (`Observations`). The estimators are
Optuna's own, and so are the candidates drawn from them; only their densities are computed in a leaner way, which agrees
to rounding: should two candidates be equally good to twelve digits, the other one may be taken.

A part of the space that only some trials have is sampled for itself, from those of the good and of the other trials
that have it, as Optuna's does for groups of parameters. Which trials are good by several objectives, Optuna's own
says. Knows nothing of storages.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import log_ndtr

from hpo.optuna_internals import (
    BatchedCategoricalDistributions,
    MixtureOfProductDistribution,
    default_gamma,
    default_gamma_multiobjective,
    split_trials,
)

Array = np.ndarray[Any, np.dtype[np.float64]]


LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))

MOST_GOOD = 25
"""The most trials that Optuna's TPE counts as good, of one objective."""

Merit = tuple[int, float, float, int]
"""A trial's place among all that have ended, the best first; of equal ones the first by number."""


class Observations:
    """The trials of a study as TPE needs them: each trial's parameters as numbers, and which trials are good.

    Of the study itself nothing but its directions is asked. `before` is how many trials it starts from, which are
    numbered from -before to -1.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], study: Study, before: int = 0) -> None:
        self._space = dict(space)
        self._study = study
        self.several = len(study.directions) > 1
        self._sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
        self._before = before
        self._numbers = np.empty((64, len(space)))  # a row a trial, by number, those before the study's own first
        self._known = np.zeros(
            64, bool
        )  # which have a row: those that run, and those that ended and can be learnt from
        self._best: list[Merit] = []  # of one objective
        self._all: dict[int, FrozenTrial] = {}  # of several: those that have ended
        self._good: tuple[int, list[int]] = (0, [])  # likewise: how many had ended, and which of them were good
        self.ended = 0

    def note(self, trial: FrozenTrial) -> None:
        """Take note of a trial that runs now, or has ended. One that failed is as if it had never been."""
        place = self._before + trial.number
        while place >= len(self._known):
            self._numbers = np.concatenate([self._numbers, np.empty_like(self._numbers)])
            self._known = np.concatenate([self._known, np.zeros_like(self._known)])
        self._known[place] = trial.state != TrialState.FAIL
        if trial.state == TrialState.FAIL:
            return
        self._numbers[place] = [
            each.to_internal_repr(trial.params[name]) if name in trial.params else math.nan
            for name, each in self._space.items()
        ]
        if trial.state != TrialState.RUNNING:
            self.ended += 1
            if self.several:
                self._all[trial.number] = trial
            else:
                bisect.insort(self._best, self._merit(trial))
                del self._best[MOST_GOOD:]

    def forget(self, first: int) -> None:
        """Forget the running trials from this number on."""
        self._known[self._before + first :] = False

    def split(self, names: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Return these parameters of the good trials and of all others that have them, in the order of the trials."""
        good = sorted(self._before + number for number in self._good_ones())
        others = self._known.copy()
        others[good] = False
        return self._columns(good, names), self._columns(others, names)

    def _good_ones(self) -> list[int]:
        """Return the numbers of the good trials."""
        if not self.several:
            return [merit[-1] for merit in self._best[: default_gamma(self.ended)]]
        if self._good[0] != self.ended:  # once for a population
            trials = [self._all[number] for number in sorted(self._all)]
            good, _ = split_trials(self._study, trials, default_gamma_multiobjective(self.ended))
            self._good = self.ended, [trial.number for trial in good]
        return self._good[1]

    def _columns(self, which: list[int] | np.ndarray, names: Collection[str]) -> dict[str, np.ndarray]:
        columns = [column for column, name in enumerate(self._space) if name in names]
        rows = self._numbers[which][:, columns]
        rows = rows[~np.isnan(rows).any(axis=1)]
        return {name: rows[:, column] for column, name in enumerate(name for name in self._space if name in names)}

    def _merit(self, trial: FrozenTrial) -> Merit:
        """Rank as Optuna's TPE does: pruned trials after all others, and of these the ones first that came furthest.

        Trials that exceed a limit come last, those first that exceed it least.
        """
        excess = sum(max(0.0, value) for value in trial.constraints.values())
        if excess > 0:
            return 2, excess, 0.0, trial.number
        if trial.state == TrialState.COMPLETE:
            assert trial.value is not None, "a completed trial has a value"
            return 0, self._sign * trial.value, 0.0, trial.number
        if not trial.intermediate_values:
            return 1, 1.0, 0.0, trial.number
        step, value = max(trial.intermediate_values.items())
        return 1, -step, math.inf if math.isnan(value) else self._sign * value, trial.number


class IncrementalTPESampler(TPESampler):
    """TPE over the whole space at once, with running trials counted as bad ones (constant liar).

    So the members of a population, asked for one after the other, keep off each other. The trial asked for is not to
    be among the observations yet.
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
        """Return the weights of the good trials: of several objectives the old ones count as much as the new."""
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
    # Not `@`: a library that splits so small a product over threads waits for each of them (docs/log.md).
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

    They count from the middle of the range, where squares are small enough to lose nothing.
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
    """Return the log of each kernel's mass within half a step of each value: few values, and few different kernels."""
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
    # On the left of the mean, where the integral from minus infinity is not rounded to 1.
    flipped = low > 0
    left, right = np.where(flipped, -high, low), np.where(flipped, -low, high)
    whole = log_ndtr(right)
    result: Array = whole + np.log1p(-np.exp(log_ndtr(left) - whole))
    return result
