"""Optuna's own methods of its database storage, with retries, and fast where Optuna's are slow.

The results are those of Optuna's methods.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from typing import Any

import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from hpo.optuna_internals import models
from hpo.storage.connections import migrations
from hpo.storage.location import Location
from hpo.storage.sql.retry import RetryPolicy, read_transaction, write_transaction
from hpo.storage.sql.rows import (
    DIRECTIONS,
    OF_STUDIES,
    OF_TRIALS,
    STUDIES,
    STUDY_ATTRS,
    STUDY_SYSTEM_ATTRS,
    TRIALS,
    read_trials,
)
from hpo.storage.sql.statements import lock_study


class OptunaMethods(RDBStorage):
    """Base class of the storage; its constructor is that of the subclass."""

    location: Location
    retry_policy: RetryPolicy

    def delete_study(self, study_id: int) -> None:
        """Delete a study with all its trials in one transaction. Raises KeyError if there is none, as Optuna does.

        Optuna's own method reads each row before it deletes it: minutes for thousands of learning curves.
        """
        trials = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == study_id)

        def work(connection: Connection, uncertain: bool) -> bool:
            if not lock_study(connection, study_id):
                return uncertain
            # Processes that have claimed trials wait for this lock, and then find that the trials are gone.
            connection.execute(trials.order_by(TRIALS.c.trial_id).with_for_update())
            for table in OF_TRIALS:
                connection.execute(sa.delete(table).where(table.c.trial_id.in_(trials)))
            for table in (TRIALS, *OF_STUDIES, STUDIES):
                connection.execute(sa.delete(table).where(table.c.study_id == study_id))
            return True

        if not write_transaction(self.engine, work):
            raise KeyError(models.NOT_FOUND_MSG)

    # Optuna builds ORM objects for these queries, and runs them in a session of its own, without retries.

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of a study. Raises KeyError if there is none, as Optuna does."""
        study_id: int = self._read_study(STUDIES.c.study_id, STUDIES.c.study_name == study_name)[0]
        return study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of a study. Raises KeyError if there is none, as Optuna does."""
        name: str = self._read_study(STUDIES.c.study_name, STUDIES.c.study_id == study_id)[0]
        return name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return the directions of a study. Raises KeyError if there is none, as Optuna does."""
        return list(self._read_study(DIRECTIONS.c.direction, DIRECTIONS.c.study_id == study_id))

    def _read_study(self, column: sa.Column[Any], condition: sa.ColumnElement[bool]) -> Sequence[Any]:
        query = sa.select(column).where(condition).order_by(*column.table.primary_key)
        found = read_transaction(self.engine, lambda connection: connection.execute(query).scalars().all())
        if not found:
            raise KeyError(models.NOT_FOUND_MSG)
        return found

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the user attributes of a study. Raises KeyError if there is none, as Optuna does."""
        return self._read_attrs(STUDY_ATTRS, study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the system attributes of a study. Raises KeyError if there is none, as Optuna does."""
        return self._read_attrs(STUDY_SYSTEM_ATTRS, study_id)

    def _read_attrs(self, table: sa.Table, study_id: int) -> dict[str, Any]:
        query = sa.select(table.c.key, table.c.value_json).where(table.c.study_id == study_id)
        rows = read_transaction(self.engine, lambda connection: connection.execute(query).all())
        if not rows:
            self.get_study_name_from_id(study_id)
        return {key: json.loads(value) for key, value in rows}

    # Optuna reads its migrations at each call; the dashboard asks for both versions when it starts.

    def get_head_version(self) -> str:
        """Return the schema version of this Optuna release."""
        return str(migrations().get_current_head())

    def get_all_versions(self) -> list[str]:
        """Return all schema versions of Optuna."""
        return [script.revision for script in migrations().walk_revisions()]

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set the state and values of a trial as Optuna does; on SQLite, too, only one of two processes succeeds."""
        if self.location.file is not None:
            # Start a write transaction, in which Optuna then reads and changes the state (in this thread's session).
            try:
                self.scoped_session().connection().exec_driver_sql("BEGIN IMMEDIATE")
            except BaseException:
                self.remove_session()
                raise
        return super().set_trial_state_values(trial_id, state, values)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return one trial. Raises KeyError if there is none, as Optuna does."""
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
        # Optuna reads all trials of a study through this method: its cache asks for the trials that were unfinished,
        # and for those after the last finished one. Optuna's own version builds an ORM object for every row.
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
