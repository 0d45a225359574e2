"""Train stored trials again, each alone, and compare their learning curves with the stored ones.

A trial depends on its configuration, its seed and the split, not on the other members of its population, so it can be
trained again from what is stored. Rounding errors can differ, and a long training may amplify them. Stores nothing.
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
class Retrained:
    """A trial trained again: its stored and its new score, and the largest difference of each metric in any epoch."""

    number: int
    stored: float
    score: float
    largest: Mapping[str, float]

    @property
    def difference(self) -> float:
        """The new score minus the stored one."""
        return self.score - self.stored


@dataclass(frozen=True)
class StoredTrial:
    """A trial to train again; `curve` is empty where it was not stored."""

    member: Member
    score: float
    curve: Curve


def retrain(
    study: Study,
    planned: NetworkPlan,
    precision: str,
    trials: Sequence[StoredTrial],
    stop: threading.Event,
    say: Callable[[str], None],
) -> list[Retrained]:
    """Train each trial alone, in a population of one.

    Raises HpoError for a trial that fails now, and InterruptionError where `stop` is set before the end.
    """
    split, *others = to_planned_device(study, planned)
    trainer = Trainer(split, precision, say, others=others)
    found = []
    for trial in trials:
        number = trial.member.number
        metric, minimized = study.search.first_metric, study.search.minimized
        outcome = trainer.run([trial.member], metric=metric, minimized=minimized, stop=stop)[number]
        if outcome.failed is not None:
            raise HpoError(
                f"study '{study.name}': trial {number} is stored as complete, but fails now: {outcome.failed}"
            )
        score = score_of(study, outcome.curve)
        before, now = epochs_of(trial.curve), epochs_of(outcome.curve)
        if before and before != now:  # rounding can decide whether an epoch is better than the best one so far
            difference = f"ends after {now} epochs, but is stored with {before} (training.patience)"
            say(f"trial {number} {difference}; their common epochs are compared")
        found.append(Retrained(number, trial.score, score, largest_differences(trial.curve, outcome.curve)))
    return found


def score_of(study: Study, curve: Curve) -> float:
    """Return the score of a curve: the last or the best value of the study's metric, as `search.score` says."""
    values = curve[study.search.first_metric]
    if study.search.score == "last":
        return values[-1]
    return min(values) if study.search.minimized else max(values)


def epochs_of(curve: Curve) -> int:
    """Return the number of epochs of a curve."""
    return max(map(len, curve.values()), default=0)


def largest_differences(stored: Curve, curve: Curve) -> dict[str, float]:
    """Return the largest difference of each common metric in any common epoch, on any fold."""
    found: dict[str, float] = {}
    for metric in (each for each in curve if each in stored):
        differences = (abs(a - b) for a, b in zip(stored[metric], curve[metric], strict=False))
        name = metric.partition("/")[0]
        found[name] = max(differences, default=0.0) if name not in found else max(found[name], *differences)
    return found
