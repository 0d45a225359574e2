"""Inference from the runs of a confirmation: selection among equal configurations, and runs on several splits."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hpo.results.compare.statistics import SIGNIFICANT
from hpo.results.confirm.inference import Ranking, Runs, rank
from hpo.results.confirm.study import Candidate

TOP, STUDIES = 5, 400


def ranking(scores: NDArray[np.float64], splits: int, overlap: float) -> Ranking:
    """Rank TOP configurations and a baseline by their runs, [TOP + 1, runs]; run r is on split r % splits."""
    found = []
    for number, row in enumerate(scores.tolist()):
        searched = number < TOP
        score = 1.0 if searched else None
        candidate = Candidate(f"Best-{number + 1}", {}, number if searched else None, score, not searched)
        parts = {run: {(run if splits == 1 else run % splits,): value} for run, value in enumerate(row)}
        found.append(Runs(candidate, dict(enumerate(row)), parts, 0, {}))
    ranked = rank(found, False, overlap)
    assert ranked is not None
    return ranked


@pytest.mark.parametrize("splits", [1, 5])
def test_equal_configurations_have_no_gain_and_the_winners_interval_contains_the_truth(splits: int) -> None:
    """Bounds for 400 studies: 5% and 93% and three standard errors, 3 sqrt(0.05 0.95 / 400) = 0.033."""
    random, helped, covered = np.random.default_rng(0), 0, 0
    for _ in range(STUDIES):
        of_split = np.repeat(random.normal(size=splits), 10 // splits).reshape(splits, -1).T.ravel() * (splits > 1)
        found = ranking(of_split + random.normal(size=(TOP + 1, 10)), splits, 0.0)
        assert found.gain is not None
        interval, p = found.winner.estimate.interval, found.gain.p
        assert interval is not None
        helped += p is not None and p < SIGNIFICANT and found.gain.pairs.difference.mean > 0
        covered += interval.low <= 0 <= interval.high
    assert helped / STUDIES <= 0.05 + 0.033
    assert covered / STUDIES >= 0.93 - 0.033


def test_a_gain_of_three_standard_deviations_is_found() -> None:
    scores = np.random.default_rng(0).normal(size=(TOP + 1, 10))
    scores[1] += 3
    found = ranking(scores, 1, 0.0)
    assert found.winner.candidate.label == "Best-2"
    assert found.gain is not None
    assert found.gain.p is not None
    assert found.gain.p < SIGNIFICANT


def test_only_the_variance_of_the_splits_is_corrected_for_their_overlap() -> None:
    random = np.random.default_rng(1)
    seeds_only, both = random.normal(size=(TOP + 1, 10)), random.normal(size=(TOP + 1, 10))
    both += 100 * np.tile(random.normal(size=5), 2)
    widths = {}
    for name, scores in (("seeds", seeds_only), ("both", both)):
        for overlap in (0.0, 0.25):
            interval = ranking(scores, 5, overlap).configurations[-1].estimate.interval
            assert interval is not None
            widths[name, overlap] = interval.high - interval.low
    assert widths["both", 0.25] / widths["both", 0.0] == pytest.approx(np.sqrt(1 + 5 * 0.25), rel=1e-3)
    assert widths["seeds", 0.25] / widths["seeds", 0.0] < np.sqrt(1 + 5 * 0.25)
