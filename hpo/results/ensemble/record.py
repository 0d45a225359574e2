"""The ensemble of a study: its members, their picks, and its validation score, stored as a study attribute.

Imports no torch, so that tables, reports and exports can name an ensemble quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hpo.errors import HpoError
from hpo.results.ranking import metric_label
from hpo.storage import Storage, summary
from hpo.text import hpo_command, join_and

ENSEMBLE = "hpo:ensemble"
"""The study attribute with the ensemble."""


@dataclass(frozen=True)
class EnsembleMember:
    """A trial of an ensemble, picked `picks` times; `score` is that of its stored weights alone.

    `epochs` is the number of epochs of these weights.
    """

    trial: int
    picks: int
    epochs: int
    score: float

    @property
    def label(self) -> str:
        """The trial with its picks, `56 x3`; a trial that was picked once has no picks."""
        return f"{self.trial}" + (f" x{self.picks}" if self.picks > 1 else "")


@dataclass(frozen=True)
class HalfScores:
    """Scores of ensembles that were selected on one half of the validation split, on the other half.

    Means over `halves` halves. `best` is the score there of the member that was the best alone on the first half.
    """

    ensemble: float
    best: float
    halves: int


@dataclass(frozen=True)
class Ensemble:
    """The selected ensemble of a study, members in the order of their first picks; the first is the best one alone.

    `score` is the ensemble's score of `metric` on the `validation` examples on which it was selected, from `candidates`
    trials with stored weights and at most `size` picks. `halves` is None where the metric is undefined on halves.
    """

    study: str
    metric: str
    score: float
    members: tuple[EnsembleMember, ...]
    candidates: int
    size: int
    validation: int
    halves: HalfScores | None
    at: str

    @property
    def best(self) -> EnsembleMember:
        """The member with the best score alone."""
        return self.members[0]

    @property
    def picks(self) -> int:
        """The number of picks of all members."""
        return sum(each.picks for each in self.members)

    @property
    def title(self) -> str:
        """The ensemble in words: `ensemble of trials 56 x3, 12 and 4`."""
        trials = "trials" if len(self.members) > 1 else "trial"
        return f"ensemble of {trials} {join_and([each.label for each in self.members])}"

    def weight(self, member: EnsembleMember) -> float:
        """Return the fraction of the picks that a member has."""
        return member.picks / self.picks

    def has_same_members(self, other: Ensemble) -> bool:
        """Return whether another ensemble has the same trials with the same picks and epochs."""
        mine, others = ([(m.trial, m.picks, m.epochs) for m in each.members] for each in (self, other))
        return mine == others

    def to_json(self) -> dict[str, Any]:
        """Return the stored form, without the study's name, which may change."""
        return {key: value for key, value in asdict(self).items() if key != "study"}


def ensemble_from_json(study: str, record: Mapping[str, Any]) -> Ensemble:
    """Return the ensemble of a study in its stored form."""
    members = tuple(EnsembleMember(**each) for each in record["members"])
    halves = None if record["halves"] is None else HalfScores(**record["halves"])
    return Ensemble(**{**record, "study": study, "members": members, "halves": halves})


def find_ensemble(user_attrs: Mapping[str, Any], name: str) -> Ensemble | None:
    """Return the ensemble in a study's user attributes; None where none has been selected."""
    record = user_attrs.get(ENSEMBLE)
    return None if record is None else ensemble_from_json(name, record)


def stored_ensemble(user_attrs: Mapping[str, Any], name: str) -> Ensemble:
    """Return the ensemble in a study's user attributes. Raises HpoError where none has been selected."""
    found = find_ensemble(user_attrs, name)
    if found is None:
        raise HpoError(f"study '{name}' has no ensemble: select one with `{hpo_command('ensemble', name)}`")
    return found


def ensemble_lines(storage: Storage, name: str) -> list[str]:
    """Return a line with the ensemble of a study and its score; no line where none has been selected."""
    found = find_ensemble(summary(storage, name).user_attrs, name)
    if found is None:
        return []
    score = f"{metric_label(found.metric)}: {found.score:.4f} (optimistic: selected on the validation split)"
    return [f"{found.title} | {score}"]
