"""Inference from the runs of a confirmation: selection among equal configurations, and runs on several splits.

benchmarks/confirmation.py does the same with real scores and more studies.
"""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hpo.results.compare.statistics import SIGNIFICANT
from hpo.results.confirm.inference import Ranking, Runs, rank
from hpo.results.confirm.study import BASELINE, FIRST, Candidate

TOP, STUDIES = 5, 400


def ranking(scores: NDArray[np.float64], splits: int, overlap: float) -> Ranking:
    """Rank TOP configurations, a baseline and a first trial by runs [TOP + 2, runs]; run r has split r % splits."""
    found = []
    labels = [*(f"Best-{number + 1}" for number in range(TOP)), BASELINE, FIRST]
    for label, row in zip(labels, scores.tolist(), strict=True):
        candidate = Candidate(label, {}, None, 1.0, label == BASELINE, label == FIRST)
        parts = {run: {(run if splits == 1 else run % splits,): value} for run, value in enumerate(row)}
        found.append(Runs(candidate, dict(enumerate(row)), parts, 0, {}))
    ranked = rank(found, False, overlap)
    assert ranked is not None
    return ranked


def helped(found: Ranking) -> bool:
    """Whether the winner is better than the baseline and than the first trial, the rule of `gain_line`."""
    gains = [gain for gain in (found.gain, found.first_gain) if gain is not None]
    return all(each.p is not None and each.p < SIGNIFICANT and each.pairs.difference.mean > 0 for each in gains)


@pytest.mark.parametrize("splits", [1, 5])
@pytest.mark.parametrize("worse_baseline", [0.0, 3.0])
def test_a_gain_is_rarely_found_where_the_first_trial_is_as_good_as_any(splits: int, worse_baseline: float) -> None:
    """Bounds for 400 studies: 5% and 93% and three standard errors, 3 sqrt(0.05 0.95 / 400) = 0.033."""
    random, gains, covered = np.random.default_rng(0), 0, 0
    for _ in range(STUDIES):
        of_split = np.repeat(random.normal(size=splits), 10 // splits).reshape(splits, -1).T.ravel() * (splits > 1)
        scores = of_split + random.normal(size=(TOP + 2, 10))
        scores[TOP] -= worse_baseline
        found = ranking(scores, splits, 0.0)
        gains += helped(found)
        interval = found.winner.estimate.interval
        assert interval is not None
        covered += interval.low <= 0 <= interval.high
    assert gains / STUDIES <= 0.05 + 0.033
    assert covered / STUDIES >= 0.93 - 0.033


def test_a_gain_of_three_standard_deviations_over_both_is_found() -> None:
    scores = np.random.default_rng(0).normal(size=(TOP + 2, 10))
    scores[1] += 3
    found = ranking(scores, 1, 0.0)
    assert found.winner.candidate.label == "Best-2"
    assert found.first_gain is not None
    assert helped(found)
    scores[-1] += 3  # the first trial is as good
    assert not helped(ranking(scores, 1, 0.0))


def test_only_the_variance_of_the_splits_is_corrected_for_their_overlap() -> None:
    random = np.random.default_rng(1)
    seeds_only, both = random.normal(size=(TOP + 2, 10)), random.normal(size=(TOP + 2, 10))
    both += 100 * np.tile(random.normal(size=5), 2)
    widths = {}
    for name, scores in (("seeds", seeds_only), ("both", both)):
        for overlap in (0.0, 0.25):
            interval = ranking(scores, 5, overlap).configurations[-1].estimate.interval
            assert interval is not None
            widths[name, overlap] = interval.high - interval.low
    assert widths["both", 0.25] / widths["both", 0.0] == pytest.approx(np.sqrt(1 + 5 * 0.25), rel=1e-3)
    assert widths["seeds", 0.25] / widths["seeds", 0.0] < np.sqrt(1 + 5 * 0.25)
