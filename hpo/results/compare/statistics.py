"""Statistics of repeated runs: means with confidence intervals, paired t-tests, corrections for several tests.

Pure functions of numbers. Where the values are too few or not finite, an interval or a test is None, never a number
without meaning. Knows nothing of studies.

Intervals are of 95%. Student, "The probable error of a mean", Biometrika 1908; S. Holm, "A simple sequentially
rejective multiple test procedure", Scandinavian Journal of Statistics 1979; E. B. Wilson, "Probable inference, the law
of succession, and statistical inference", JASA 1927; C. Nadeau and Y. Bengio, "Inference for the generalization error",
Machine Learning 2003.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
BOOTSTRAP_DRAWS = 1000
SIGNIFICANT = 0.05
"""A p value below this is called a difference."""

ROUNDING = 4 * float(np.finfo(np.float64).eps)
"""Relative rounding error of a difference: equal differences may differ by this fraction of the numbers."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval from `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """The mean of `n` values, their standard deviation, and the confidence interval of the mean.

    Deviation and interval are None for a single value, and where a value is not finite.
    """

    mean: float
    n: int
    sd: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Paired:
    """The difference in `n` pairs, the first of each pair minus the second, and its paired t-test.

    `p` is two-sided. Where there is no test, `t` and `p` are None, and `why` is the reason.
    """

    difference: Estimate
    t: float | None
    p: float | None
    why: str = ""

    @property
    def n(self) -> int:
        """The number of pairs."""
        return self.difference.n


def estimate(values: ArrayLike, overlap: float = 0.0, intervals: int = 1) -> Estimate:
    """Return the mean of one or more values, with Student's t interval.

    `intervals` is the number of intervals that are to be true together, with a probability of at least 95%
    (Bonferroni): the interval of a mean that was selected among so many is one of them.

    `overlap` is for values on random splits of the same data: the validation examples by the training examples of a
    split. The splits share most training examples, so their values are not independent; the variance of the mean is
    then sd² (1/n + overlap), Nadeau and Bengio's corrected resampled t-test.
    """
    return _estimate(_as_vector(values), 0.0, overlap, intervals)


def paired(first: ArrayLike, second: ArrayLike, overlap: float = 0.0, intervals: int = 1) -> Paired:
    """Return the mean of `first` minus `second`, element by element, with its test; the rest is as in `estimate`.

    There is no test where all differences are equal: their deviation is zero, and a t-test would call them certain.
    That happens with few runs on few validation examples, where accuracies are coarse.
    """
    a, b = _as_vector(first), _as_vector(second)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} values cannot be paired with {len(b)}")
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        differences = a - b
    difference = _estimate(differences, ROUNDING * float(max(np.abs(a).max(), np.abs(b).max())), overlap, intervals)
    if difference.n < 2:
        return Paired(difference, None, None, "a test needs two pairs")
    if difference.sd is None:
        return Paired(difference, None, None, "a value is not finite")
    if difference.sd == 0:
        same = (
            "there is no difference in any pair" if difference.mean == 0 else "the difference is the same in all pairs"
        )
        return Paired(Estimate(difference.mean, difference.n, 0.0, None), None, None, same)
    from scipy.special import stdtr  # takes a fifth of a second to import

    t = difference.mean / (difference.sd * math.sqrt(1 / difference.n + overlap))
    return Paired(difference, t, float(2 * stdtr(difference.n - 1, -abs(t))))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return the p values corrected for their number by Holm's method, in the given order; None (no test) stays None.

    The probability of any false difference among those below a level is then at most that level.
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
    """Return Wilson's score interval of a proportion, such as an accuracy: `successes` of `n`."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} is not a proportion")
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share = successes / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # exactly 0 and 1 at the ends, in spite of rounding
    return Interval(0.0 if successes == 0 else middle - reach, 1.0 if successes == n else middle + reach)


def bootstrap(statistic: Callable[[NDArray[np.int64]], float], n: int, seed: int = 0) -> Interval | None:
    """Return the percentile interval of a statistic of `n` rows, computed on rows drawn with replacement.

    `statistic` takes the indices of the rows. Draws in which it is undefined, NaN, are left out; None where all are.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    values = np.array([statistic(generator.integers(n, size=n)) for _ in range(BOOTSTRAP_DRAWS)])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))


def _estimate(values: Values, rounding: float, overlap: float, intervals: int) -> Estimate:
    """Return the estimate; values or means that differ from each other or from 0 by up to `rounding` count as equal."""
    n, low, high = len(values), float(values.min()), float(values.max())
    with np.errstate(invalid="ignore", over="ignore"):  # checked below
        mean = float(values.mean())
    if not math.isfinite(mean):
        return Estimate(mean, n, None, None)
    mean = 0.0 if abs(mean) <= rounding else min(max(mean, low), high)  # the mean of equal values is that value
    if n == 1:
        return Estimate(mean, n, None, None)
    with np.errstate(over="ignore"):
        sd = 0.0 if high - low <= rounding else float(values.std(ddof=1, mean=np.array([mean])))
    if not math.isfinite(sd):
        return Estimate(mean, n, None, None)
    from scipy.special import stdtrit  # takes a fifth of a second to import

    reach = float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / 2 / intervals)) * sd * math.sqrt(1 / n + overlap)
    return Estimate(mean, n, sd, Interval(mean - reach, mean + reach))


def _as_vector(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"expected a non-empty one-dimensional array, got shape {array.shape}")
    return array
