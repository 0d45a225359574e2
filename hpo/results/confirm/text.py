"""Text and JSON of a confirmation: a table of the configurations with conclusions, and all numbers.

The conclusions are: whether tuning helped, whether the search's best score was optimistic, and which configurations
cannot be told apart.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from hpo.results.compare.statistics import SIGNIFICANT, Interval
from hpo.results.confirm.confirmed_ensemble import ConfirmedEnsemble, ensemble_conclusions, ensemble_tree
from hpo.results.confirm.gain import gain_lines, is_better
from hpo.results.confirm.inference import ConfirmedConfiguration
from hpo.results.confirm.result import Confirmation
from hpo.results.confirm.study import BASELINE, FIRST, Candidate
from hpo.results.output import Result
from hpo.results.ranking import metric_label, params_line
from hpo.studyfile import Study
from hpo.text import columns, join_and

CONFIRMATION_HEADING = ("", "{metric}", "sd", "95% interval", "in the search", "failed", "configuration")
CORRECTED = "paired tests, Holm's correction"
RESAMPLED = "corrected resampled t-tests, Holm's correction"


class ConfirmationResult(Result[Confirmation]):
    """A confirmation as a table with sentences, and as JSON."""

    def tree(self) -> dict[str, Any]:
        """Return the numbers of every configuration, best first, and those of the winner once no run is left."""
        found = self.found
        return {
            "study": found.original,
            "metric": found.study.search.first_metric,
            "left": found.left,
            "seeds": found.seeds,
            "splits": found.splits,
            "splits_why": found.splits_why or None,
            "trivial": None if found.trivial is None else found.trivial.value,
            "winner": winner_tree(found) if found.left == 0 else None,
            "configurations": [_configuration(each) for each in found.ranked],
            "ensemble": None if found.ensemble is None else ensemble_tree(found.ensemble),
        }

    def lines(self) -> list[str]:
        """Return the table of the configurations, best first, and the conclusions once no run is left."""
        found, trials = self.found, self.found.study.search.trials
        metric = metric_label(found.study.search.first_metric)
        rows = [[cell.format(metric=metric) for cell in CONFIRMATION_HEADING], *confirmation_rows(found)]
        so_far = f", so far ({found.left} of {trials} runs are left)" if found.left else ", best first"
        head = f"{found.original}: mean {metric} over {runs_text(found)}{so_far}"
        return [head, *columns(rows).splitlines(), *([] if found.left else conclusions(found))]


def runs_text(found: Confirmation) -> str:
    """Return `10 fresh seeds on 5 fresh splits (only 287 validation examples)`."""
    has_folds = isinstance(found.study, Study) and found.study.data.folds is not None
    own = f"the {'folds' if has_folds else 'split'} of the search"
    splits = own if found.splits is None else f"{found.splits} fresh splits"
    return f"{found.seeds} fresh seeds" + (f" on {splits} ({found.splits_why})" if found.splits_why else "")


def confirmation_rows(found: Confirmation) -> list[tuple[str, ...]]:
    """Return the cells of each configuration and of the ensemble, best first."""
    every, ensemble = list(found.ranked), found.ensemble
    if ensemble is not None:
        worse = [each for each in every if each.failed or found.is_better(ensemble.runs, each)]
        every.insert(len(every) - len(worse), ensemble.runs)
    return [_row(each) if ensemble is None or each is not ensemble.runs else _ensemble_row(ensemble) for each in every]


def conclusions(found: Confirmation) -> list[str]:
    """Return sentences: whether tuning helped, whether the search was optimistic, which configurations are alike.

    And whether the winner is better than the trivial baseline.
    """
    lines = [*gain_lines(found), _optimism_line(found)]
    if found.ignores_seeds:
        runs = f"all {found.seeds} runs of each configuration gave the same value"
        return [f"{runs}: the function does not use trial.user_attrs['seed']", *lines, *_missing_lines(found)]
    label, tests = found.winner.candidate.title, CORRECTED if found.splits is None else RESAMPLED
    alike = [other for other, each in found.others.items() if each.p is None or each.p >= SIGNIFICANT]
    behind = [other for other, each in found.others.items() if other not in alike and not is_better(found, each)]
    if alike:
        lines.append(f"{label} cannot be told apart from {join_and(alike)} ({tests})")
    if behind:
        lines.append(
            f"{label} ranks before {join_and(behind)}, better on the common seeds but with failed runs ({tests})"
        )
    if found.others and not alike and not behind:
        lines.append(f"{label} is better than every other of the best configurations ({tests})")
    if found.ensemble is not None:
        lines += ensemble_conclusions(found.ensemble, label, found.study.search.minimized)
    return [*lines, *_trivial_lines(found), *_missing_lines(found)]


def _trivial_lines(found: Confirmation) -> list[str]:
    """Return a sentence that compares the winner's mean with the trivial baseline."""
    if found.trivial is None:
        return []
    verb = "is" if found.trivial.is_worse_than(found.winner.estimate.mean) else "is not"
    return [f"{found.winner.candidate.title} {verb} better than the trivial baseline: {found.trivial.text}"]


def _missing_lines(found: Confirmation) -> list[str]:
    """Return sentences about configurations and runs without a score."""
    lines = []
    stated = ("Best-1",) if found.winner.candidate.first else ("Best-1", BASELINE)  # in another sentence
    if failed := [each.title for each in found.lost if each.label not in stated]:
        lines.append(f"every run of {join_and(failed)} failed")
    if found.foreign:
        runs = "run of another program was" if found.foreign == 1 else "runs of other programs were"
        lines.append(f"{found.foreign} {runs} left out: no seed")
    return lines


def winner_tree(found: Confirmation) -> dict[str, Any]:
    """Return the numbers of the winner."""
    winner, gain = found.winner, found.gain
    seeds, split_seeds = sorted(winner.scores), found.split_seeds(winner)
    return {
        "study": found.study.name,
        "label": winner.candidate.label,
        "seeds": seeds,
        "scores": [winner.scores[seed] for seed in seeds],
        **({"split_seeds": [split_seeds[seed] for seed in seeds]} if split_seeds else {}),
        "failed": winner.failed,
        "mean": winner.estimate.mean,
        "sd": winner.estimate.sd,
        "interval": _pair(winner.estimate.interval),
        "optimism": winner.optimism,
        "gain": None if gain is None else gain.pairs.difference.mean,
        "gain_interval": None if gain is None else _pair(gain.pairs.difference.interval),
        "gain_p": None if gain is None else gain.p,
        "baseline": None if found.baseline is None else found.baseline.candidate.params,
        **_first_tree(found),
        "conclusions": conclusions(found),
    }


def _first_tree(found: Confirmation) -> dict[str, Any]:
    """Return the parameters of the first trial and the gain over it; nothing for a confirmation without a first trial.

    Where the first trial is the baseline, the gain over it is that over the baseline.
    """
    if found.first is None:
        return {}
    gain = found.gain if found.first is found.baseline else found.first_gain
    return {
        "first": found.first.candidate.params,
        "first_gain": None if gain is None else gain.pairs.difference.mean,
        "first_gain_interval": None if gain is None else _pair(gain.pairs.difference.interval),
        "first_gain_p": None if gain is None else gain.p,
    }


def _configuration(each: ConfirmedConfiguration) -> dict[str, Any]:
    return {
        **asdict(each.candidate),
        "scores": {str(seed): score for seed, score in sorted(each.scores.items())},
        "failed": each.failed,
        "mean": each.estimate.mean,
        "sd": each.estimate.sd,
        "interval": _pair(each.estimate.interval),
        "optimism": each.optimism,
    }


def _row(each: ConfirmedConfiguration) -> tuple[str, ...]:
    mean, candidate = each.estimate, each.candidate
    known = {name: value for name, value in candidate.params.items() if name in each.distributions}
    return (
        _row_title(candidate),
        f"{mean.mean:.4f}",
        "-" if mean.sd is None else f"{mean.sd:.4f}",
        "-" if mean.interval is None else f"{mean.interval.low:.4f} to {mean.interval.high:.4f}",
        "-" if candidate.score is None else f"{candidate.score:.4f}",
        str(each.failed) if each.failed else "-",
        params_line(known, each.distributions),
    )


def _row_title(candidate: Candidate) -> str:
    """Return `Best-3 (trial 0), first trial`, or `baseline`."""
    also = [("baseline", candidate.baseline and candidate.can_win), ("first trial", candidate.first)]
    return ", ".join([candidate.title, *(name for name, is_it in also if is_it and candidate.label != FIRST)])


def _ensemble_row(found: ConfirmedEnsemble) -> tuple[str, ...]:
    return (*_row(found.runs)[:-1], found.ensemble.title.removeprefix("ensemble of "))


def _optimism_line(found: Confirmation) -> str:
    """Compare the search's best score with the mean of its configuration."""
    for each in found.ranked:
        score, mean = each.candidate.score, each.estimate.mean
        if each.candidate.label == "Best-1" and score is not None:
            better = score < mean if found.study.search.minimized else score > mean
            word = "was optimistic" if better else "was not optimistic"
            return f"the search's best score, {score:.4f}, {word}: its mean under fresh seeds is {mean:.4f}"
    return "every run of the search's best configuration failed"


def winner_line(found: Confirmation) -> str:
    """Return `Best-2 (trial 0): mean val acc 0.9701 (95% interval 0.9672 to 0.9731) over 10 fresh seeds`."""
    winner, metric = found.winner, metric_label(found.study.search.first_metric)
    mean, interval = winner.estimate.mean, winner.estimate.interval
    between = "" if interval is None else f" (95% interval {interval.low:.4f} to {interval.high:.4f})"
    return f"{winner.candidate.title}: mean {metric} {mean:.4f}{between} over {len(winner.scores)} fresh seeds"


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]
