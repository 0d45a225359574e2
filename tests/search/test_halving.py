"""Successive halving as pure functions: rungs, promotions, and trials that cannot be promoted any more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.search.sampling.halving import Halving, sorted_by_rank

HALVING = Halving(first=3, factor=3, random=0.0, seed=0)
ONE_LOSS = st.dictionaries(st.integers(0, 500), st.floats(-1, 1).map(lambda loss: (loss,)), max_size=60)
DRAWS = st.builds(Halving, st.integers(1, 5), st.integers(2, 5), st.floats(0, 0.5), st.integers(0, 99))


@pytest.mark.parametrize(
    ("epochs", "rungs"), [(1, []), (3, []), (4, [3]), (9, [3]), (10, [3, 9]), (50, [3, 9, 27]), (81, [3, 9, 27])]
)
def test_rungs_lie_below_the_last_epoch(epochs: int, rungs: list[int]) -> None:
    assert HALVING.rungs(epochs) == rungs
    stops = [0, *rungs, epochs]
    for epoch in range(epochs):
        assert HALVING.next_stop(epoch, epochs) == min(stop for stop in stops if stop > epoch)


def test_a_third_is_promoted_rounded_up_once_the_rung_is_final() -> None:
    losses = {number: (float(-number),) for number in range(10)}
    assert HALVING.promoted(3, losses, final=False) == [9, 8, 7]
    assert HALVING.promoted(3, losses, final=True) == [9, 8, 7, 6]
    two = {4: (0.5,), 7: (0.25,)}
    assert HALVING.promoted(3, two, final=False) == []
    assert HALVING.promoted(3, two, final=True) == [7]
    assert HALVING.promoted(3, {}, final=True) == []


def test_several_losses_are_ranked_by_non_domination() -> None:
    losses = {0: (1.0, 1.0), 1: (0.0, 2.0), 2: (2.0, 2.0), 3: (0.5, 0.5), 4: (3.0, 3.0)}
    assert sorted_by_rank(losses) == [1, 3, 0, 2, 4]  # 1 and 3 are not dominated; 3 dominates 0, and so on


@given(DRAWS, ONE_LOSS, st.booleans())
def test_no_trial_is_promoted_twice_or_both_promoted_and_hopeless(
    halving: Halving, losses: dict[int, tuple[float]], final: bool
) -> None:
    promoted = halving.promoted(3, losses, final)
    assert len(set(promoted)) == len(promoted)
    assert not set(promoted) & halving.hopeless(3, losses, len(losses))
    if losses and final:
        assert sorted_by_rank(losses)[0] in promoted


@given(DRAWS, ONE_LOSS, ONE_LOSS)
def test_a_hopeless_trial_stays_so_whatever_the_others_reach(
    halving: Halving, losses: dict[int, tuple[float]], more: dict[int, tuple[float]]
) -> None:
    everything = more | losses
    hopeless = halving.hopeless(3, losses, expected=len(everything))
    assert not hopeless & set(halving.promoted(3, everything, final=True))


def test_the_share_of_random_promotions() -> None:
    halving = Halving(first=3, factor=3, random=0.1, seed=1)
    losses = {number: (float(number),) for number in range(30_000)}
    promoted = halving.promoted(3, losses, final=True)
    drawn = sum(number >= 9_000 for number in promoted)
    # 10,000 are promoted, 1,000 of them drawn: a binomial with standard deviation 31, so 5 of them are 155.
    assert abs(drawn - 1_000) < 155
    assert promoted[:9_000] == list(range(9_000))
