"""How often a study has seen its sealed test set.

That a look begins is stored before it is taken. It counts from the transaction that keeps what it saw, and before that
nobody is shown anything: whatever ends a process in between, no look is hidden and none is spent. Of several processes
one gets the first look. One that failed says why. Knows nothing of images.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from hpo.errors import HpoError
from hpo.storage.rows import STUDY_ATTRS
from hpo.storage.storage import Storage

TESTS = "hpo:tests"
"""The user attribute of a study that lists the looks that began at its test set, each with what it saw under `result`.

That is null for one that came to no result: it is going on, was cut off, or failed for the reason under `failed`.
"""

Look = dict[str, Any]


def looks(user_attrs: Mapping[str, Any]) -> list[Look]:
    """Return the looks that have begun, from a study's user attributes."""
    found: list[Look] = user_attrs.get(TESTS, [])
    return found


def seen(begun: Sequence[Look]) -> list[Look]:
    """Return those of the looks that count: they have seen something."""
    return [look for look in begun if look["result"] is not None]


def check_unseen(user_attrs: Mapping[str, Any], name: str, again: bool) -> None:
    """Raise HpoError where the study has seen its test set, unless it is to see it `again`."""
    if (before := seen(looks(user_attrs))) and not again:
        last = before[-1]
        often = "once" if len(before) == 1 else f"{len(before)} times"
        saw = f"accuracy {last['result']['accuracy']:.4f}"
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
    """Store that a look begins, with what there is to say about it, and return it.

    Raises HpoError where the study has had one and is not to have one `again`, or is not there any more.
    """
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    begun: Look = {"look": None, "id": secrets.token_hex(8), "at": at, **about, "result": None}

    def add(before: list[Look]) -> list[Look]:
        if any(look["id"] == begun["id"] for look in before):
            return before  # an earlier run of this transaction was kept
        check_unseen({TESTS: before}, study.name, again)
        return [*before, begun]

    _change(storage, study, add, "the test set is as unseen as before")
    return begun


def end_look(storage: Storage, study: Looking, begun: Look, again: bool, result: Mapping[str, Any]) -> Look:
    """Keep what a look saw, which makes it one; return it, with its number among the looks of the study.

    Raises HpoError where another look has been faster and this is not to be one `again`, or where the study is not
    there any more. What it saw is then kept nowhere, and not to be shown.
    """
    ended = begun | {"result": dict(result)}

    def fill(before: list[Look]) -> list[Look]:
        if any(look["id"] == begun["id"] for look in seen(before)):
            return before  # an earlier run of this transaction was kept
        check_unseen({TESTS: before}, study.name, again)
        ended["look"] = 1 + max((look["look"] for look in seen(before)), default=0)
        return [*(look for look in before if look["id"] != begun["id"]), ended]

    _change(storage, study, fill, "what the look saw is kept nowhere, and not shown")
    return ended


def fail_look(storage: Storage, study: Looking, begun: Look, why: str) -> None:
    """Keep why a look saw nothing."""
    _change(
        storage,
        study,
        lambda before: [look | {"failed": why} if look["id"] == begun["id"] else look for look in before],
        f"its look has failed ({why})",
    )


def _change(storage: Storage, study: Looking, change: Callable[[list[Look]], list[Look]], so: str) -> None:
    def also(connection: Connection) -> Mapping[str, Any]:
        return {TESTS: change(_stored(connection, study.study_id))}

    try:
        storage.change_study(study.study_id, {}, also, study.identity)
    except KeyError as error:
        raise HpoError(f"study '{study.name}': was deleted meanwhile; {so}") from error


def _stored(connection: Connection, study_id: int) -> list[Look]:
    text = sa.select(STUDY_ATTRS.c.value_json).filter_by(study_id=study_id, key=TESTS)
    found = connection.execute(text).scalar()
    kept: list[Look] = [] if found is None else json.loads(found)
    return kept
