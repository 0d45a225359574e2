"""A study copied to another storage, whole.

Promises: the source is read on one view, and what is written meanwhile is not copied; the copy is there whole or not at
all, once, also where a connection to a server was lost; a study that has the name already is left as it is. The rows of
the copy are those of the source, column by column: attributes and distributions as the text that is stored, times to
the microsecond. Three things differ:

- Ids are the copy's own, in the order of the trials' numbers. Where Optuna or its dashboard name a trial by its id (in
  notes on trials, say), they name the copy's.
- Nobody trains the copy's trials, so those that run in the source wait in it, as after `Storage.requeue`, without a
  heartbeat.
- What the two databases keep differently: SQLite has no -0.0. What the target cannot keep at all, such as a step beyond
  32 bits on PostgreSQL, is a StorageError.

Memory holds the ids of all trials, and the rows of a hundred. Others wait for an SQLite target until the copy is done.
Knows nothing of the files that artifacts are kept in, nor of what attributes mean but for the ids that they name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from optuna.trial import TrialState
from sqlalchemy.engine import Connection

from hpo.errors import HpoError, UnknownStudyError
from hpo.storage.connections import read
from hpo.storage.retry import write_transaction
from hpo.storage.rows import (
    DIRECTIONS,
    INTERMEDIATE,
    PARAMS,
    STUDIES,
    STUDY_ATTRS,
    STUDY_SYSTEM_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    Row,
)
from hpo.storage.statements import dialect, requeue_trials
from hpo.storage.storage import Storage

# Few enough that the rows of long learning curves fit in memory.
TRIALS_AT_ONCE = 100
OF_TRIALS = (PARAMS, VALUES, INTERMEDIATE, USER_ATTRS, SYSTEM_ATTRS)
# Keys of a study's system attributes that name a trial by its id: the dashboard's notes, artifacts, skipped trials.
NAMES_A_TRIAL = re.compile(r"(dashboard:(?:artifacts:)?|preference:skip_trial:)(\d+)(?=:|$)")
# Those whose value lists trials by id: the parents of a generation, as Optuna's genetic samplers remember them.
LISTS_TRIALS = re.compile(r"\w+:parent:\d+")

Ids = dict[int, int]
"""An id in the source -> the id in the copy."""

Change = Callable[[Row], Row | None]
"""A row of the source in, the copy's out: None for none."""


@dataclass(frozen=True)
class CopyCounts:
    """How many trials were copied, and how many of them run in the source, and wait in the copy."""

    trials: int
    running: int


def copy_study(
    source: Storage,
    name: str,
    target: Storage,
    new_name: str | None = None,
    user_attrs: Mapping[str, Callable[[Any], Any]] | None = None,
    along: Mapping[str, str] | None = None,
) -> CopyCounts:
    """Copy the study of that name to `target`, which may be the same storage where the copy has a new name.

    `user_attrs` says, by key, what becomes of a user attribute of a study in its copy; the others stay as they are.
    `along` are studies that are copied with it, all or none, by the name that each has there.
    """
    names = {name: name if new_name is None else new_name, **(along or {})}
    made: dict[int, CopyCounts] = {}

    def work(connection: Connection, uncertain: bool) -> CopyCounts:
        ids: Ids = {}
        with read(source.engine) as view:
            for old, called in names.items():
                study_id = _new_study(connection, called)
                if study_id is None:
                    there = connection.execute(sa.select(STUDIES.c.study_id).filter_by(study_name=called)).scalar()
                    if uncertain and there in made:
                        return made[there]
                    raise HpoError(
                        f"{target.shown}: holds a study named {called!r} already, which stays as it is; "
                        "give the copy another name with --name"
                    )
                found = view.execute(sa.select(STUDIES.c.study_id).filter_by(study_name=old)).scalar()
                if found is None:
                    raise UnknownStudyError(f"{source.shown}: no study named {old!r}")
                ids[found] = study_id
            copied = [_Copy(view, connection).study(old, new, user_attrs or {}) for old, new in ids.items()]
        made[next(iter(ids.values()))] = copied[0]
        return copied[0]

    # Either of the two may be a server that restarts.
    seconds = max(source.retry_policy.timeout_s, target.retry_policy.timeout_s)
    with target.retry_policy.override(target.retry_policy.stop, seconds):
        return write_transaction(target.engine, work)


def _new_study(connection: Connection, called: str) -> int | None:
    insert = dialect(connection).insert(STUDIES).values(study_name=called).on_conflict_do_nothing()
    made: int | None = connection.execute(insert.returning(STUDIES.c.study_id)).scalar()
    return made


@dataclass(frozen=True)
class _Copy:
    """One run of the work: from a view of the source, in a transaction of the target."""

    source: Connection
    target: Connection

    def study(self, old: int, new: int, user_attrs: Mapping[str, Callable[[Any], Any]]) -> CopyCounts:
        def changed(row: Row) -> Row:
            change = user_attrs.get(row["key"])
            return row if change is None else row | {"value_json": json.dumps(change(json.loads(row["value_json"])))}

        self.rows(DIRECTIONS, "study_id", {old: new})
        self.rows(STUDY_ATTRS, "study_id", {old: new}, changed)
        of_study = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == old)
        trial_ids = self.source.execute(of_study.order_by(TRIALS.c.number, TRIALS.c.trial_id)).scalars().all()
        ids: Ids = {}
        running = 0
        for start in range(0, len(trial_ids), TRIALS_AT_ONCE):
            running += self.trials(trial_ids[start : start + TRIALS_AT_ONCE], new, ids)
        self.rows(STUDY_SYSTEM_ATTRS, "study_id", {old: new}, lambda row: _renamed(row, ids))
        return CopyCounts(len(ids), running)

    def trials(self, trial_ids: Sequence[int], study_id: int, ids: Ids) -> int:
        """Copy trials, add their ids to those known, and return how many of them were running."""
        by_id = {
            row["trial_id"]: dict(row)
            for row in self.source.execute(sa.select(TRIALS).where(TRIALS.c.trial_id.in_(trial_ids))).mappings()
        }
        rows = [by_id[trial_id] | {"study_id": study_id} for trial_id in trial_ids]
        for row in rows:
            del row["trial_id"]
        insert = sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
        added = dict(zip(trial_ids, self.target.execute(insert, rows).scalars(), strict=True))
        for table in OF_TRIALS:
            self.rows(table, "trial_id", added)
        running = [added[trial_id] for trial_id in trial_ids if by_id[trial_id]["state"] == TrialState.RUNNING]
        if running:
            requeue_trials(self.target, running)
        ids |= added
        return len(running)

    def rows(self, table: sa.Table, owner: str, ids: Ids, change: Change = lambda row: row) -> None:
        """Copy the rows that belong to these studies or trials, in the order in which they were written."""
        columns = [column for column in table.columns if not column.primary_key]
        select = sa.select(*columns).where(table.columns[owner].in_(list(ids))).order_by(*table.primary_key)
        found = self.source.execute(select).mappings()
        copied = [row for row in (change({**row, owner: ids[row[owner]]}) for row in found) if row is not None]
        if copied:
            self.target.execute(sa.insert(table), copied)


def _renamed(row: Row, ids: Ids) -> Row | None:
    """Return a study's system attribute with the copy's ids in the place of the source's.

    None for one that names a trial that the study has not: its id may be that of another trial of the copy.
    """
    key: str = row["key"]
    if LISTS_TRIALS.fullmatch(key):
        listed = [ids[trial_id] for trial_id in json.loads(row["value_json"]) if trial_id in ids]
        return row | {"value_json": json.dumps(listed)}
    match = NAMES_A_TRIAL.match(key)
    if match is None:
        return row
    trial_id = ids.get(int(match[2]))
    return None if trial_id is None else row | {"key": f"{match[1]}{trial_id}{key[match.end() :]}"}
