"""The densities of TPE's Parzen estimators, at all candidates and for all kernels at once.

They are those of Optuna's estimators, to rounding; the arithmetic is leaner: no temporary is larger than candidates
times kernels, and normal integrals come from SciPy. Knows nothing of trials.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from optuna.samplers._tpe.probability_distributions import (
    _BatchedCategoricalDistributions,
    _MixtureOfProductDistribution,
)
from scipy.special import log_ndtr

Array = np.ndarray[Any, np.dtype[np.float64]]

LOG_SQRT_2PI = 0.5 * float(np.log(2 * np.pi))


def log_density(mixture: _MixtureOfProductDistribution, candidates: Array) -> Array:
    """Return the logarithm of a mixture's density at each candidate: [candidates, parameters] -> [candidates]."""
    # A normal kernel's log density is a polynomial of the value: all of them together are one matrix product.
    powers = [np.ones(len(candidates))]
    factors = [np.log(mixture.weights)]
    for column, kernels in enumerate(mixture.distributions):
        if not isinstance(kernels, _BatchedCategoricalDistributions) and kernels.step == 0:
            values = np.log(candidates[:, column]) if kernels.is_log else candidates[:, column]
            constant, linear, square, values = _polynomial(kernels, values)
            factors[0] = factors[0] + constant
            factors += [linear, square]
            powers += [values, values**2]
    # Not `@`: a library that splits so small a product over threads waits for each of them (docs/log.md).
    total: Array = np.einsum("pc,pk->ck", np.stack(powers), np.stack(factors))
    for column, kernels in enumerate(mixture.distributions):
        if isinstance(kernels, _BatchedCategoricalDistributions):
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
