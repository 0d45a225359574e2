"""Training trials once more, alone, and how far the curves then differ from those that were stored.

A trial depends on its settings, its seed and the split, not on its company: so it can be repeated from what is kept
with it. What remains are roundings in another order, which a long training may enlarge. Stores nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hpo.errors import HpoError
from hpo.search.plan import NetworkPlan, to_planned_device
from hpo.search.study_records import Curve
from hpo.studyfile import Study
from hpo.training.stack import Member
from hpo.training.trainer import Trainer


@dataclass(frozen=True)
class Repeated:
    """A trial's number, the score it had and has now, and the largest difference of each metric over its epochs."""

    number: int
    stored: float
    score: float
    largest: Mapping[str, float]

    @property
    def difference(self) -> float:
        """The new score less the stored one."""
        return self.score - self.stored


@dataclass(frozen=True)
class Stored:
    """What is known of a trial that is to be repeated; the curve is empty where nobody kept it."""

    member: Member
    score: float
    curve: Curve


def repeat(
    study: Study,
    planned: NetworkPlan,
    precision: str,
    trials: Sequence[Stored],
    stop: threading.Event,
    say: Callable[[str], None],
) -> list[Repeated]:
    """Train each trial alone, in a population of one.

    Raises HpoError for one that fails now, and InterruptionError where `stop` is set before the last is done.
    """
    trainer = Trainer(to_planned_device(study, planned), precision, say)
    found = []
    for trial in trials:
        number = trial.member.number
        outcome = trainer.run([trial.member], metric=study.search.first_metric, stop=stop)[number]
        if outcome.failed is not None:
            what = f"study '{study.name}': trial {number}"
            raise HpoError(f"{what} was stored as complete, and fails now: {outcome.failed}")
        score = score_of(study, outcome.curve)
        before, now = epochs_of(trial.curve), epochs_of(outcome.curve)
        if before and before != now:  # where rounding makes an epoch better than the best before it, or no better
            how = f"ends after {now} epochs, and was stored with {before} (training.patience)"
            say(f"trial {number}: {how}; the epochs that both have are compared")
        found.append(Repeated(number, trial.score, score, largest_differences(trial.curve, outcome.curve)))
    return found


def score_of(study: Study, curve: Curve) -> float:
    """Return a curve's score: its last value of the study's metric, or its best one, as the study says."""
    values = curve[study.search.first_metric]
    if study.search.score == "last":
        return values[-1]
    return min(values) if study.search.minimized else max(values)


def epochs_of(curve: Curve) -> int:
    """Return how many epochs a curve has."""
    return max(map(len, curve.values()), default=0)


def largest_differences(stored: Curve, curve: Curve) -> dict[str, float]:
    """Return the largest difference of each metric that both curves have, in any epoch that both have."""
    common = [metric for metric in curve if metric in stored]
    return {
        metric: max((abs(a - b) for a, b in zip(stored[metric], curve[metric], strict=False)), default=0.0)
        for metric in common
    }
