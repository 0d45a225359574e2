"""The subject of a test evaluation: the selected configuration, or the ensemble of the study."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hpo.results.ensemble.record import Ensemble, stored_ensemble
from hpo.results.final_test.model_folder import WEIGHTS_FILE
from hpo.results.selection import Selection, select
from hpo.storage import Storage


@dataclass(frozen=True)
class Subject:
    """The configurations whose networks are evaluated together: one, or the members of an ensemble.

    `label` names them in errors.
    """

    members: tuple[Selection, ...]
    ensemble: Ensemble | None = None

    @property
    def label(self) -> str:
        """The networks in words."""
        if self.ensemble is not None:
            return f"the {self.ensemble.title}"
        return f"the network of trial {self.members[0].trial}"

    @property
    def picks(self) -> tuple[int, ...]:
        """The number of picks of each member."""
        return (1,) if self.ensemble is None else tuple(each.picks for each in self.ensemble.members)

    def weights_file(self, member: Selection) -> str:
        """Return the name of the file with a member's weights."""
        return WEIGHTS_FILE if self.ensemble is None else f"weights-{member.trial}.safetensors"

    def record(self) -> dict[str, Any]:
        """Return the fields of the record of an evaluation that name its subject."""
        if self.ensemble is None:
            return {"trial": self.members[0].trial}
        members = [[each.trial, each.picks] for each in self.ensemble.members]
        return {"trial": None, "subject": self.ensemble.title, "ensemble": members}


def find_subject(
    storage: Storage, name: str, user_attrs: Mapping[str, Any], trial: int | None, ensemble: bool
) -> Subject:
    """Return the selected configuration of a study, that of the trial of that number, or with `ensemble` its ensemble.

    A member of the ensemble is trained for as many epochs as its stored weights. Raises HpoError where there is none.
    """
    if not ensemble:
        return Subject((select(storage, name, trial),))
    found = stored_ensemble(user_attrs, name)
    members = [replace(select(storage, name, each.trial), epochs=each.epochs) for each in found.members]
    return Subject(tuple(members), found)
