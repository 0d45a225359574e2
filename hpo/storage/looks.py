"""How often a study has seen its sealed test set.

A look is stored before the test set is opened, and what was seen is filled in afterwards: whatever ends a process in
between, the look is not forgotten. Of several processes one gets the first look. Knows nothing of images.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.errors import HpoError
from hpo.storage.rows import STUDY_ATTRS
from hpo.storage.storage import Storage

TESTS = "hpo:tests"
"""The user attribute of a study that lists the looks at its test set, each with what it saw under `result`, or null."""

Look = dict[str, Any]


def looks(user_attrs: Mapping[str, Any]) -> list[Look]:
    """Return the looks that a study has had, from its user attributes."""
    found: list[Look] = user_attrs.get(TESTS, [])
    return found


def check_unseen(user_attrs: Mapping[str, Any], name: str, again: bool) -> None:
    """Raise HpoError where the study has seen its test set, unless it is to see it `again`."""
    if (before := looks(user_attrs)) and not again:
        last = before[-1]
        accuracy = (last["result"] or {}).get("accuracy")
        saw = "it did not get to a result" if accuracy is None else f"accuracy {accuracy:.4f}"
        often = "once" if len(before) == 1 else f"{len(before)} times"
        raise HpoError(
            f"study '{name}' has seen its test set {often} (last with trial {last['trial']} at {last['at']}: {saw}); "
            "each further look makes the figure less honest: take one with --again, and the result says so"
        )


@dataclass(frozen=True)
class Looking:
    """The study that looks, by all that it is known by."""

    study_id: int
    name: str
    identity: str | None


def begin_look(storage: Storage, study: Looking, again: bool, about: Mapping[str, Any]) -> Look:
    """Store that a look begins, with what there is to say about it, and return it: its number under `look`.

    Raises HpoError where the study has had one and is not to have one `again`, or is not there any more.
    """
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    begun: Look = {"look": 0, "id": secrets.token_hex(8), "at": at, **about, "result": None}

    def add(connection: Connection) -> Mapping[str, Any]:
        before = _stored(connection, study.study_id)
        if any(look["id"] == begun["id"] for look in before):
            return {}  # an earlier run of this transaction was kept
        check_unseen({TESTS: before}, study.name, again)
        begun["look"] = len(before) + 1
        return {TESTS: [*before, begun]}

    _change(storage, study, add, "no test file was opened")
    return begun


def end_look(storage: Storage, study: Looking, begun: Look, result: Mapping[str, Any]) -> int:
    """Fill in what a look saw; return how many the study has had by now. Raises HpoError where it is not there."""
    count = 0

    def fill(connection: Connection) -> Mapping[str, Any]:
        nonlocal count
        before = _stored(connection, study.study_id)
        count = len(before)
        return {TESTS: [look | {"result": dict(result)} if look["id"] == begun["id"] else look for look in before]}

    _change(storage, study, fill, "the look was taken, and is kept nowhere")
    return count


def _change(storage: Storage, study: Looking, change: Callable[[Connection], Mapping[str, Any]], so: str) -> None:
    try:
        storage.change_study(study.study_id, {}, change, study.identity)
    except KeyError as error:
        raise HpoError(f"study '{study.name}': was deleted meanwhile; {so}") from error


def _stored(connection: Connection, study_id: int) -> list[Look]:
    text = sa.select(STUDY_ATTRS.c.value_json).filter_by(study_id=study_id, key=TESTS)
    found = connection.execute(text).scalar()
    kept: list[Look] = [] if found is None else json.loads(found)
    return kept
