"""The queue: which studies may be worked on, how urgent they are, and the changes of that.

A study is open unless it says otherwise. Trials are taken through a `Gate`, in whose transaction the study is looked
at: once a pause, a stop, a change of the study's file or its deletion is stored, nobody takes another trial of what it
was. A pause takes the running trials back as well; their processes find their claims gone at the next epoch.
Knows attributes, not what is in a study file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.errors import StorageError, StudyClosedError
from hpo.storage.remedies import command
from hpo.storage.retry import transact
from hpo.storage.rows import STUDIES, STUDY_ATTRS, SYSTEM_ATTRS, TRIALS
from hpo.storage.statements import WORKER, lock_study, send_back, upsert

if TYPE_CHECKING:
    from hpo.storage.storage import Storage

STATE = "hpo:state"
"""The user attribute of a study that says whether it may be worked on."""

WHY = "hpo:why"
"""The user attribute that says why it is in that state."""

IDENTITY = "hpo:identity"
"""The user attribute that tells a study from all others: its name may be given to another one, and so may its id."""

PRIORITY = "hpo:priority"
"""The user attribute that says how urgent the study is: a higher number goes first, and none is 0."""


class StudyState(StrEnum):
    """Whether a study may be worked on: `stopped` finishes what runs, `ended` has all that it asked for."""

    OPEN = "open"
    PAUSED = "paused"
    STOPPED = "stopped"
    ENDED = "ended"


def identity(user_attrs: Mapping[str, Any], name: str) -> str:
    """Return what a study is known by, whatever it is called now; for one that hpo did not make that is its name."""
    return str(user_attrs.get(IDENTITY) or name)


def state_of(user_attrs: Mapping[str, Any]) -> StudyState:
    """Return a study's state, from its user attributes."""
    state = user_attrs.get(STATE, StudyState.OPEN)
    if state not in list(StudyState):
        raise StorageError(f"a study's {STATE} is {state!r}; it can be {', '.join(StudyState)}")
    return StudyState(state)


@dataclass(frozen=True)
class Gate:
    """A study as a process knows it: `given` are the user attributes that it goes by, its identity among them.

    `name` is what it was called when the process entered it.
    """

    study_id: int
    name: str
    given: Mapping[str, Any]

    def knows(self, user_attrs: Mapping[str, Any]) -> bool:
        """Whether these attributes are those of the study as it is known."""
        return all(user_attrs.get(key) == value for key, value in self.given.items())

    def check(self, connection: Connection, share: bool = True) -> None:
        """Raise StudyClosedError unless the study is open and as it is known; it stays so to the transaction's end.

        Who is going to change the study itself does not `share` this with others.
        """
        deleted = StudyClosedError(f"study '{self.name}' was deleted", "deleted")
        if not lock_study(connection, self.study_id, share):
            raise deleted
        keys = STUDY_ATTRS.c.key.in_([STATE, WHY, *self.given])
        select = sa.select(STUDY_ATTRS.c.key, STUDY_ATTRS.c.value_json)
        rows = connection.execute(select.where(STUDY_ATTRS.c.study_id == self.study_id, keys))
        attrs = {key: json.loads(text) for key, text in rows}
        if attrs.get(IDENTITY) != self.given.get(IDENTITY, attrs.get(IDENTITY)):
            raise deleted
        state = state_of(attrs)
        if state in (StudyState.PAUSED, StudyState.STOPPED):
            name = connection.execute(sa.select(STUDIES.c.study_name).filter_by(study_id=self.study_id)).scalar_one()
            why = f" ({attrs[WHY]})" if attrs.get(WHY) else ""
            advice = f"; go on with `{command('resume', name)}`"
            how: Literal["paused", "stopped"] = "paused" if state == StudyState.PAUSED else "stopped"
            raise StudyClosedError(f"study '{name}' is {how}{why}{advice}", how)
        if not self.knows(attrs):
            raise StudyClosedError(f"study '{self.name}' was changed by another process", "changed")


def check_open(storage: Storage, gate: Gate) -> None:
    """Raise StudyClosedError unless the study is open, and as it is known."""
    transact(storage.engine, lambda connection, _: gate.check(connection))


def set_state(storage: Storage, study_id: int, state: StudyState, why: str = "") -> int:
    """Set a study's state; return how many running trials were sent back to the queue, which is what a pause does."""
    return transact(storage.engine, lambda connection, _: _set_state(connection, study_id, state, why))


def end_study(storage: Storage, gate: Gate, why: str) -> None:
    """Note that a study has all that it asked for; one that is paused or stopped stays that.

    Raises StudyClosedError where it was changed or deleted meanwhile.
    """

    def work(connection: Connection, uncertain: bool) -> None:
        try:
            gate.check(connection, share=False)
        except StudyClosedError as closed:
            if closed.how in ("changed", "deleted"):
                raise
            return
        _set_state(connection, gate.study_id, StudyState.ENDED, why)

    transact(storage.engine, work)


def _set_state(connection: Connection, study_id: int, state: StudyState, why: str) -> int:
    if not lock_study(connection, study_id):
        return 0  # deleted meanwhile: there is nothing to keep
    attrs = {STATE: state.value, WHY: " ".join(why.split())}
    rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    upsert(connection, STUDY_ATTRS, rows)
    if state != StudyState.PAUSED:
        return 0
    by_a_worker = sa.exists().where(SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id, SYSTEM_ATTRS.c.key == WORKER)
    running = sa.select(TRIALS.c.trial_id).where(
        TRIALS.c.study_id == study_id, TRIALS.c.state == TrialState.RUNNING, by_a_worker
    )
    ids = connection.execute(running.order_by(TRIALS.c.trial_id).with_for_update()).scalars().all()
    send_back(connection, ids)
    return len(ids)
