"""A storage: Optuna's own, and besides it calls that take a whole population in one transaction each.

Promises: a call is kept whole or not at all; what it writes is what plain Optuna would have written; trials are
numbered without gaps however many processes create them; what a storage object has claimed (created as running, or
claimed from the queue) only it can report, finish or send back, until another process takes it back from one that
seems dead, after which the late calls change nothing and say so. A call that changes trials or makes a study outlives
a restart of the server, and still does its work once. Safe from several threads and processes.
Knows nothing of samplers, and does not check that the trials of a study share a search space.
"""

from __future__ import annotations

import copy
import datetime
import json
import logging
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from hpo.optuna_internals import models
from hpo.storage.claim_conditions import IDENTITY, ClaimConditions
from hpo.storage.connections import TransientError, engine_options, explain_errors, prepare, sentence, write
from hpo.storage.location import Location, locate
from hpo.storage.retry import (
    RETRY_S,
    RetryPolicy,
    call_with_retries,
    read_transaction,
    set_retry_policy,
    write_transaction,
)
from hpo.storage.rows import (
    DIRECTIONS,
    INTERMEDIATE,
    OF_STUDIES,
    OF_TRIALS,
    PARAMS,
    STUDIES,
    STUDY_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    USER_ATTRS,
    VALUES,
    TrialFields,
    TrialResult,
    attr_rows,
    intermediate_row,
    param_row,
    read_trials,
    utc,
    value_row,
)
from hpo.storage.statements import (
    WORKER,
    are_stored,
    beat,
    claim,
    dialect,
    end_heartbeats,
    held,
    insert_trials,
    lock_study,
    send_back,
    update_trials,
    upsert,
)
from hpo.storage.workers import this_worker


def open_storage(url: str | None = None) -> Storage:
    """Open the storage at `url`, making its tables where there are none; None means HPO_STORAGE or `sqlite:///hpo.db`."""
    # Optuna tells of every study and trial on stderr, psycopg of lost connections; what a user is to know, hpo says.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.WARNING))
    return Storage(locate(url))


class Storage(RDBStorage):
    """See the module. `shown` is the URL as it may be printed, `worker` who claims trials through this object.

    `retry_policy` says how long its calls outlive a server that is away.
    """

    def __init__(self, location: Location) -> None:
        prepare(location)
        try:
            super().__init__(
                location.full_url, engine_options(location), skip_compatibility_check=True, skip_table_creation=True
            )
        except (StorageInternalError, sa.exc.OperationalError) as error:
            # Optuna asks for versions before its engine's errors can be explained.
            cause = getattr(error if isinstance(error, sa.exc.OperationalError) else error.__cause__, "orig", error)
            raise TransientError(f"{location.shown}: {sentence(cause)}") from error
        self.location, self.shown = location, location.shown
        self.worker = this_worker()
        # SQLite has waited for whoever holds the lock before it gives up.
        self.retry_policy = RetryPolicy(RETRY_S if location.file is None else 0.0)
        set_retry_policy(self.engine, self.retry_policy)
        self._claims: dict[int, datetime.datetime] = {}
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

    def set_device(self, device: str) -> None:
        """Name the device on which this process trains; those that claimed trials before do not change."""
        self.worker = replace(self.worker, device=device)

    def create_study(self, name: str, directions: Sequence[StudyDirection], user_attrs: Mapping[str, Any]) -> int:
        """Store a new study with its attributes and return its id; raise DuplicatedStudyError where there is one.

        It has an objective for each of the directions.
        """
        made: list[int] = []

        def work(connection: Connection, uncertain: bool) -> int:
            insert = dialect(connection).insert(STUDIES).values(study_name=name).on_conflict_do_nothing()
            study_id: int | None = connection.execute(insert.returning(STUDIES.c.study_id)).scalar()
            if study_id is None:
                there: int = connection.execute(sa.select(STUDIES.c.study_id).filter_by(study_name=name)).scalar_one()
                if uncertain and there in made:
                    return there
                raise DuplicatedStudyError(f"a study named {name!r} exists")
            made.append(study_id)
            objectives = [
                {"study_id": study_id, "objective": number, "direction": direction}
                for number, direction in enumerate(directions)
            ]
            connection.execute(sa.insert(DIRECTIONS), objectives)
            _set_study_attrs(connection, study_id, user_attrs)
            return study_id

        return write_transaction(self.engine, work)

    def set_study_attrs(
        self,
        study_id: int,
        user_attrs: Mapping[str, Any],
        also: Callable[[Connection], Mapping[str, Any]] | None = None,
        identity: str | None = None,
    ) -> None:
        """Set user attributes of a study, all of them or none; a KeyError where there is no such study.

        `also` looks at the study in the same transaction, and returns further attributes to set, or raises. `identity`
        is that of the study that is meant, where its id could be another's by now; None for any.
        """

        def work(connection: Connection, uncertain: bool) -> None:
            _lock(connection, study_id)
            if identity is not None and _identity(connection, study_id) != identity:
                raise KeyError(models.NOT_FOUND_MSG)
            more = also(connection) if also is not None else {}
            _set_study_attrs(connection, study_id, {**user_attrs, **more})

        write_transaction(self.engine, work)

    def set_study_attr_if_absent(self, study_id: int, key: str, value: Any) -> Any:
        """Set a user attribute of a study unless it has one of that key, and return what it has then.

        So processes that begin at the same time agree. A KeyError where there is no such study.
        """

        def work(connection: Connection, uncertain: bool) -> Any:
            _lock(connection, study_id)
            row = {"study_id": study_id, "key": key, "value_json": json.dumps(value)}
            connection.execute(dialect(connection).insert(STUDY_ATTRS).values(row).on_conflict_do_nothing())
            found = sa.select(STUDY_ATTRS.c.value_json).filter_by(study_id=study_id, key=key)
            return json.loads(connection.execute(found).scalar_one())

        return write_transaction(self.engine, work)

    def create_trials(
        self,
        study_id: int,
        templates: Sequence[FrozenTrial],
        first: int | None = None,
        conditions: ClaimConditions | None = None,
    ) -> list[FrozenTrial]:
        """Store new trials, numbered in this order, each in its template's state with all that the template holds.

        A running trial without a start time starts now; running ones are claimed. With `first`, the number that the
        caller expects the first of them to get, nothing is stored and returned where others have taken that number.
        Raises StudyClosedError where the study does not let them through its conditions.
        """
        now = datetime.datetime.now()
        earlier: list[FrozenTrial] = []

        def work(connection: Connection, uncertain: bool) -> list[FrozenTrial]:
            nonlocal earlier
            # The lock that plain Optuna takes, too: nobody else numbers trials of this study until the end.
            if not lock_study(connection, study_id) and conditions is None:
                raise KeyError(models.NOT_FOUND_MSG)
            if uncertain and are_stored(connection, study_id, earlier):
                return earlier
            if conditions is not None:
                conditions.check(connection)
            count = sa.select(sa.func.count()).select_from(TRIALS).where(TRIALS.c.study_id == study_id)
            number = connection.execute(count).scalar_one()
            if first not in (None, number):
                return []
            earlier = [self._numbered(template, number + i, now) for i, template in enumerate(templates)]
            if earlier:
                insert_trials(connection, study_id, earlier)
            return earlier

        created = write_transaction(self.engine, work)
        for trial in created:
            if trial.state == TrialState.RUNNING:
                self._claims[trial._trial_id] = _known(utc(trial.datetime_start))
        return created

    def claim(
        self, trial_ids: Collection[int], count: int, conditions: ClaimConditions | None = None
    ) -> list[FrozenTrial]:
        """Set up to `count` of the trials running, those that wait, first ones first; no other process gets these.

        Raises StudyClosedError where their study does not let them through its conditions.
        """
        now = _known(utc(datetime.datetime.now()))
        worker = self.worker.to_json()

        def work(connection: Connection, uncertain: bool) -> list[FrozenTrial]:
            of_these = TRIALS.c.trial_id.in_(list(trial_ids))
            if uncertain:  # the time, to the microsecond, tells an earlier run's claims from those of others
                ids = held(connection, dict.fromkeys(trial_ids, now))
                if ids:
                    return read_trials(connection, TRIALS.c.trial_id.in_(ids))
            if conditions is not None:
                conditions.check(connection)
            waiting = sa.select(TRIALS.c.trial_id).where(of_these, TRIALS.c.state == TrialState.WAITING)
            first = waiting.order_by(TRIALS.c.trial_id).limit(count).with_for_update(skip_locked=True)
            new = list(connection.execute(first).scalars())
            claim(connection, new, now, worker)
            return read_trials(connection, TRIALS.c.trial_id.in_(new))

        claimed = write_transaction(self.engine, work) if trial_ids and count > 0 else []
        self._claims.update({trial._trial_id: now for trial in claimed})
        return claimed

    def report(self, step: int, values: Mapping[int, float]) -> set[int]:
        """Store the metric that each trial (by id) reached at a step; return the ids of those no longer claimed."""
        claims = self._claims_of(values)

        def work(connection: Connection, uncertain: bool) -> set[int]:
            ours = held(connection, claims)
            rows = [intermediate_row(trial_id, step, values[trial_id]) for trial_id in values if trial_id in ours]
            upsert(connection, INTERMEDIATE, rows)
            return set(values) - ours

        return self._without_claims(write_transaction(self.engine, work))

    def update_trial(
        self,
        trial_id: int,
        *,
        params: Mapping[str, tuple[float, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Keep parameters (as Optuna stores them) and attributes with a claimed trial; False if it is not claimed."""
        claims = self._claims_of([trial_id])

        def work(connection: Connection, uncertain: bool) -> bool:
            if not held(connection, claims):
                return False
            upsert(connection, PARAMS, [param_row(trial_id, name, *given) for name, given in (params or {}).items()])
            upsert(connection, USER_ATTRS, attr_rows(trial_id, user_attrs or {}))
            upsert(connection, SYSTEM_ATTRS, attr_rows(trial_id, system_attrs or {}))
            return True

        if write_transaction(self.engine, work):
            return True
        self._without_claims({trial_id})
        return False

    def finish(self, endings: Sequence[TrialResult]) -> set[int]:
        """End claimed trials; return the ids of those no longer claimed, whose ending is dropped."""
        ids = {ending.trial_id for ending in endings}
        if len(ids) < len(endings):
            raise ValueError("a trial ends once")
        now = utc(datetime.datetime.now())
        claims = self._claims_of(ids)

        def work(connection: Connection, uncertain: bool) -> set[int]:
            ours = held(connection, claims)
            kept = [ending for ending in endings if ending.trial_id in ours]
            upsert(
                connection, VALUES, [value_row(e.trial_id, n, value) for e in kept for n, value in enumerate(e.values)]
            )
            upsert(connection, USER_ATTRS, [row for e in kept for row in attr_rows(e.trial_id, e.user_attrs)])
            upsert(connection, SYSTEM_ATTRS, [row for e in kept for row in attr_rows(e.trial_id, e.system_attrs)])
            for state in TrialState:
                ended = [ending.trial_id for ending in kept if ending.state == state]
                update_trials(connection, ended, state=state, datetime_complete=now)
            end_heartbeats(connection, ours)
            # The time, to the microsecond, tells an earlier run's endings from those of others.
            before = _ended_at(connection, ids - ours, now) if uncertain else set()
            return ids - ours - before

        lost = write_transaction(self.engine, work)
        self._without_claims(ids)
        return lost

    def requeue(self, trial_ids: Iterable[int], attrs: Mapping[int, Mapping[str, Any]] | None = None) -> set[int]:
        """Send claimed trials back to the queue with their parameters, and without what they had reached.

        `attrs` are system attributes to keep with some of them, by id. Return the ids of those no longer claimed, which
        are left as they are.
        """
        ids = set(trial_ids)
        claims = self._claims_of(ids)
        found: set[int] = set()

        def work(connection: Connection, uncertain: bool) -> set[int]:
            nonlocal found
            ours = held(connection, claims)
            send_back(connection, ours)
            kept = {trial_id: given for trial_id, given in (attrs or {}).items() if trial_id in ours}
            upsert(connection, SYSTEM_ATTRS, [row for i, given in kept.items() for row in attr_rows(i, given)])
            # What an earlier run sent back, if it was kept, may run elsewhere by now.
            found |= ours
            return ids - found

        lost = write_transaction(self.engine, work) if ids else set()
        self._without_claims(ids)
        return lost

    def refresh_heartbeats(self) -> None:
        """Show a sign of life for all claimed trials. Not tried again: the next one does as well."""
        claims = dict(self._claims)
        if claims:
            with write(self.engine) as connection:
                beat(connection, claims)

    @property
    def claimed_ids(self) -> set[int]:
        """The ids of the trials that this storage object has claimed."""
        return set(self._claims)

    def read_trials(self, study_id: int, after: int, ended: Collection[int], parts: TrialFields) -> list[FrozenTrial]:
        """Return the study's trials with ids beyond `after`, and those of `ended` that have ended, by id."""
        states = [state for state in TrialState if state.is_finished()]
        done = TRIALS.c.trial_id.in_(list(ended)) & TRIALS.c.state.in_(states)
        of_study = TRIALS.c.study_id == study_id

        def work(connection: Connection) -> list[FrozenTrial]:
            known = read_trials(connection, of_study & done, parts) if ended else []
            return known + read_trials(connection, of_study & (TRIALS.c.trial_id > after), parts)

        return read_transaction(self.engine, work)

    def delete_study(self, study_id: int) -> None:
        """Delete a study with all its trials, in one transaction; a KeyError where there is none, as in Optuna.

        Optuna's own reads each row before it deletes it, which takes minutes for thousands of learning curves.
        """
        trials = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)

        def work(connection: Connection, uncertain: bool) -> bool:
            if not lock_study(connection, study_id):
                return uncertain
            # Processes that hold trials wait here, and then find them gone.
            connection.execute(trials.order_by(TRIALS.c.trial_id).with_for_update())
            for table in OF_TRIALS:
                connection.execute(sa.delete(table).where(table.c.trial_id.in_(trials)))
            for table in (TRIALS, *OF_STUDIES, STUDIES):
                connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            return True

        if not write_transaction(self.engine, work):
            raise KeyError(models.NOT_FOUND_MSG)

    # Optuna asks these in a session of its own, which knows nothing of a server that is away.

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return a study's id; a KeyError where there is none, as in Optuna."""
        return call_with_retries(self.retry_policy, lambda: super(Storage, self).get_study_id_from_name(study_name))

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return a study's name; a KeyError where there is none, as in Optuna."""
        return call_with_retries(self.retry_policy, lambda: super(Storage, self).get_study_name_from_id(study_id))

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return a study's directions; a KeyError where there is no such study, as in Optuna."""
        return call_with_retries(self.retry_policy, lambda: super(Storage, self).get_study_directions(study_id))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return a study's user attributes; a KeyError where there is no such study, as in Optuna."""
        return call_with_retries(self.retry_policy, lambda: super(Storage, self).get_study_user_attrs(study_id))

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change a trial's state as Optuna does; on SQLite, too, of two processes that want it only one gets it."""
        if self.location.file is not None:
            # The state is read in the transaction that changes it. Optuna goes on in this thread's session.
            try:
                self.scoped_session().connection().exec_driver_sql("BEGIN IMMEDIATE")
            except BaseException:
                self.remove_session()
                raise
        return super().set_trial_state_values(trial_id, state, values)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Read one trial; a KeyError where there is none, as in Optuna."""
        trials = read_transaction(
            self.engine, lambda connection: read_trials(connection, TRIALS.c.trial_id == trial_id)
        )
        if not trials:
            raise KeyError(models.NOT_FOUND_MSG)
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

        def work(connection: Connection) -> list[FrozenTrial]:
            if connection.execute(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)).first() is None:
                raise KeyError(models.NOT_FOUND_MSG)
            old = read_trials(connection, of_study & TRIALS.c.trial_id.in_(known)) if known else []
            return old + read_trials(connection, of_study & (TRIALS.c.trial_id > trial_id_greater_than))

        return read_transaction(self.engine, work)

    def _numbered(self, template: FrozenTrial, number: int, now: datetime.datetime) -> FrozenTrial:
        """A trial of its own, so that template and trial do not change with each other."""
        trial = copy.deepcopy(template)
        trial.number, trial._trial_id = number, -1
        if trial.state == TrialState.RUNNING:
            trial.datetime_start = trial.datetime_start or now
            trial.system_attrs[WORKER] = self.worker.to_json()
        return trial

    def _claims_of(self, trial_ids: Iterable[int]) -> dict[int, datetime.datetime]:
        return {trial_id: self._claims[trial_id] for trial_id in trial_ids if trial_id in self._claims}

    def _without_claims(self, trial_ids: set[int]) -> set[int]:
        for trial_id in trial_ids:
            self._claims.pop(trial_id, None)
        return trial_ids


def _lock(connection: Connection, study_id: int) -> None:
    if not lock_study(connection, study_id):
        raise KeyError(models.NOT_FOUND_MSG)


def _identity(connection: Connection, study_id: int) -> Any:
    found = sa.select(STUDY_ATTRS.c.value_json).filter_by(study_id=study_id, key=IDENTITY)
    return json.loads(connection.execute(found).scalar() or "null")


def _set_study_attrs(connection: Connection, study_id: int, attrs: Mapping[str, Any]) -> None:
    rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]
    upsert(connection, STUDY_ATTRS, rows)


def _ended_at(connection: Connection, trial_ids: Collection[int], time: datetime.datetime | None) -> set[int]:
    ended = TRIALS.c.trial_id.in_(list(trial_ids)) & (TRIALS.c.datetime_complete == time)
    return set(connection.execute(sa.select(TRIALS.c.trial_id).where(ended)).scalars())


def _known(time: datetime.datetime | None) -> datetime.datetime:
    assert time is not None
    return time
