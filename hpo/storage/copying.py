"""Copy a study to another storage.

Promises: the source is read in one transaction, so later changes are not copied; the copy is committed whole or not at
all, and once, even if the connection to a server is lost; an existing study of the same name is not changed. The rows
of the copy equal those of the source, column by column: attributes and distributions as the stored text, times to the
microsecond. Three things differ:

- The copy has ids of its own, in the order of the trials' numbers. Where Optuna or its dashboard name a trial by its id
  (in notes on trials, for instance), the copy names the new id.
- Running trials of the source wait in the copy, as after `Storage.requeue`, and have no heartbeat.
- The databases store some values differently: SQLite has no -0.0. A value that the target cannot store, such as a step
  beyond 32 bits on PostgreSQL, is a StorageError.

The memory needed is that of all trial ids, and of the rows of TRIALS_AT_ONCE trials. Other processes wait for an SQLite
target until the copy is complete. This module does not copy artifact files, and knows nothing of attributes except the
ids in them.
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
from hpo.storage.sql.retry import write_transaction
from hpo.storage.sql.rows import (
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
from hpo.storage.sql.statements import dialect, requeue_trials
from hpo.storage.storage import Storage

# Small enough for the rows of long learning curves to fit in memory.
TRIALS_AT_ONCE = 100
COPIED_TABLES = (PARAMS, VALUES, INTERMEDIATE, USER_ATTRS, SYSTEM_ATTRS)
# Keys of study system attributes that contain a trial id: notes, artifacts and skipped trials of the dashboard.
TRIAL_ID_IN_KEY = re.compile(r"(dashboard:(?:artifacts:)?|preference:skip_trial:)(\d+)(?=:|$)")
# Keys of study system attributes with a list of trial ids: the parents of a generation of Optuna's genetic samplers.
TRIAL_IDS_IN_VALUE = re.compile(r"\w+:parent:\d+")

Ids = dict[int, int]
"""Id in the source -> id in the copy."""

Change = Callable[[Row], Row | None]
"""Convert a row of the source to a row of the copy, or to None to omit it."""


@dataclass(frozen=True)
class CopyCounts:
    """The number of copied trials, and how many of them run in the source and therefore wait in the copy."""

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
    """Copy a study to `target`, which can be the same storage if the copy has a new name.

    `user_attrs` maps keys to functions that convert the value of this study user attribute; other attributes are copied
    unchanged. `along` maps names of further studies, copied in the same transaction, to their new names.
    """
    names = {name: name if new_name is None else new_name, **(along or {})}
    created: dict[int, CopyCounts] = {}

    def work(connection: Connection, uncertain: bool) -> CopyCounts:
        ids: Ids = {}
        with read(source.engine) as view:
            for old, new in names.items():
                study_id = _new_study(connection, new)
                if study_id is None:
                    existing = connection.execute(sa.select(STUDIES.c.study_id).filter_by(study_name=new)).scalar()
                    if uncertain and existing in created:
                        return created[existing]
                    raise HpoError(
                        f"{target.shown}: a study named {new!r} exists already, and is not changed; "
                        "give the copy another name with --name"
                    )
                found = view.execute(sa.select(STUDIES.c.study_id).filter_by(study_name=old)).scalar()
                if found is None:
                    raise UnknownStudyError(f"{source.shown}: no study named {old!r}")
                ids[found] = study_id
            counts = [_Copy(view, connection).study(old, new, user_attrs or {}) for old, new in ids.items()]
        created[next(iter(ids.values()))] = counts[0]
        return counts[0]

    # Either storage can be a server that restarts.
    timeout_s = max(source.retry_policy.timeout_s, target.retry_policy.timeout_s)
    with target.retry_policy.override(target.retry_policy.stop, timeout_s):
        return write_transaction(target.engine, work)


def _new_study(connection: Connection, name: str) -> int | None:
    insert = dialect(connection).insert(STUDIES).values(study_name=name).on_conflict_do_nothing()
    study_id: int | None = connection.execute(insert.returning(STUDIES.c.study_id)).scalar()
    return study_id


@dataclass(frozen=True)
class _Copy:
    """A copy from a read transaction of the source, in a write transaction of the target."""

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
        self.rows(STUDY_SYSTEM_ATTRS, "study_id", {old: new}, lambda row: _with_new_ids(row, ids))
        return CopyCounts(len(ids), running)

    def trials(self, trial_ids: Sequence[int], study_id: int, ids: Ids) -> int:
        """Copy trials, add their ids to `ids`, and return how many of them were running."""
        by_id = {
            row["trial_id"]: dict(row)
            for row in self.source.execute(sa.select(TRIALS).where(TRIALS.c.trial_id.in_(trial_ids))).mappings()
        }
        rows = [by_id[trial_id] | {"study_id": study_id} for trial_id in trial_ids]
        for row in rows:
            del row["trial_id"]
        insert = sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
        added = dict(zip(trial_ids, self.target.execute(insert, rows).scalars(), strict=True))
        for table in COPIED_TABLES:
            self.rows(table, "trial_id", added)
        running = [added[trial_id] for trial_id in trial_ids if by_id[trial_id]["state"] == TrialState.RUNNING]
        if running:
            requeue_trials(self.target, running)
        ids |= added
        return len(running)

    def rows(self, table: sa.Table, owner: str, ids: Ids, change: Change = lambda row: row) -> None:
        """Copy the rows that belong to these studies or trials, in the order of their primary key."""
        columns = [column for column in table.columns if not column.primary_key]
        select = sa.select(*columns).where(table.columns[owner].in_(list(ids))).order_by(*table.primary_key)
        found = self.source.execute(select).mappings()
        copied = [row for row in (change({**row, owner: ids[row[owner]]}) for row in found) if row is not None]
        if copied:
            self.target.execute(sa.insert(table), copied)


def _with_new_ids(row: Row, ids: Ids) -> Row | None:
    """Return a study system attribute with the copy's ids in place of the source's.

    None if it names a trial that the study does not have: the copy can have another trial with that id.
    """
    key: str = row["key"]
    if TRIAL_IDS_IN_VALUE.fullmatch(key):
        listed = [ids[trial_id] for trial_id in json.loads(row["value_json"]) if trial_id in ids]
        return row | {"value_json": json.dumps(listed)}
    match = TRIAL_ID_IN_KEY.match(key)
    if match is None:
        return row
    trial_id = ids.get(int(match[2]))
    return None if trial_id is None else row | {"key": f"{match[1]}{trial_id}{key[match.end() :]}"}
