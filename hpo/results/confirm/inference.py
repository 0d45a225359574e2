"""Inference from the runs of a confirmation: means with intervals, the winner, and paired differences.

Configurations are ranked by the mean of their runs; the winner is the best of those that the search ranked best. All
are run under the same seeds, networks on the same batches, so their differences are paired. The winner is selected by
the same runs. Therefore intervals are simultaneous (Bonferroni), those of means for the configurations that could have
won, and those of differences for the comparisons with the same configuration; p values are corrected by Holm's method
for the number of these comparisons.

Tuning helped only where the winner is better than the baseline and better than the first trial. The claim needs both,
so its error is at most that of one comparison: an intersection-union test, R. L. Berger, "Multiparameter hypothesis
testing and acceptance sampling", Technometrics 1982. The p values of the two are not corrected for each other.

Where the runs have several splits, a value is the mean of the runs on one split, or on one fold of it. Splits share
training examples, so intervals and tests have the correction of Nadeau and Bengio (`statistics.estimate`) for that part
of the variance which is due to the splits and not to the seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from optuna.distributions import BaseDistribution

from hpo.results.compare.statistics import Estimate, Paired, estimate, holm, paired
from hpo.results.confirm.study import Candidate

Part = tuple[int, ...]
"""The seed of a run on the common split; else the number of its split, with folds also that of the fold."""


@dataclass(frozen=True)
class Runs:
    """The runs of a configuration: the scores by seed, and the number of failed and pruned runs.

    `parts` are the scores by seed on each split and fold: split and fold number -> score. `distributions` are those of
    the parameters that a run has.
    """

    candidate: Candidate
    scores: Mapping[int, float]
    parts: Mapping[int, Mapping[Part, float]]
    failed: int
    distributions: Mapping[str, BaseDistribution]


@dataclass(frozen=True)
class ConfirmedConfiguration(Runs):
    """The runs of a configuration, and their mean."""

    estimate: Estimate

    @property
    def optimism(self) -> float | None:
        """Its score in the search minus its mean under fresh seeds."""
        return None if self.candidate.score is None else self.candidate.score - self.estimate.mean


@dataclass(frozen=True)
class Difference:
    """The winner's scores minus those of another configuration, over the seeds of both; `p` is the corrected one."""

    pairs: Paired
    p: float | None


@dataclass(frozen=True)
class Ranking:
    """Configurations, best mean first, those with a failed run last.

    `gain` is the winner minus the baseline, None where the baseline has no run or is the winner; `first_gain` is the
    same for the first trial, also None where the first trial has the configuration of the baseline. `others` are the
    differences to the other configurations that could have won, by title.
    """

    configurations: tuple[ConfirmedConfiguration, ...]
    winner: ConfirmedConfiguration
    gain: Difference | None
    first_gain: Difference | None
    others: Mapping[str, Difference]


def rank(runs: Sequence[Runs], minimized: bool, overlap: float) -> Ranking | None:
    """Rank configurations by their runs; None where no configuration that could have won has one.

    `minimized`: lower scores are better. `overlap` is that of the splits of the runs (`statistics.estimate`).
    """
    could_win = sum(each.candidate.can_win for each in runs)
    if not could_win:
        return None
    ranked = []
    for each in runs:
        parts = _by_part(each.parts.values())
        mean = estimate(_means(parts), _shared(parts, overlap), could_win)
        ranked.append(ConfirmedConfiguration(**vars(each), estimate=mean))
    ranked.sort(key=lambda each: (each.failed > 0, each.estimate.mean if minimized else -each.estimate.mean))
    winner, *rest = (each for each in ranked if each.candidate.can_win)
    others = _differences([(winner, each) for each in rest], overlap)

    def gain_over(reference: ConfirmedConfiguration | None) -> Difference | None:
        if reference is None or reference is winner:
            return None
        return _differences([(each, reference) for each in (winner, *rest) if each is not reference], overlap)[0]

    first = next((each for each in ranked if each.candidate.first), None)
    baseline = next((each for each in ranked if each.candidate.baseline), None)
    return Ranking(
        tuple(ranked),
        winner,
        gain_over(baseline),
        None if first is baseline else gain_over(first),
        {each.candidate.title: other for each, other in zip(rest, others, strict=True)},
    )


def compare_with(
    runs: Runs, ranking: Ranking, overlap: float
) -> tuple[ConfirmedConfiguration, Difference, Difference | None]:
    """Return the mean of runs that are not of the ranking, and their differences to the winner and to the baseline.

    The difference to the winner is corrected for its selection. The last one is None where the baseline has no run.
    """
    parts = _by_part(runs.parts.values())
    found = ConfirmedConfiguration(**vars(runs), estimate=estimate(_means(parts), _shared(parts, overlap)))
    searched = [each for each in ranking.configurations if each.candidate.can_win]
    over = _differences([(found, each) for each in searched], overlap)[searched.index(ranking.winner)]
    baseline = next((each for each in ranking.configurations if each.candidate.baseline), None)
    return found, over, None if baseline is None else _differences([(found, baseline)], overlap)[0]


Parts = dict[Part, list[float]]
"""Scores, or differences of scores, on each part of the data: one for each run."""


def _by_part(runs: Iterable[Mapping[Part, float]]) -> Parts:
    found: Parts = {}
    for part, value in (item for run in runs for item in run.items()):
        found.setdefault(part, []).append(value)
    return found


def _means(parts: Parts) -> list[float]:
    return [statistics.fmean(values) for values in parts.values()]


def _shared(parts: Parts, overlap: float) -> float:
    """Return the overlap times the share of the variance of the parts' means that is due to the parts.

    The rest is due to the seeds of the runs, which share nothing. Both are known where parts have several runs: the
    variance components of a one-way random model. With one run a part, all of the variance counts as that of the parts.
    """
    several = [values for values in parts.values() if len(values) > 1]
    if not overlap or len(several) < len(parts) or len(parts) < 2:
        return overlap
    of_seeds = statistics.fmean(statistics.variance(values) / len(values) for values in several)
    of_means = statistics.variance(_means(parts))
    return overlap * max(0.0, 1 - of_seeds / of_means) if of_means else overlap


def _differences(
    pairs: Sequence[tuple[ConfirmedConfiguration, ConfirmedConfiguration]], overlap: float
) -> list[Difference]:
    """Return the difference of each pair, first minus second, with p values corrected for the number of pairs."""
    compared = [_paired(*pair, overlap, len(pairs)) for pair in pairs]
    return [Difference(each, p) for each, p in zip(compared, holm([each.p for each in compared]), strict=True)]


def _paired(first: ConfirmedConfiguration, second: ConfirmedConfiguration, overlap: float, intervals: int) -> Paired:
    common = sorted(first.scores.keys() & second.scores.keys())
    if not common:
        nothing = Estimate(first.estimate.mean - second.estimate.mean, 0, None, None)
        return Paired(nothing, None, None, "no seed has a run of each")
    one, other = (_by_part(each.parts[seed] for seed in common) for each in (first, second))
    differences = {part: [a - b for a, b in zip(one[part], other[part], strict=True)] for part in one}
    return paired(_means(one), _means(other), _shared(differences, overlap), intervals)
