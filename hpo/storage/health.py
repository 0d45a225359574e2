"""Health checks of a storage: connectivity, schema, damage, disk, trial numbers and running trials, as plain facts.

Promises: a check creates nothing and changes nothing in the storage, not even an SQLite file's journal mode; the facts
of one check are of one moment; a failed check is a StorageError of one line. An unreachable server is not retried. The
functions at the end return SQL that repairs a storage; hpo never runs it. `hpo.results.doctor` decides what the facts
mean for a user.
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
from hpo.storage.sql.rows import HEARTBEATS, STUDIES, TRIALS

ROUND_TRIPS = 5
FULL_CHECK_BYTES = 2**28
"""The largest file whose indexes are compared with its tables, too, which takes a few seconds."""
MAX_LISTED = 6
"""The maximum number of problems, and of trial numbers, in a list."""
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
    """The database and its response times. `skew_s` is how far the server's clock is ahead; None for a file."""

    kind: str
    version: str
    connect_s: float
    round_trip_s: float
    skew_s: float | None


@dataclass(frozen=True)
class Schema:
    """The revision of Optuna's tables ("" if there are no tables yet), and the missing tables and columns."""

    revision: str
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Damage:
    """The result of SQLite's own checks of a file: the first few problems, and orphaned rows of Optuna's tables.

    `orphans` counts the rows by their table and the parent table that lacks their parent; `whole` is True if indexes
    were compared with their tables.
    """

    problems: tuple[str, ...]
    orphans: Mapping[tuple[str, str], int]
    whole: bool


@dataclass(frozen=True)
class FileState:
    """An SQLite file: its journal mode, its size with the write-ahead log, and the free bytes of its disk."""

    journal_mode: str
    size: int
    free: int


@dataclass(frozen=True)
class NumberingProblem:
    """A study with wrong trial numbers: the first few numbers that several trials have, or that no trial has."""

    study_id: int
    study: str
    trials: int
    duplicates: tuple[int, ...]
    missing: tuple[int, ...]


@dataclass(frozen=True)
class RunningWithoutHeartbeat:
    """A running trial without a heartbeat; `started` is in UTC, None if it is not stored."""

    study: str
    number: int
    started: datetime.datetime | None


class StorageHealth:
    """A read-only connection to a storage for health checks. An SQLite file must exist. Close it after use."""

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
        """Connect, measure a few round trips of a trivial query, and return the fastest."""
        start = time.perf_counter()
        with self.engine.connect() as connection:
            connect_s = time.perf_counter() - start
            trips = [_round_trip(connection) for _ in range(ROUND_TRIPS)]
            version = ".".join(map(str, connection.dialect.server_version_info or ()))
        round_trip_s, skew_s = min(trips, key=lambda trip: trip[0])
        return Connectivity(KINDS[self.engine.dialect.name], version, connect_s, round_trip_s, skew_s)

    def schema(self) -> Schema:
        """Return which of Optuna's tables exist. Raises StorageError if they are of another Optuna version."""
        with self._reading() as connection:
            if not schema_is_ready(connection, self.shown):
                return Schema("", ())
            revision = MigrationContext.configure(connection).get_current_revision() or ""
            inspector = sa.inspect(connection)
            existing = set(inspector.get_table_names())
            missing: list[str] = []
            for table in TABLES.values():
                if table.name not in existing:
                    missing.append(table.name)
                    continue
                columns = {column["name"] for column in inspector.get_columns(table.name)}
                missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in columns]
            return Schema(revision, tuple(missing))

    def damage(self) -> Damage | None:
        """Return the damage that SQLite finds in the file; None for a server, which has no such check."""
        if self.location.file is None:
            return None
        whole = _size(self.location.file) <= FULL_CHECK_BYTES
        with self._reading() as connection:
            check = f"PRAGMA {'integrity_check' if whole else 'quick_check'}({MAX_LISTED})"
            problems = [" ".join(str(line).split()) for line in connection.exec_driver_sql(check).scalars()]
            found = connection.exec_driver_sql("PRAGMA foreign_key_check")
            orphans = Counter((table, parent) for table, _, parent, _ in found if table in TABLES)
        return Damage(tuple(line for line in problems if line != "ok"), dict(orphans), whole)

    def file_state(self) -> FileState | None:
        """Return the journal mode, size and free disk space of the file; None for a server."""
        file = self.location.file
        if file is None:
            return None
        with self._reading() as connection:
            mode = str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
        return FileState(mode, _size(file), shutil.disk_usage(file.parent).free)

    def connections(self) -> tuple[int, int] | None:
        """Return the number of connections to the server, and the maximum for ordinary users; None for a file."""
        if self.location.file is not None:
            return None
        used = sa.text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        limits = sa.text(
            "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
        )
        with self._reading() as connection:
            return connection.execute(used).scalar_one(), connection.execute(limits).scalar_one()

    def numbering_problems(self) -> tuple[int, list[NumberingProblem]]:
        """Return the number of studies, and the studies whose trials are not numbered 0, 1, 2 and so on."""
        number, count = TRIALS.c.number, sa.func.count()
        last = sa.func.coalesce(sa.func.max(number), -1)
        of_study = sa.select(TRIALS.c.study_id, count, sa.func.count(number.distinct()), last)
        with self._reading() as connection:
            names = _names(connection)
            problems = [
                _numbering_problem(connection, study_id, names.get(study_id, ""))
                for study_id, trials, distinct, highest in connection.execute(of_study.group_by(TRIALS.c.study_id))
                if not trials == distinct == highest + 1
            ]
        return len(names), problems

    def running(self) -> list[tuple[str, RunningTrial]]:
        """Return the running trials that have a heartbeat, each with the name of its study."""
        with self._reading() as connection:
            names = _names(connection)
            return [(names.get(trial.study_id, ""), trial) for trial in read_running(connection)]

    def running_without_heartbeat(self) -> list[RunningWithoutHeartbeat]:
        """Return the running trials without a heartbeat, oldest first."""
        with_heartbeat = sa.select(HEARTBEATS.c.trial_id)
        select = sa.select(STUDIES.c.study_name, TRIALS.c.number, TRIALS.c.datetime_start).join_from(TRIALS, STUDIES)
        select = select.where(TRIALS.c.state == TrialState.RUNNING, TRIALS.c.trial_id.not_in(with_heartbeat))
        with self._reading() as connection:
            return [RunningWithoutHeartbeat(*row) for row in connection.execute(select.order_by(TRIALS.c.trial_id))]

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with read(self.engine) as connection:
                yield connection
        except sa.exc.DBAPIError as error:  # errors that connections.py does not convert, such as missing permissions
            raise StorageError(f"{self.shown}: database error: {error_line(error.orig or error)}") from error
        except (ValueError, TypeError, LookupError) as error:  # invalid values in rows
            raise StorageError(
                f"{self.shown}: some rows cannot be read ({error_line(error)}); restore a backup"
            ) from error


def skew(before: float, server: float, after: float) -> float:
    """Return how far a server's clock is ahead of the midpoint of two readings of this machine's clock."""
    return server - (before + after) / 2


def _round_trip(connection: Connection) -> tuple[float, float | None]:
    """Return the duration of a trivial query, and the skew of the server's clock."""
    on_server = connection.dialect.name == "postgresql"
    sql = "SELECT extract(epoch FROM clock_timestamp())" if on_server else "SELECT count(*) FROM sqlite_master"
    before, start = time.time(), time.perf_counter()
    answer = float(connection.execute(sa.text(sql)).scalar_one())
    round_trip_s = time.perf_counter() - start
    return round_trip_s, skew(before, answer, before + round_trip_s) if on_server else None


def _names(connection: Connection) -> dict[int, str]:
    return {row.study_id: row.study_name for row in connection.execute(sa.select(STUDIES))}


def _numbering_problem(connection: Connection, study_id: int, name: str) -> NumberingProblem:
    select = sa.select(TRIALS.c.number).where(TRIALS.c.study_id == study_id)
    found = Counter(connection.execute(select).scalars())
    duplicates = sorted(number for number, count in found.items() if number is not None and count > 1)
    last = max((number for number in found if number is not None), default=-1)
    missing = itertools.islice((number for number in range(last) if number not in found), MAX_LISTED)
    return NumberingProblem(study_id, name, found.total(), tuple(duplicates[:MAX_LISTED]), tuple(missing))


def _size(file: Path) -> int:
    size = file.stat().st_size
    with contextlib.suppress(FileNotFoundError):  # the last process that closes the file deletes the log
        size += file.with_name(f"{file.name}-wal").stat().st_size
    return size


def delete_orphans_sql(orphans: Iterable[tuple[str, str]]) -> str:
    """Return SQL that deletes orphaned rows: for each (table, parent table), the rows without a parent."""
    statements = []
    for name, parent in orphans:
        (key,) = TABLES[parent].primary_key
        statements.append(_sql(sa.delete(TABLES[name]).where(TABLES[name].c[key.name].not_in(sa.select(key)))))
    return "; ".join(statements)


def renumber_sql(study_ids: Iterable[int]) -> str:
    """Return SQL that numbers the trials of these studies 0, 1, 2 and so on in the order of their ids."""
    earlier = TRIALS.alias("earlier")
    before = (earlier.c.study_id == TRIALS.c.study_id) & (earlier.c.trial_id < TRIALS.c.trial_id)
    number = sa.select(sa.func.count()).select_from(earlier).where(before).scalar_subquery()
    return _sql(sa.update(TRIALS).where(TRIALS.c.study_id.in_(list(study_ids))).values(number=number))


def _sql(statement: sa.Delete | sa.Update) -> str:
    return " ".join(str(statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})).split())
