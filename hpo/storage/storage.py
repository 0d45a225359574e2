"""A storage: Optuna's own, and besides it calls that take a whole population in one transaction each.

Promises: a call is kept whole or not at all; what it writes is what plain Optuna would have written; trials are
numbered without gaps however many processes create them; a trial is changed only from the state that the call is for,
and those in another state are left alone and told apart in the answer. A call that changes trials or makes a study
outlives a restart of the server, and still does its work once. Safe from several threads and processes.
Knows nothing of samplers, and does not check that the trials of a study share a search space.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import NOT_FOUND_MSG
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from hpo.storage.connections import engine_options, explain_errors, prepare, read
from hpo.storage.location import Location, locate
from hpo.storage.retry import transact
from hpo.storage.rows import (
    DIRECTIONS,
    INTERMEDIATE,
    STUDIES,
    STUDY_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    Ending,
    Row,
    attr_rows,
    intermediate_row,
    read_trials,
    trial_rows,
    utc,
    value_row,
)

# The columns that make a row the same row, where writing it again means changing it.
KEYS = {INTERMEDIATE: ("trial_id", "step"), VALUES: ("trial_id", "objective")}
KEYS |= {table: ("trial_id", "key") for table in (USER_ATTRS, SYSTEM_ATTRS)}


def open_storage(url: str | None = None) -> Storage:
    """Open the storage at `url`, making its tables where there are none; None means HPO_STORAGE or `sqlite:///hpo.db`."""
    # Optuna tells of every study and trial on stderr; what a user is to know, hpo says itself.
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.WARNING))
    return Storage(locate(url))


class Storage(RDBStorage):
    """See the module. `shown` is the URL as it may be printed."""

    def __init__(self, location: Location) -> None:
        prepare(location)
        super().__init__(
            location.full_url, engine_options(location), skip_compatibility_check=True, skip_table_creation=True
        )
        self.location, self.shown = location, location.shown
        explain_errors(self.engine, location.shown)

    def __reduce__(self) -> tuple[Callable[[Location], Storage], tuple[Location]]:
        # Another process opens its own connections, tuned like these.
        return type(self), (self.location,)

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        # Optuna takes the URL for a format string, and a brace in a file's name for a field.
        return template

    def close(self) -> None:
        """Close the connections. The storage may be used again: it then opens new ones."""
        self.remove_session()
        self.engine.dispose()

    def create_study(self, name: str, direction: StudyDirection, user_attrs: Mapping[str, Any]) -> int:
        """Store a new study with its attributes and return its id; raise DuplicatedStudyError where there is one."""
        made: list[int] = []

        def work(connection: Connection, uncertain: bool) -> int:
            insert = _dialect(connection).insert(STUDIES).values(study_name=name).on_conflict_do_nothing()
            study_id: int | None = connection.execute(insert.returning(STUDIES.c.study_id)).scalar()
            if study_id is None:
                there: int = connection.execute(sa.select(STUDIES.c.study_id).filter_by(study_name=name)).scalar_one()
                if uncertain and there in made:
                    return there
                raise DuplicatedStudyError(f"a study named {name!r} exists")
            made.append(study_id)
            objective = {"study_id": study_id, "objective": 0, "direction": direction}
            connection.execute(sa.insert(DIRECTIONS).values(objective))
            rows = [
                {"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in user_attrs.items()
            ]
            if rows:
                connection.execute(sa.insert(STUDY_ATTRS), rows)
            return study_id

        return transact(self.engine, work)

    def create_trials(self, study_id: int, templates: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Store new trials, numbered in this order, each in its template's state with all that the template holds.

        A running trial without a start time starts now.
        """
        now = datetime.datetime.now()
        earlier: list[FrozenTrial] = []

        def work(connection: Connection, uncertain: bool) -> list[FrozenTrial]:
            nonlocal earlier
            # The lock that plain Optuna takes, too: nobody else numbers trials of this study until the end.
            lock = sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id).with_for_update()
            if connection.execute(lock).first() is None:
                raise KeyError(NOT_FOUND_MSG)
            if uncertain and _are_stored(connection, study_id, earlier):
                return earlier
            count = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
            first = connection.execute(count).scalar_one()
            earlier = [_numbered(template, first + i, now) for i, template in enumerate(templates)]
            if earlier:
                _insert(connection, study_id, earlier)
            return earlier

        return transact(self.engine, work)

    def report(self, step: int, values: Mapping[int, float]) -> set[int]:
        """Store the metric that each trial (by id) reached at a step; return the ids of trials no longer running."""

        def work(connection: Connection, uncertain: bool) -> set[int]:
            running = _in_state(connection, values, TrialState.RUNNING)
            rows = [intermediate_row(trial_id, step, values[trial_id]) for trial_id in values if trial_id in running]
            _upsert(connection, INTERMEDIATE, rows)
            return set(values) - running

        return transact(self.engine, work)

    def finish(self, endings: Sequence[Ending]) -> set[int]:
        """End running trials; return the ids of trials no longer running, whose ending is dropped."""
        ids = {ending.trial_id for ending in endings}
        if len(ids) < len(endings):
            raise ValueError("a trial ends once")
        now = utc(datetime.datetime.now())

        def work(connection: Connection, uncertain: bool) -> set[int]:
            running = _in_state(connection, ids, TrialState.RUNNING)
            kept = [ending for ending in endings if ending.trial_id in running]
            values = [value_row(e.trial_id, 0, e.value) for e in kept if e.value is not None]
            _upsert(connection, VALUES, values)
            _upsert(connection, USER_ATTRS, [row for e in kept for row in attr_rows(e.trial_id, e.user_attrs)])
            _upsert(connection, SYSTEM_ATTRS, [row for e in kept for row in attr_rows(e.trial_id, e.system_attrs)])
            for state in TrialState:
                ended = [ending.trial_id for ending in kept if ending.state == state]
                _update(connection, ended, state=state, datetime_complete=now)
            # The time, to the microsecond, tells an earlier run's endings from those of others.
            ours = _where(connection, ids - running, TRIALS.c.datetime_complete == now) if uncertain else set()
            return ids - running - ours

        return transact(self.engine, work)

    def requeue(self, trial_ids: Iterable[int]) -> set[int]:
        """Send running trials back to the queue with their parameters, and without what they had reached.

        Return the ids of trials no longer running, which are left as they are.
        """
        ids = set(trial_ids)
        since: dict[int, datetime.datetime | None] = {}

        def work(connection: Connection, uncertain: bool) -> set[int]:
            nonlocal since
            found = _running_since(connection, ids)
            if uncertain:
                # What an earlier run sent back may run elsewhere by now: only what still runs since then goes back.
                found = {i: start for i, start in found.items() if i in since and since[i] == start}
            else:
                since = found
            connection.execute(sa.delete(INTERMEDIATE).where(INTERMEDIATE.c.trial_id.in_(list(found))))
            _update(connection, found, state=TrialState.WAITING, datetime_start=None)
            return ids - since.keys()

        return transact(self.engine, work)

    def start(self, trial_ids: Iterable[int]) -> set[int]:
        """Claim waiting trials; return the ids of those that this call, and no other process, set running."""
        ids = set(trial_ids)
        now = utc(datetime.datetime.now())

        def work(connection: Connection, uncertain: bool) -> set[int]:
            waiting = _in_state(connection, ids, TrialState.WAITING)
            _update(connection, waiting, state=TrialState.RUNNING, datetime_start=now)
            # As in finish.
            ours = (TRIALS.c.state == TrialState.RUNNING) & (TRIALS.c.datetime_start == now)
            return waiting | (_where(connection, ids - waiting, ours) if uncertain else set())

        return transact(self.engine, work)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial; a KeyError where there is none, as in Optuna."""
        with read(self.engine) as connection:
            trials = read_trials(connection, TRIALS.c.trial_id == trial_id)
        if not trials:
            raise KeyError(NOT_FOUND_MSG)
        return trials[0]

    def _get_trials(
        self,
        study_id: int,
        states: Container[TrialState] | None,
        included_trial_ids: set[int],
        trial_id_greater_than: int,
    ) -> list[FrozenTrial]:
        # All of Optuna's reading of trials comes through here: its cache asks for the trials it knew unfinished, and
        # for those after the last it knew finished. Optuna's own version builds an object for every row.
        of_study = TRIALS.c.study_id == study_id
        if states is not None:
            of_study &= TRIALS.c.state.in_([state for state in TrialState if state in states])
        known = sorted(trial_id for trial_id in included_trial_ids if trial_id <= trial_id_greater_than)
        with read(self.engine) as connection:
            if connection.execute(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)).first() is None:
                raise KeyError(NOT_FOUND_MSG)
            old = read_trials(connection, of_study & TRIALS.c.trial_id.in_(known)) if known else []
            return old + read_trials(connection, of_study & (TRIALS.c.trial_id > trial_id_greater_than))


def _numbered(template: FrozenTrial, number: int, now: datetime.datetime) -> FrozenTrial:
    """A trial of its own, so that template and trial do not change with each other."""
    return FrozenTrial(
        number=number,
        state=template.state,
        value=None,
        values=template.values,
        datetime_start=template.datetime_start or (now if template.state == TrialState.RUNNING else None),
        datetime_complete=template.datetime_complete,
        params=dict(template.params),
        distributions=dict(template.distributions),
        user_attrs=dict(template.user_attrs),
        system_attrs=dict(template.system_attrs),
        intermediate_values=dict(template.intermediate_values),
        trial_id=-1,
    )


def _insert(connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> None:
    """Write the trials, and give each the id it has got."""
    rows = [
        {
            "number": trial.number,
            "study_id": study_id,
            "state": trial.state,
            "datetime_start": utc(trial.datetime_start),
            "datetime_complete": utc(trial.datetime_complete),
        }
        for trial in trials
    ]
    insert = sa.insert(TRIALS).returning(TRIALS.c.trial_id, sort_by_parameter_order=True)
    added: defaultdict[sa.Table, list[Row]] = defaultdict(list)
    for trial, trial_id in zip(trials, connection.execute(insert, rows).scalars().all(), strict=True):
        trial._trial_id = trial_id
        for table, of_table in trial_rows(trial_id, trial):
            added[table] += of_table
    for table, of_table in added.items():
        if of_table:
            connection.execute(sa.insert(table), of_table)


def _are_stored(connection: Connection, study_id: int, trials: Sequence[FrozenTrial]) -> bool:
    """Whether these are trials of the study, told by what never changes: ids, numbers and parameters.

    Ids alone would not do: a server that crashed may give those again that were lost.
    """
    ids = [trial._trial_id for trial in trials]
    found = read_trials(connection, (TRIALS.c.study_id == study_id) & TRIALS.c.trial_id.in_(ids))

    def fixed(trial: FrozenTrial) -> tuple[int, int, str]:
        return trial._trial_id, trial.number, repr(sorted(trial.params.items()))

    return sorted(map(fixed, found)) == sorted(map(fixed, trials))


def _in_state(connection: Connection, trial_ids: Collection[int], state: TrialState) -> set[int]:
    """Those of the trials that are in the state, locked until the transaction ends."""
    return _where(connection, trial_ids, TRIALS.c.state == state)


def _where(connection: Connection, trial_ids: Collection[int], condition: sa.ColumnElement[bool]) -> set[int]:
    """Those of the trials that meet the condition, locked until the transaction ends."""
    select = sa.select(TRIALS.c.trial_id).where(TRIALS.c.trial_id.in_(list(trial_ids)), condition)
    # In one order everywhere, so that two processes never wait for each other's rows.
    return set(connection.execute(select.order_by(TRIALS.c.trial_id).with_for_update()).scalars())


def _running_since(connection: Connection, trial_ids: Collection[int]) -> dict[int, datetime.datetime | None]:
    """The running ones of the trials with their start, locked likewise."""
    running = TRIALS.c.trial_id.in_(list(trial_ids)) & (TRIALS.c.state == TrialState.RUNNING)
    select = sa.select(TRIALS.c.trial_id, TRIALS.c.datetime_start).where(running)
    found = connection.execute(select.order_by(TRIALS.c.trial_id).with_for_update())
    return {trial_id: start for trial_id, start in found}


def _update(connection: Connection, trial_ids: Collection[int], **columns: Any) -> None:
    if trial_ids:
        connection.execute(sa.update(TRIALS).where(TRIALS.c.trial_id.in_(list(trial_ids))).values(**columns))


def _upsert(connection: Connection, table: sa.Table, rows: Sequence[Row]) -> None:
    """Write rows, changing those that are there."""
    if not rows:
        return
    insert = _dialect(connection).insert(table)
    keys = KEYS[table]
    changed = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed), list(rows))


def _dialect(connection: Connection) -> Any:
    """SQLAlchemy's module for what the two databases have, and standard SQL has not."""
    return sqlite if connection.dialect.name == "sqlite" else postgresql
