"""The state of a storage's health, as facts: what answers, what is damaged, what is numbered wrongly, who is silent.

Promises: nothing is made and nothing that a storage holds is changed, not even an SQLite file's journal mode; an answer
is of one moment; what cannot be asked is a StorageError of one line. A server that is away is not waited for.
What the facts mean for a user, and what to do about them, others say.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from optuna.trial import TrialState
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import Connection

from hpo.errors import StorageError
from hpo.optuna_internals import models
from hpo.storage.connections import TunedConnection, engine_options, error_line, explain_errors, read, schema_is_ready
from hpo.storage.heartbeats import RunningTrial, read_running
from hpo.storage.location import Location
from hpo.storage.rows import HEARTBEATS, STUDIES, TRIALS

TRIPS = 5
WHOLE_CHECK_BYTES = 2**28
"""The largest file whose indices are compared with its tables, too: some seconds' work."""
MOST_LISTED = 6
"""Of problems and numbers; the lists may be cut short there."""
TABLES = models.BaseModel.metadata.tables
DIALECT = sqlite.dialect()  # the SQL below is standard
KINDS = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


class ReadOnlyConnection(TunedConnection):
    """An SQLite connection that refuses to write."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA query_only = ON")


@dataclass(frozen=True)
class Connectivity:
    """What answers, and how fast. `skew_s` is how far the server's clock is ahead; None for a file, which has none."""

    kind: str
    version: str
    connect_s: float
    round_trip_s: float
    skew_s: float | None


@dataclass(frozen=True)
class Schema:
    """The revision of Optuna's tables, "" where there are none yet, and the tables and columns that they lack."""

    revision: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Damage:
    """What an SQLite file's own checks say: the first few problems, and the orphaned rows of Optuna's tables.

    `orphans` counts them by their table and the table that has not got what they belong to; `whole` is whether indices
    were compared with their tables.
    """

    problems: tuple[str, ...]
    orphans: Mapping[tuple[str, str], int]
    whole: bool


@dataclass(frozen=True)
class FileState:
    """An SQLite file on its disk. `size` counts the write-ahead log, too."""

    journal_mode: str
    size: int
    free: int


@dataclass(frozen=True)
class NumberingProblem:
    """The numbers of a study's trials: the first few that two or more trials have, and that none has."""

    study_id: int
    study: str
    trials: int
    duplicates: tuple[int, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True)
class RunningWithoutHeartbeat:
    """A trial that runs without a heartbeat; `started` is in UTC, None where it was never told."""

    study: str
    number: int
    started: datetime.datetime | None


class StorageHealth:
    """Asks a storage about its health; a file has to be there. To be closed in the end."""

    def __init__(self, location: Location) -> None:
        options = engine_options(location)
        if location.file is not None:
            options["connect_args"]["factory"] = ReadOnlyConnection
        else:
            options["execution_options"] = {"postgresql_readonly": True}
        try:
            self.engine = sa.create_engine(location.url, **options)
        except sa.exc.ArgumentError as error:
            raise StorageError(f"{location.shown}: {error_line(error)}") from error
        self.location, self.shown = location, location.shown
        explain_errors(self.engine, location.shown)

    def close(self) -> None:
        """Close the connections."""
        self.engine.dispose()

    def connectivity(self) -> Connectivity:
        """Connect, and ask a few times for what costs nothing; the quickest answer counts."""
        start = time.perf_counter()
        with self.engine.connect() as connection:
            connect_s = time.perf_counter() - start
            trips = [_trip(connection) for _ in range(TRIPS)]
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
        round_trip_s, skew_s = min(trips, key=lambda trip: trip[0])
        return Connectivity(KINDS[self.engine.dialect.name], version, connect_s, round_trip_s, skew_s)

    def schema(self) -> Schema:
        """Return which of Optuna's tables are there; those of another Optuna are a StorageError."""
        with self._view() as connection:
            if not schema_is_ready(connection, self.shown):
                return Schema("", ())
            revision = MigrationContext.configure(connection).get_current_revision() or ""
            inspector = sa.inspect(connection)
            there = set(inspector.get_table_names())
            missing: list[str] = []
            for table in TABLES.values():
                if table.name not in there:
                    missing.append(table.name)
                    continue
                columns = {column["name"] for column in inspector.get_columns(table.name)}
                missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in columns]
            return Schema(revision, tuple(missing))

    def damage(self) -> Damage | None:
        """Return what SQLite finds wrong with the file; None for a server, which has no such check."""
        if self.location.file is None:
            return None
        whole = _size(self.location.file) <= WHOLE_CHECK_BYTES
        with self._view() as connection:
            check = f"PRAGMA {'integrity_check' if whole else 'quick_check'}({MOST_LISTED})"
            problems = [" ".join(str(line).split()) for line in connection.exec_driver_sql(check).scalars()]
            found = connection.exec_driver_sql("PRAGMA foreign_key_check")
            orphans = Counter((table, parent) for table, _, parent, _ in found if table in TABLES)
        return Damage(tuple(line for line in problems if line != "ok"), dict(orphans), whole)

    def file_state(self) -> FileState | None:
        """Return how the file lies on its disk; None for a server."""
        file = self.location.file
        if file is None:
            return None
        with self._view() as connection:
            mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
        return FileState(mode, _size(file), shutil.disk_usage(file.parent).free)

    def connections(self) -> tuple[int, int] | None:
        """Return how many connections the server has, and how many users like this one can have; None for a file."""
        if self.location.file is not None:
            return None
        used = sa.text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        limits = sa.text(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
        with self._view() as connection:
            return connection.execute(used).scalar_one(), connection.execute(limits).scalar_one()

    def numbering_problems(self) -> tuple[int, list[NumberingProblem]]:
        """Return how many studies there are, and those whose trials are not numbered 0, 1, 2 and so on."""
        number, count = TRIALS.c.number, sa.func.count()
        last = sa.func.coalesce(sa.func.max(number), -1)
        of_study = sa.select(TRIALS.c.study_id, count, sa.func.count(number.distinct()), last)
        with self._view() as connection:
            names = _names(connection)
            wrong = [
                _numbering(connection, study_id, names.get(study_id, ""))
                for study_id, trials, distinct, highest in connection.execute(of_study.group_by(TRIALS.c.study_id))
                if not trials == distinct == highest + 1
            ]
        return len(names), wrong

    def running(self) -> list[tuple[str, RunningTrial]]:
        """Return the running trials that have a heartbeat, each with its study's name."""
        with self._view() as connection:
            names = _names(connection)
            return [(names.get(trial.study_id, ""), trial) for trial in read_running(connection)]

    def running_without_heartbeat(self) -> list[RunningWithoutHeartbeat]:
        """Return the running trials that have no heartbeat, the oldest first."""
        watched = sa.select(HEARTBEATS.c.trial_id)
        select = sa.select(STUDIES.c.study_name, TRIALS.c.number, TRIALS.c.datetime_start).join_from(TRIALS, STUDIES)
        of_these = select.where(TRIALS.c.state == TrialState.RUNNING, TRIALS.c.trial_id.not_in(watched))
        with self._view() as connection:
            return [RunningWithoutHeartbeat(*row) for row in connection.execute(of_these.order_by(TRIALS.c.trial_id))]

    @contextlib.contextmanager
    def _view(self) -> Iterator[Connection]:
        try:
            with read(self.engine) as connection:
                yield connection
        except sa.exc.DBAPIError as error:  # what connections.py passes on, such as a right that the user has not
            raise StorageError(f"{self.shown}: the database answered: {error_line(error.orig or error)}") from error
        except (ValueError, TypeError, LookupError) as error:  # rows that nobody wrote as they are
            said = error_line(error)
            raise StorageError(f"{self.shown}: holds rows that cannot be read ({said}); restore a backup") from error


def skew(before: float, server: float, after: float) -> float:
    """Return how far a clock is ahead that was read between two looks at this machine's, taken half-way between."""
    return server - (before + after) / 2


def _trip(connection: Connection) -> tuple[float, float | None]:
    """Return how long one question takes, and the skew that it shows."""
    on_server = connection.dialect.name == "postgresql"
    ask = sa.text("SELECT extract(epoch FROM clock_timestamp())" if on_server else "SELECT count(*) FROM sqlite_master")
    before, start = time.time(), time.perf_counter()
    answer = float(connection.execute(ask).scalar_one())
    round_trip_s = time.perf_counter() - start
    return round_trip_s, skew(before, answer, before + round_trip_s) if on_server else None


def _names(connection: Connection) -> dict[int, str]:
    return {row.study_id: row.study_name for row in connection.execute(sa.select(STUDIES))}


def _numbering(connection: Connection, study_id: int, name: str) -> NumberingProblem:
    select = sa.select(TRIALS.c.number).where(TRIALS.c.study_id == study_id)
    found = Counter(connection.execute(select).scalars())
    duplicates = sorted(number for number, count in found.items() if number is not None and count > 1)
    last = max((number for number in found if number is not None), default=-1)
    missing = itertools.islice((number for number in range(last) if number not in found), MOST_LISTED)
    return NumberingProblem(study_id, name, found.total(), tuple(duplicates[:MOST_LISTED]), tuple(missing))


def _size(file: Path) -> int:
    size = file.stat().st_size
    with contextlib.suppress(FileNotFoundError):  # the last to close the file takes its log away
        size += file.with_name(f"{file.name}-wal").stat().st_size
    return size


def delete_orphans_sql(orphans: Iterable[tuple[str, str]]) -> str:
    """Return the SQL that deletes the rows of these tables that belong to nothing in the other ones."""
    statements = []
    for name, parent in orphans:
        (key,) = TABLES[parent].primary_key
        statements.append(_text(sa.delete(TABLES[name]).where(TABLES[name].c[key.name].not_in(sa.select(key)))))
    return "; ".join(statements)


def renumber_sql(study_ids: Iterable[int]) -> str:
    """Return the SQL that numbers the trials of these studies anew, in the order of their ids. They keep all else."""
    earlier = TRIALS.alias("earlier")
    before = (earlier.c.study_id == TRIALS.c.study_id) & (earlier.c.trial_id < TRIALS.c.trial_id)
    number = sa.select(sa.func.count()).select_from(earlier).where(before).scalar_subquery()
    return _text(sa.update(TRIALS).where(TRIALS.c.study_id.in_(list(study_ids))).values(number=number))


def _text(statement: sa.Delete | sa.Update) -> str:
    return " ".join(str(statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})).split())
