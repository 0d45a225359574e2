"""What runs that differ only by their seed say: means with intervals, paired differences, corrections for many tests.

Pure functions of numbers. They promise that where too few values, or values that say nothing, leave an interval or a
test without meaning, there is None in its place and never a number that looks like one. They know nothing of studies.

Intervals are of 95%. Student, "The probable error of a mean", Biometrika 1908; S. Holm, "A simple sequentially
rejective multiple test procedure", Scandinavian Journal of Statistics 1979; E. B. Wilson, "Probable inference, the law
of succession, and statistical inference", JASA 1927.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, stdtr, stdtrit  # scipy.stats would take a second to import

CONFIDENCE = 0.95
SIGNIFICANT = 0.05
"""A p value below it is called a difference."""

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Differences that are equal on paper differ by up to so much of the numbers that they are differences of."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` values, their standard deviation, and the interval that holds the true mean.

    A single value has neither deviation nor interval; nor have values of which one is not finite.
    """

    mean: float
    n: int
    sd: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Paired:
    """What `n` pairs say of the difference, the first of a pair minus the second, by the paired t-test.

    `p` is two-sided. Where there is no test, `t` and `p` are None, and `why` says in words why.
    """

    difference: Estimate
    t: float | None
    p: float | None
    why: str = ""

    @property
    def n(self) -> int:
        """How many pairs there are."""
        return self.difference.n


def estimate(values: ArrayLike) -> Estimate:
    """Return the mean of one value or more, with Student's t interval."""
    return _estimate(_finite_or_not(values), rounding=0.0)


def paired(first: ArrayLike, second: ArrayLike) -> Paired:
    """Return how much larger the values of `first` are than those of `second` with the same index.

    Differences that are all the same leave no test: they give no measure of chance, and a t-test would call any number
    of them certain. That happens with few runs on few validation images, where accuracies are coarse.
    """
    a, b = _finite_or_not(first), _finite_or_not(second)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    with np.errstate(invalid="ignore"):  # two infinities have no difference
        differences = a - b
    difference = _estimate(differences, ROUNDING * float(max(np.abs(a).max(), np.abs(b).max())))
    if difference.n < 2:
        return Paired(difference, None, None, "a single pair leaves nothing to judge chance by")
    if difference.sd is None:
        return Paired(difference, None, None, "a value is not finite")
    if difference.sd == 0:
        same = (
            "there is no difference in any pair" if difference.mean == 0 else "the difference is the same in all pairs"
        )
        return Paired(Estimate(difference.mean, difference.n, 0.0, None), None, None, same)
    t = difference.mean / (difference.sd / math.sqrt(difference.n))
    return Paired(difference, t, float(2 * stdtr(difference.n - 1, -abs(t))))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p values corrected for their number, by Holm's method, in the order given.

    Calling those below a level a difference then errs anywhere with at most that probability. A None is no test, and
    stays None.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    if not all(0 <= p <= 1 for p, _ in known):
        raise ValueError(f"not p values: {p_values}")
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected


def wilson(successes: int, n: int) -> Interval:
    """Return Wilson's score interval of the probability behind `successes` out of `n`, such as an accuracy."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a share")
    z = float(ndtri((1 + CONFIDENCE) / 2))
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Exactly 0 and 1 at the ends, where rounding would leave a little beyond.
    return Interval(0.0 if successes == 0 else middle - reach, 1.0 if successes == n else middle + reach)


def _estimate(values: Values, rounding: float) -> Estimate:
    """Values, or means, that differ from each other or from 0 by no more than `rounding` are taken for the same."""
    n, low, high = len(values), float(values.min()), float(values.max())
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is seen below
        mean = float(values.mean())
    if not math.isfinite(mean):
        return Estimate(mean, n, None, None)
    mean = 0.0 if abs(mean) <= rounding else min(max(mean, low), high)  # a mean of equal values is that value
    if n == 1:
        return Estimate(mean, n, None, None)
    with np.errstate(over="ignore"):
        sd = 0.0 if high - low <= rounding else float(values.std(ddof=1, mean=np.array([mean])))
    if not math.isfinite(sd):
        return Estimate(mean, n, None, None)
    reach = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(n)
    return Estimate(mean, n, sd, Interval(mean - reach, mean + reach))


def _finite_or_not(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"one value or more in a row are needed, not {array.shape}")
    return array
