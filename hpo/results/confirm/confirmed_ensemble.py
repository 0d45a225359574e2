"""The confirmation of an ensemble: its runs, their mean, and its differences to the winner and the baseline.

The ensemble is no configuration of the search, so it is never the winner. Its mean is that of one set of members, so
its interval needs no correction; its difference to the winner has that for the selection of the winner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpo.results.compare.statistics import SIGNIFICANT
from hpo.results.confirm.inference import ConfirmedConfiguration, Difference, Ranking, Runs, compare_with
from hpo.results.confirm.study import Candidate
from hpo.results.ensemble.record import Ensemble, ensemble_from_json

ENSEMBLE_RUNS = "hpo:ensemble_runs"
"""The attribute of a confirming study with the ensemble that was confirmed with it, and its runs."""


@dataclass(frozen=True)
class ConfirmedEnsemble:
    """A confirmed ensemble; `gain` is the ensemble minus the baseline, None where the baseline has no run."""

    ensemble: Ensemble
    runs: ConfirmedConfiguration
    over_winner: Difference
    gain: Difference | None


def confirmed_ensemble(
    user_attrs: Mapping[str, Any], original: str, ranking: Ranking, overlap: float, has_splits: bool
) -> ConfirmedEnsemble | None:
    """Return the ensemble in the user attributes of a confirming study; None where it has no score there."""
    record = user_attrs.get(ENSEMBLE_RUNS)
    if record is None:
        return None
    found = ensemble_from_json(original, record["ensemble"])
    scored = [each for each in record["runs"] if each["score"] is not None]
    if not scored:
        return None
    runs = Runs(
        candidate=Candidate("ensemble", {}, None, found.score, False),
        scores={each["seed"]: each["score"] for each in scored},
        parts={each["seed"]: {(each["split" if has_splits else "seed"],): each["score"]} for each in scored},
        failed=len(record["runs"]) - len(scored),
        distributions={},
    )
    return ConfirmedEnsemble(found, *compare_with(runs, ranking, overlap))


def ensemble_tree(found: ConfirmedEnsemble) -> dict[str, Any]:
    """Return the numbers of a confirmed ensemble."""
    estimate, over, gain = found.runs.estimate, found.over_winner, found.gain
    return {
        **found.ensemble.to_json(),
        "scores": {str(seed): score for seed, score in sorted(found.runs.scores.items())},
        "failed": found.runs.failed,
        "mean": estimate.mean,
        "sd": estimate.sd,
        "interval": None if estimate.interval is None else [estimate.interval.low, estimate.interval.high],
        "optimism": found.runs.optimism,
        "over_winner": over.pairs.difference.mean,
        "over_winner_p": over.p,
        "gain": None if gain is None else gain.pairs.difference.mean,
        "gain_p": None if gain is None else gain.p,
    }


def ensemble_conclusions(found: ConfirmedEnsemble, winner: str, minimized: bool) -> list[str]:
    """Return sentences that compare the ensemble with the winner, with the baseline, and with its score when selected.

    `winner` is the title of the winner.
    """
    lines = [f"the ensemble {_verdict(found.over_winner, minimized)} {winner}: {_numbers(found.over_winner)}"]
    if found.gain is not None:
        lines.append(f"the ensemble {_verdict(found.gain, minimized)} the baseline: {_numbers(found.gain)}")
    score, mean = found.ensemble.score, found.runs.estimate.mean
    optimistic = score < mean if minimized else score > mean
    word = "was optimistic" if optimistic else "was not optimistic"
    return [*lines, f"the ensemble's score when it was selected, {score:.4f}, {word}: its mean here is {mean:.4f}"]


def _verdict(difference: Difference, minimized: bool) -> str:
    if difference.p is None or difference.p >= SIGNIFICANT:
        return "cannot be told apart from"
    mean = difference.pairs.difference.mean
    return "is better than" if (mean < 0 if minimized else mean > 0) else "is worse than"


def _numbers(difference: Difference) -> str:
    """Return `+0.0021 (95% interval +0.0003 to +0.0039; p = 0.03)`."""
    found = difference.pairs.difference
    between = found.interval
    details = [] if between is None else [f"95% interval {between.low:+.4f} to {between.high:+.4f}"]
    details += [] if difference.p is None else [f"p = {difference.p:.2g}"]
    details += [difference.pairs.why] if difference.pairs.why else []
    return f"{found.mean:+.4f} ({'; '.join(details)})"
