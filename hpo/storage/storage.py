"""Storage: Optuna's RDBStorage with further methods that process a whole population in one transaction.

Promises: a call is committed whole or not at all; its rows are those that plain Optuna would have written; trials are
numbered without gaps, however many processes create them. A storage object that has claimed a trial (created it as
RUNNING, or claimed it from the queue) is the only one that can report, finish or requeue it, until another process
requeues it as orphaned; later calls of the first object then change nothing, and their return values say so. Calls
that change trials or create a study survive a restart of the server, and take effect once. Safe for threads and
processes.
This module knows nothing of samplers, and does not check that the trials of a study share a search space.
"""

from __future__ import annotations

import copy
import datetime
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.distributions import BaseDistribution
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from hpo.optuna_internals import models
from hpo.storage.connections import TransientError, engine_options, error_line, explain_errors, prepare, write
from hpo.storage.location import Location, locate
from hpo.storage.sql.claim_conditions import IDENTITY, ClaimConditions
from hpo.storage.sql.optuna_methods import OptunaMethods
from hpo.storage.sql.retry import (
    RETRY_S,
    RetryPolicy,
    read_transaction,
    set_retry_policy,
    write_transaction,
)
from hpo.storage.sql.rows import (
    INTERMEDIATE,
    PARAMS,
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
from hpo.storage.sql.statements import (
    FROZEN,
    RUNG,
    WORKER,
    are_stored,
    claim_trials,
    count_trials,
    delete_heartbeats,
    delete_system_attrs,
    ended_at,
    insert_study,
    insert_study_attr,
    insert_trials,
    lock_claimable,
    lock_claimed,
    lock_study,
    read_study_attr,
    requeue_trials,
    set_study_attrs,
    update_heartbeats,
    update_trials,
    upsert,
)
from hpo.storage.workers import this_worker


def open_storage(url: str | None = None) -> Storage:
    """Open the storage at `url`, creating missing tables; None means HPO_STORAGE or `sqlite:///hpo.db`."""
    # Optuna logs every study and trial to stderr, psycopg every lost connection; hpo has messages of its own.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(max(optuna.logging.get_verbosity(), optuna.logging.WARNING))
    return Storage(locate(url))


class Storage(OptunaMethods):
    """A storage at one location, as the module's docstring describes it.

    `shown` is the URL without password, `worker` the process that claims trials through this object, `retry_policy` the
    limit for retries while the server cannot be reached.
    """

    def __init__(self, location: Location) -> None:
        prepare(location)
        try:
            super().__init__(
                location.full_url, engine_options(location), skip_compatibility_check=True, skip_table_creation=True
            )
        except (StorageInternalError, sa.exc.OperationalError) as error:
            # Optuna's constructor connects before `explain_errors` can be registered.
            cause = getattr(error if isinstance(error, sa.exc.OperationalError) else error.__cause__, "orig", error)
            raise TransientError(f"{location.shown}: {error_line(cause)}") from error
        self.location, self.shown = location, location.shown
        self.worker = this_worker()
        # No retries for SQLite: it has already waited for the lock.
        self.retry_policy = RetryPolicy(RETRY_S if location.file is None else 0.0)
        set_retry_policy(self.engine, self.retry_policy)
        self._claims: dict[int, datetime.datetime] = {}
        explain_errors(self.engine, location.shown)

    def __reduce__(self) -> tuple[Callable[[Location], Storage], tuple[Location]]:
        # A process that unpickles the storage opens its own connections.
        return type(self), (self.location,)

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        # Optuna formats the URL as a template, in which a brace of a file name would be a field.
        return template

    def close(self) -> None:
        """Close the connections. The storage can be used again: it then opens new ones."""
        self.remove_session()
        self.engine.dispose()

    def set_device(self, device: str) -> None:
        """Set the device that is recorded with the trials that this object claims from now on."""
        self.worker = replace(self.worker, device=device)

    def create_study(self, name: str, directions: Sequence[StudyDirection], user_attrs: Mapping[str, Any]) -> int:
        """Store a new study with one objective for each direction, and return its id.

        Raises DuplicatedStudyError if a study has the name.
        """
        created: list[int] = []

        def work(connection: Connection, uncertain: bool) -> int:
            study_id, is_new = insert_study(connection, name, directions)
            if is_new:
                created.append(study_id)
                set_study_attrs(connection, study_id, user_attrs)
            elif not (uncertain and study_id in created):
                raise DuplicatedStudyError(f"a study named {name!r} exists")
            return study_id

        return write_transaction(self.engine, work)

    def set_study_attrs(
        self,
        study_id: int,
        user_attrs: Mapping[str, Any],
        check: Callable[[Connection], Mapping[str, Any]] | None = None,
        identity: str | None = None,
    ) -> None:
        """Set user attributes of a study in one transaction.

        `check` is called in that transaction; it returns further attributes to set, or raises. Raises KeyError if there
        is no study with the id, or if `identity` is not None and the study with the id has another one.
        """

        def work(connection: Connection, uncertain: bool) -> None:
            _lock(connection, study_id)
            if identity is not None and read_study_attr(connection, study_id, IDENTITY) != identity:
                raise KeyError(models.NOT_FOUND_MSG)
            more = check(connection) if check is not None else {}
            set_study_attrs(connection, study_id, {**user_attrs, **more})

        write_transaction(self.engine, work)

    def set_study_attr_if_absent(self, study_id: int, key: str, value: Any) -> Any:
        """Set a user attribute of a study unless the study has it already; return the stored value.

        So processes that start at the same time agree on one value. Raises KeyError if there is no such study.
        """

        def work(connection: Connection, uncertain: bool) -> Any:
            _lock(connection, study_id)
            insert_study_attr(connection, study_id, key, value)
            return read_study_attr(connection, study_id, key)

        return write_transaction(self.engine, work)

    def create_trials(
        self,
        study_id: int,
        templates: Sequence[FrozenTrial],
        first: int | None = None,
        conditions: ClaimConditions | None = None,
    ) -> list[FrozenTrial]:
        """Store a new trial for each template, numbered in their order, and return the trials.

        Trials in state RUNNING are claimed; their start time is now unless the template has one. `first` is the number
        that the caller expects for the first trial: if another process has used it, nothing is stored, and the returned
        list is empty. Raises StudyClosedError if the study does not meet the `conditions`.
        """
        now = datetime.datetime.now()
        earlier: list[FrozenTrial] = []

        def work(connection: Connection, uncertain: bool) -> list[FrozenTrial]:
            nonlocal earlier
            # Plain Optuna takes the same lock: no other process numbers trials of the study until the transaction ends.
            if not lock_study(connection, study_id) and conditions is None:
                raise KeyError(models.NOT_FOUND_MSG)
            if uncertain and are_stored(connection, study_id, earlier):
                return earlier
            if conditions is not None:
                conditions.check(connection)
            number = count_trials(connection, study_id)
            if first not in (None, number):
                return []
            earlier = [self._numbered(template, number + i, now) for i, template in enumerate(templates)]
            if earlier:
                insert_trials(connection, study_id, earlier)
            return earlier

        created = write_transaction(self.engine, work)
        for trial in created:
            if trial.state == TrialState.RUNNING and trial.datetime_start is not None:
                self._claims[trial._trial_id] = utc(trial.datetime_start)
        return created

    def claim(
        self, trial_ids: Collection[int], count: int, conditions: ClaimConditions | None = None, frozen: bool = False
    ) -> list[FrozenTrial]:
        """Set up to `count` of the trials from WAITING to RUNNING, in the order of ids; no other process gets them.

        With `frozen`, claim trials that another process has frozen instead: that process loses its claims. Raises
        StudyClosedError if their study does not meet the `conditions`.
        """
        now = utc(datetime.datetime.now())
        worker = self.worker.to_json()

        def work(connection: Connection, uncertain: bool) -> list[FrozenTrial]:
            if uncertain:  # the start time, to the microsecond, identifies the claims of an earlier run
                ids = lock_claimed(connection, dict.fromkeys(trial_ids, now))
                if ids:
                    return read_trials(connection, TRIALS.c.trial_id.in_(ids))
            if conditions is not None:
                conditions.check(connection)
            new = lock_claimable(connection, trial_ids, count, frozen)
            claim_trials(connection, new, now, worker)
            return read_trials(connection, TRIALS.c.trial_id.in_(new))

        claimed = write_transaction(self.engine, work) if trial_ids and count > 0 else []
        self._claims.update({trial._trial_id: now for trial in claimed})
        return claimed

    def report(self, step: int, values: Mapping[int, float]) -> set[int]:
        """Store the metric of each trial (by id) at a step; return the ids of the trials that are no longer claimed."""
        return self.report_curves({trial_id: {step: value} for trial_id, value in values.items()})

    def report_curves(self, curves: Mapping[int, Mapping[int, float]]) -> set[int]:
        """Store the metric of each trial (by id) at several steps; return the ids of those no longer claimed."""

        def store(connection: Connection, claimed: set[int]) -> None:
            by_id = {trial_id: curve for trial_id, curve in curves.items() if trial_id in claimed}
            rows = [intermediate_row(i, step, value) for i, curve in by_id.items() for step, value in curve.items()]
            upsert(connection, INTERMEDIATE, rows)

        return self._change_claimed(curves, store)

    def freeze(self, frozen: Mapping[int, tuple[int, Sequence[float]]]) -> set[int]:
        """Mark claimed trials (by id) as frozen at a rung; return the ids of those no longer claimed.

        A value is the rung's epoch with the trial's values there, one a metric. Frozen trials stay claimed, with
        heartbeats.
        """
        attrs = {i: {FROZEN: epoch, f"{RUNG}{epoch}": list(values)} for i, (epoch, values) in frozen.items()}

        def mark(connection: Connection, claimed: set[int]) -> None:
            upsert(connection, SYSTEM_ATTRS, [row for i in attrs if i in claimed for row in attr_rows(i, attrs[i])])

        return self._change_claimed(attrs, mark)

    def thaw(self, trial_ids: Collection[int]) -> set[int]:
        """Mark claimed trials as no longer frozen; return the ids of those no longer claimed."""
        return self._change_claimed(
            trial_ids, lambda connection, claimed: delete_system_attrs(connection, claimed, FROZEN)
        )

    def update_trial(
        self,
        trial_id: int,
        *,
        params: Mapping[str, tuple[float, BaseDistribution]] | None = None,
        user_attrs: Mapping[str, Any] | None = None,
        system_attrs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Set parameters (as Optuna stores them) and attributes of a trial; return False if it is not claimed."""

        def store(connection: Connection, claimed: set[int]) -> None:
            if claimed:
                rows = [param_row(trial_id, name, *param) for name, param in (params or {}).items()]
                upsert(connection, PARAMS, rows)
                upsert(connection, USER_ATTRS, attr_rows(trial_id, user_attrs or {}))
                upsert(connection, SYSTEM_ATTRS, attr_rows(trial_id, system_attrs or {}))

        return not self._change_claimed([trial_id], store)

    def finish(self, results: Sequence[TrialResult]) -> set[int]:
        """Store the results of claimed trials; return the ids of those no longer claimed: their results are lost."""
        ids = {result.trial_id for result in results}
        if len(ids) < len(results):
            raise ValueError("two results of one trial")
        now = utc(datetime.datetime.now())
        claims = self._claims_of(ids)

        def work(connection: Connection, uncertain: bool) -> set[int]:
            ours = lock_claimed(connection, claims)
            stored = [result for result in results if result.trial_id in ours]
            values = [value_row(r.trial_id, n, value) for r in stored for n, value in enumerate(r.values)]
            upsert(connection, VALUES, values)
            upsert(connection, USER_ATTRS, [row for r in stored for row in attr_rows(r.trial_id, r.user_attrs)])
            upsert(connection, SYSTEM_ATTRS, [row for r in stored for row in attr_rows(r.trial_id, r.system_attrs)])
            for state in TrialState:
                ended = [result.trial_id for result in stored if result.state == state]
                update_trials(connection, ended, state=state, datetime_complete=now)
            delete_heartbeats(connection, ours)
            delete_system_attrs(connection, ours, FROZEN)
            # The end time, to the microsecond, identifies the results of an earlier run.
            before = ended_at(connection, ids - ours, now) if uncertain else set()
            return ids - ours - before

        lost = write_transaction(self.engine, work)
        self._without_claims(ids)
        return lost

    def requeue(self, trial_ids: Iterable[int], attrs: Mapping[int, Mapping[str, Any]] | None = None) -> set[int]:
        """Set claimed trials to WAITING: their parameters stay, their learning curves are deleted.

        `attrs` are system attributes to set, by trial id. Returns the ids of the trials no longer claimed, which do not
        change.
        """
        ids = set(trial_ids)
        claims = self._claims_of(ids)
        requeued: set[int] = set()

        def work(connection: Connection, uncertain: bool) -> set[int]:
            nonlocal requeued
            ours = lock_claimed(connection, claims)
            requeue_trials(connection, ours)
            rows = [row for i, of_trial in (attrs or {}).items() if i in ours for row in attr_rows(i, of_trial)]
            upsert(connection, SYSTEM_ATTRS, rows)
            # Trials that an earlier, committed run requeued may have been claimed by another process.
            requeued |= ours
            return ids - requeued

        lost = write_transaction(self.engine, work) if ids else set()
        self._without_claims(ids)
        return lost

    def refresh_heartbeats(self) -> None:
        """Send a heartbeat for all claimed trials. Not retried: the next heartbeat does the same."""
        claims = dict(self._claims)
        if claims:
            with write(self.engine) as connection:
                update_heartbeats(connection, claims)

    @property
    def claimed_ids(self) -> set[int]:
        """The ids of the trials that this storage object has claimed."""
        return set(self._claims)

    def read_trials(
        self, study_id: int, after: int, unfinished: Collection[int], fields: TrialFields
    ) -> list[FrozenTrial]:
        """Return the study's trials with ids above `after`, and those of `unfinished` that have ended, by id."""
        states = [state for state in TrialState if state.is_finished()]
        ended = TRIALS.c.trial_id.in_(list(unfinished)) & TRIALS.c.state.in_(states)
        of_study = TRIALS.c.study_id == study_id

        def work(connection: Connection) -> list[FrozenTrial]:
            known = read_trials(connection, of_study & ended, fields) if unfinished else []
            return known + read_trials(connection, of_study & (TRIALS.c.trial_id > after), fields)

        return read_transaction(self.engine, work)

    def read_unfinished(self, trial_ids: Collection[int], fields: TrialFields) -> list[FrozenTrial]:
        """Return those of the trials that have not ended, by id."""
        unfinished = TRIALS.c.state.in_([state for state in TrialState if not state.is_finished()])
        condition = TRIALS.c.trial_id.in_(list(trial_ids)) & unfinished
        return read_transaction(self.engine, lambda connection: read_trials(connection, condition, fields))

    def _numbered(self, template: FrozenTrial, number: int, now: datetime.datetime) -> FrozenTrial:
        """Return a deep copy of the template as a trial with this number and no id yet."""
        trial = copy.deepcopy(template)
        trial.number, trial._trial_id = number, -1
        if trial.state == TrialState.RUNNING:
            trial.datetime_start = trial.datetime_start or now
            trial.system_attrs[WORKER] = self.worker.to_json()
        return trial

    def _change_claimed(self, trial_ids: Collection[int], change: Callable[[Connection, set[int]], None]) -> set[int]:
        """Call `change` with the trials that are still claimed, in one transaction; return the ids of the others."""
        claims = self._claims_of(trial_ids)

        def work(connection: Connection, uncertain: bool) -> set[int]:
            claimed = lock_claimed(connection, claims)
            change(connection, claimed)
            return set(trial_ids) - claimed

        return self._without_claims(write_transaction(self.engine, work))

    def _claims_of(self, trial_ids: Iterable[int]) -> dict[int, datetime.datetime]:
        return {trial_id: self._claims[trial_id] for trial_id in trial_ids if trial_id in self._claims}

    def _without_claims(self, trial_ids: set[int]) -> set[int]:
        for trial_id in trial_ids:
            self._claims.pop(trial_id, None)
        return trial_ids


def _lock(connection: Connection, study_id: int) -> None:
    if not lock_study(connection, study_id):
        raise KeyError(models.NOT_FOUND_MSG)
