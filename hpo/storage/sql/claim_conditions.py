"""Claim conditions: the study state and attributes that a study must have when a worker claims its trials.

The conditions are checked in the transaction that claims or creates trials. So once a pause, a stop, a change of the
settings or a deletion is stored, no worker claims another trial of the study as it was before.
Knows the names of study attributes, not the content of a study file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.errors import StorageError, StudyClosedError
from hpo.storage.sql.rows import STUDIES, STUDY_ATTRS
from hpo.storage.sql.statements import lock_study
from hpo.text import hpo_command

STATE = "hpo:state"
"""The user attribute of a study with its state."""

STATE_REASON = "hpo:why"
"""The user attribute of a study with the reason for its state."""

IDENTITY = "hpo:identity"
"""The user attribute of a study with its unique identity: another study can get its name, and even its id."""

PRIORITY = "hpo:priority"
"""The user attribute of a study with its priority: the highest is trained first, a missing one counts as 0."""


class StudyState(StrEnum):
    """The state of a study. A pause requeues running trials; a stopped study finishes them; an ended one is done."""

    OPEN = "open"
    PAUSED = "paused"
    STOPPED = "stopped"
    ENDED = "ended"


def identity(user_attrs: Mapping[str, Any], name: str) -> str:
    """Return the identity of a study, which a rename does not change; without the attribute it is the study's name."""
    return str(user_attrs.get(IDENTITY) or name)


def state_of(user_attrs: Mapping[str, Any]) -> StudyState:
    """Return a study's state, from its user attributes."""
    state = user_attrs.get(STATE, StudyState.OPEN)
    if state not in list(StudyState):
        raise StorageError(
            f"the study attribute {STATE} is {state!r}, but it can only be {', '.join(StudyState)}; "
            "update hpo if a newer version wrote it"
        )
    return StudyState(state)


@dataclass(frozen=True)
class ClaimConditions:
    """The conditions under which a worker may claim trials of a study.

    The study with this id exists, is neither paused nor stopped, and has the expected user attributes, its identity
    among them. `name` is the study's name when the worker loaded it.
    """

    study_id: int
    name: str
    expected_attrs: Mapping[str, Any]

    def match(self, user_attrs: Mapping[str, Any]) -> bool:
        """Return whether a study's user attributes contain the expected ones."""
        return all(user_attrs.get(key) == value for key, value in self.expected_attrs.items())

    def check(self, connection: Connection, share: bool = True) -> None:
        """Raise StudyClosedError unless the conditions are met, and lock the study until the transaction ends.

        Several transactions can `share` the lock; one that changes the study itself must not share it.
        """
        deleted = StudyClosedError(f"study '{self.name}' was deleted", "deleted")
        if not lock_study(connection, self.study_id, share):
            raise deleted
        keys = STUDY_ATTRS.c.key.in_([STATE, STATE_REASON, *self.expected_attrs])
        select = sa.select(STUDY_ATTRS.c.key, STUDY_ATTRS.c.value_json)
        rows = connection.execute(select.where(STUDY_ATTRS.c.study_id == self.study_id, keys))
        attrs = {key: json.loads(text) for key, text in rows}
        if attrs.get(IDENTITY) != self.expected_attrs.get(IDENTITY, attrs.get(IDENTITY)):
            raise deleted
        state = state_of(attrs)
        if state in (StudyState.PAUSED, StudyState.STOPPED):
            name = connection.execute(sa.select(STUDIES.c.study_name).filter_by(study_id=self.study_id)).scalar_one()
            how: Literal["paused", "stopped"] = "paused" if state == StudyState.PAUSED else "stopped"
            reason = f" ({attrs[STATE_REASON]})" if attrs.get(STATE_REASON) else ""
            raise StudyClosedError(f"study '{name}' is {how}{reason}; go on with `{hpo_command('resume', name)}`", how)
        if not self.match(attrs):
            raise StudyClosedError(f"study '{self.name}' was changed by another process", "changed")
