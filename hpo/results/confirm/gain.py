"""Sentences on the gain of tuning: the winner of a confirmation against the baseline and the first trial.

"Tuning helped" needs both: a search whose winner is no better than its first trial has overtuned, or found nothing
(L. Schneider, B. Bischl, M. Feurer, "Overtuning in hyperparameter optimization", AutoML 2025). `inference` has the
statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from hpo.results.compare.statistics import SIGNIFICANT
from hpo.results.confirm.inference import Difference
from hpo.results.confirm.result import Confirmation
from hpo.text import join_and

BASELINE_NAME, FIRST_NAME, BOTH_NAME = "the baseline", "the first trial", "the baseline (also the first trial)"


class Verdict(Enum):
    """The result of a comparison of the winner with the baseline or the first trial."""

    BETTER = auto()
    WORSE = auto()
    UNCLEAR = auto()
    UNTESTED = auto()


def gain_lines(found: Confirmation) -> list[str]:
    """Return whether tuning helped, and the measured differences from which this follows."""
    return [gain_line(found), *(_measured(found, name, gain) for name, gain in _references(found))]


def gain_line(found: Confirmation) -> str:
    """Return whether tuning helped: whether the winner is better than the baseline and than the first trial."""
    winner, label = found.winner.candidate, found.winner.candidate.title
    if winner.baseline or winner.first:
        same = BOTH_NAME if winner.baseline and winner.first else BASELINE_NAME if winner.baseline else FIRST_NAME
        return f"tuning did not help: {label} is {same}"
    if found.baseline is None:
        return "it is unknown whether tuning helped: every run of the baseline failed"
    references = _references(found)
    verdicts = {name: _verdict(found, gain) for name, gain in references}
    names = {verdict: [name for name in verdicts if verdicts[name] == verdict] for verdict in Verdict}
    if worse := names[Verdict.WORSE]:
        return f"tuning did not help, {join_and(worse)} {'is' if len(worse) == 1 else 'are'} better than {label}"
    if unclear := names[Verdict.UNCLEAR]:
        pairs = min(gain.pairs.n for name, gain in references if name in unclear)
        parts = f"{pairs} {'seed' if found.splits is None else 'split'}{'' if pairs == 1 else 's'}"
        return f"tuning did not help, as far as {parts} can tell: {label} is not better than {' or '.join(unclear)}"
    if untested := names[Verdict.UNTESTED]:
        return f"it is unknown whether tuning helped: no test of {label} against {join_and(untested)} is possible"
    return f"tuning helped: {label} is better than {join_and(names[Verdict.BETTER])}"


def is_better(found: Confirmation, difference: Difference) -> bool:
    """Return whether the difference is in favour of the winner."""
    mean = difference.pairs.difference.mean
    return mean < 0 if found.study.search.minimized else mean > 0


def _references(found: Confirmation) -> Sequence[tuple[str, Difference]]:
    """Return the names of the baseline and the first trial with the winner's gain over each, as far as known."""
    baseline = BOTH_NAME if found.first is not None and found.first is found.baseline else BASELINE_NAME
    gains = ((baseline, found.gain), (FIRST_NAME, found.first_gain))
    return [(name, gain) for name, gain in gains if gain is not None]


def _verdict(found: Confirmation, gain: Difference) -> Verdict:
    if gain.p is None:
        return Verdict.UNCLEAR if gain.pairs.difference.mean == 0 else Verdict.UNTESTED
    if gain.p >= SIGNIFICANT:
        return Verdict.UNCLEAR
    return Verdict.BETTER if is_better(found, gain) else Verdict.WORSE


def _measured(found: Confirmation, name: str, gain: Difference) -> str:
    """Return `Best-1 (trial 0) minus the baseline is +0.0120 (95% interval +0.0020 to +0.0220; p = 0.01; ...)`."""
    mean, interval, why = gain.pairs.difference.mean, gain.pairs.difference.interval, gain.pairs.why
    details = [] if interval is None else [f"95% interval {interval.low:+.4f} to {interval.high:+.4f}"]
    if gain.p is not None:
        details += [f"p = {gain.p:.2g}", f"{'both ' * bool(details)}corrected for the selection of the winner"]
    details += [why] if why else []
    return f"{found.winner.candidate.title} minus {name} is {mean:+.4f} ({'; '.join(details)})"
