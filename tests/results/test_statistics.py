"""Means, intervals and tests over seeds: against scipy, against brute force, and where there is nothing to say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hpo.results.compare.statistics import Estimate, Interval, estimate, holm, paired, wilson

NUMBERS = st.floats(-1e6, 1e6, allow_subnormal=False)
P_VALUES = st.lists(st.floats(0, 1), max_size=8)


def measured(low: int, high: int) -> st.SearchStrategy[list[float]]:
    """Values as measurements are: apart by far more than floating point's grain."""
    return st.lists(st.integers(-(10**6), 10**6).map(lambda value: value / 1000), min_size=low, max_size=high)


@given(measured(2, 30))
def test_an_estimate_is_that_of_scipy(values: list[float]) -> None:
    assume(len(set(values)) > 1)
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    expected = scipy.stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_an_estimate_by_hand() -> None:
    # sd 1, so the interval reaches t(2; 0.975) / sqrt(3) = 4.302653 / 1.732051 to either side
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n, found.sd) == (2.0, 3, 1.0)
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)


@given(NUMBERS)
def test_a_single_value_has_no_deviation_and_no_interval(value: float) -> None:
    assert estimate([value]) == Estimate(value, 1, None, None)


@given(NUMBERS, st.integers(2, 20))
def test_equal_values_are_their_own_mean_exactly(value: float, n: int) -> None:
    assert estimate([value] * n) == Estimate(value, n, 0.0, Interval(value, value))


@pytest.mark.parametrize("values", [[math.nan, 1.0], [math.inf, 1.0], [math.inf, -math.inf], [1e308, 1e308]])
def test_what_is_not_finite_has_no_interval(values: list[float]) -> None:
    found = estimate(values)
    assert (found.n, found.sd, found.interval) == (len(values), None, None)
    assert not math.isfinite(found.mean)


def test_the_interval_holds_the_true_mean_in_95_of_100_samples() -> None:
    samples = np.random.default_rng(0).normal(3.0, 2.0, (4000, 5))
    intervals = [estimate(sample).interval for sample in samples]
    held = sum(interval is not None and interval.low <= 3.0 <= interval.high for interval in intervals)
    assert held / 4000 == pytest.approx(0.95, abs=0.015)


@given(st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 10**4)), min_size=2, max_size=30))
def test_a_paired_test_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    assume(len({a - b for a, b in pairs}) > 1)
    first, second = np.array(pairs, dtype=float).T / 1000
    found, expected = paired(first, second), scipy.stats.ttest_rel(first, second)
    assert found.t == pytest.approx(expected.statistic, rel=1e-6, abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    interval, reference = found.difference.interval, expected.confidence_interval(0.95)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((reference.low, reference.high), rel=1e-6, abs=1e-9)
    assert found.n == len(pairs)
    assert not found.why


@given(measured(2, 10), st.integers(-1000, 1000))
def test_differences_that_are_all_the_same_are_not_tested(values: list[float], tenths: int) -> None:
    # 0.1 + 0.2 - 0.2 is not 0.1: equal on paper is what counts, and rounding is no measure of chance
    found = paired(np.array(values) + tenths / 10, values)
    assert (found.t, found.p, found.difference.sd, found.difference.interval) == (None, None, 0.0, None)
    assert found.difference.mean == pytest.approx(tenths / 10, abs=1e-9)
    assert (found.difference.mean == 0) == (tenths == 0)
    assert found.why == ("the difference is the same in all pairs" if tenths else "there is no difference in any pair")


def test_one_pair_is_not_tested() -> None:
    found = paired([0.9], [0.8])
    assert found.difference == Estimate(pytest.approx(0.1), 1, None, None)
    assert (found.t, found.p) == (None, None)
    assert "two pairs" in found.why


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pair_that_is_not_finite_is_not_tested(value: float) -> None:
    found = paired([value, 1.0, 2.0], [value, 0.5, 0.25])
    assert (found.difference.interval, found.t, found.p, found.why) == (None, None, None, "a value is not finite")


def test_pairs_need_two_of_each() -> None:
    with pytest.raises(ValueError, match="2 values cannot be paired with 3"):
        paired([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_an_estimate_needs_values_in_a_row(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected a non-empty one-dimensional array"):
        estimate(values)


def test_holm_by_hand() -> None:
    # in ascending order 0.01 x 4, 0.02 x 3, 0.03 x 2, 0.5 x 1, none below the one before it
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@given(P_VALUES)
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.2):
        left = sorted(range(len(p_values)), key=lambda index: p_values[index])
        rejected = set()
        # as Holm writes it: the smallest against level / m, the next against level / (m - 1), until one is not
        while left and p_values[left[0]] * len(left) < level:
            rejected.add(left.pop(0))
        assert {index for index, p in enumerate(corrected) if p is not None and p < level} == rejected


@given(P_VALUES, st.data())
def test_holm_leaves_what_was_not_tested_out_of_the_count(p_values: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(p_values)))
    corrected = holm([*p_values[:place], None, *p_values[place:]])
    assert corrected.pop(place) is None
    assert corrected == holm(p_values)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_takes_p_values_only(p: float) -> None:
    with pytest.raises(ValueError, match="not p values"):
        holm([p])


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(counts: tuple[int, int]) -> None:
    successes, n = counts
    found = wilson(successes, n)
    reference = scipy.stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert 0 <= found.low <= successes / n <= found.high <= 1


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_takes_shares_only(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="is not a proportion"):
        wilson(successes, n)


def test_values_may_come_as_arrays() -> None:
    values: NDArray[np.float32] = np.array([1, 2, 3], dtype=np.float32)
    assert estimate(values) == estimate([1.0, 2.0, 3.0])
