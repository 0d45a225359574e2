"""Database connections: their settings, the creation of the tables, and error messages.

Promises: an SQLite connection waits for other processes instead of failing, checks foreign keys, and does not wait for
the disk at every commit; the tables are created whole or not at all, however many processes open a new storage at the
same time; tables of another Optuna schema are refused and not changed; a database error becomes a StorageError of one
line, or a TransientError if a retry can help; a pooled connection to a server is checked before use.
This module knows the schema as a whole, and nothing of the meaning of rows.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import alembic.config
import alembic.migration
import alembic.script
import optuna
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, ExceptionContext

from hpo.errors import StorageError
from hpo.optuna_internals import models
from hpo.storage.location import Location, mask

BUSY_TIMEOUT_S = 30.0
JOURNAL_RETRY_S = 0.02
# libpq's settings: a server that does not answer counts as unreachable after half a minute. The URL can override them.
NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# The advisory lock of the process that creates tables: an arbitrary constant ("hpo" in ASCII).
TABLES_LOCK = 0x68706F
# Prefixes of SQLite's error names, with the message after "URL: ".
SQLITE_ERRORS = {
    "SQLITE_BUSY": f"locked by another process for {BUSY_TIMEOUT_S:.0f} s; stop that process, or try again later",
    "SQLITE_FULL": "the disk is full; free some space and try again (stored data is not lost)",
    "SQLITE_READONLY": "the file cannot be written; check the permissions of the file and its folder",
    "SQLITE_NOTADB": "is not an SQLite database; name another file",
    "SQLITE_CORRUPT": "the database is damaged; restore a backup, or name another file",
    "SQLITE_CANTOPEN": "the file cannot be opened; check the permissions of the file and its folder",
    "SQLITE_IOERR": "the disk cannot be read or written; check it and try again",
}
# Prefixes of PostgreSQL's error codes, with advice.
POSTGRESQL_ERRORS = {
    "25006": "the server is read-only; name the primary server",
    "42501": "the database user lacks a permission; grant it the right to create and change tables",
    "53100": "the server's disk is full; free some space and try again (stored data is not lost)",
}
# Connection lost or server not ready; too many connections; serialization failure or deadlock.
TRANSIENT = ("08", "57P01", "57P02", "57P03", "53300", "40001", "40P01")


class TransientError(StorageError):
    """The storage cannot be reached, or a transaction failed this time; a retry can help."""


class TunedConnection(sqlite3.Connection):
    """An SQLite connection with hpo's settings, which SQLite stores per connection and not in the file."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA foreign_keys = ON")
        # With a write-ahead log this is safe if a process is killed; a power failure can undo the last commits, but not
        # damage the file.
        self.execute("PRAGMA synchronous = NORMAL")


def engine_options(location: Location) -> dict[str, Any]:
    """Return the options for SQLAlchemy's create_engine."""
    if location.file is None:
        settings = {key: value for key, value in NETWORK.items() if key not in location.url.query}
        if "PGCONNECT_TIMEOUT" in os.environ:
            settings.pop("connect_timeout", None)
        return {"pool_pre_ping": True, "connect_args": settings}
    return {"connect_args": {"timeout": BUSY_TIMEOUT_S, "factory": TunedConnection}}


def prepare(location: Location) -> None:
    """Prepare the database: set SQLite's journal mode, and create missing tables."""
    try:
        engine = sa.create_engine(location.url, poolclass=sa.NullPool, **engine_options(location))
    except sa.exc.ArgumentError as error:
        raise StorageError(f"{location.shown}: {error_line(error)}") from error
    explain_errors(engine, location.shown)
    if location.file is not None:
        _use_write_ahead_log(location.file, location.shown)
    with engine.connect() as connection:
        ready = schema_is_ready(connection, location.shown)
    if not ready:
        with write(engine) as connection:
            lock_tables(connection)
            # Check again: another process may have created the tables while this one waited for the lock.
            if not schema_is_ready(connection, location.shown):
                _create_tables(connection)


def lock_tables(connection: Connection) -> None:
    """Lock the creation of tables until the transaction ends. On SQLite a writing transaction has the lock already."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TABLES_LOCK)))


@contextlib.contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """Run the block in a transaction that writes. On SQLite it takes the write lock at its start."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # Otherwise a transaction that reads first and writes later fails without waiting if another process has
            # written in between.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


@contextlib.contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """Run the block in a transaction whose queries all see the same state of the database."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # Python's driver opens no transaction for a SELECT.
            connection.exec_driver_sql("BEGIN")
        else:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


def explain_errors(engine: Engine, shown: str) -> None:
    """Convert the engine's errors into a StorageError that names the storage as `shown`."""

    # `explain` must not refer to the engine, which would then never be garbage-collected, nor its connections closed.
    on_server = engine.dialect.name == "postgresql"

    def explain(context: ExceptionContext) -> None:
        error, cause = context.sqlalchemy_exception, context.original_exception
        if isinstance(cause, UnicodeEncodeError):  # for instance bytes of a command line that are not UTF-8
            raise StorageError(f"{shown}: {cause.object!r} is not valid UTF-8; correct it") from cause
        # A pooled connection was found dead before its use: the pool opens another one.
        if context.is_pre_ping or not isinstance(error, sa.exc.DBAPIError):
            return
        if on_server:
            _explain_postgresql(context, shown)
        # Optuna handles duplicate rows itself, and an invalid statement is a defect that needs its traceback. Without a
        # connection the URL is wrong, whatever the driver calls the error.
        passed_on = isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError) and context.connection
        if isinstance(error, sa.exc.DatabaseError) and not passed_on:
            _raise_error(shown, cause)

    sa.event.listen(engine, "handle_error", explain)


def _explain_postgresql(context: ExceptionContext, shown: str) -> None:
    cause = context.original_exception
    state = getattr(cause, "sqlstate", None) or ""
    if context.connection is None:
        problem = error_line(cause).removeprefix("connection failed: ")
        advice = "check that the server runs, and the URL's host, user, password and database"
        raise TransientError(f"{shown}: {problem}; {advice}") from cause
    if context.is_disconnect or state.startswith(TRANSIENT):
        raise TransientError(f"{shown}: {error_line(cause)}") from cause
    for prefix, advice in POSTGRESQL_ERRORS.items():
        if state.startswith(prefix):
            raise StorageError(f"{shown}: {error_line(cause)}: {advice}") from cause


def _raise_error(shown: str, error: BaseException) -> NoReturn:
    name = getattr(error, "sqlite_errorname", None) or ""
    for prefix, problem in SQLITE_ERRORS.items():
        if name.startswith(prefix):
            kind = TransientError if prefix == "SQLITE_BUSY" else StorageError
            raise kind(f"{shown}: {problem}") from error
    raise StorageError(f"{shown}: database error: {error_line(error)}") from error


def error_line(error: BaseException) -> str:
    """Return the message of an error on one line, without passwords."""
    return mask(" ".join(str(error).split()))


def _use_write_ahead_log(file: Path, shown: str) -> None:
    """Set the journal mode in which readers and a writer do not block each other. SQLite stores it in the file."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with contextlib.closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT_S)) as connection:
                # If the file system does not support it, SQLite stays in its present mode: slower, but correct.
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.DatabaseError as error:
            # SQLite does not wait here: of two processes that set the mode at the same time, one fails.
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                _raise_error(shown, error)
            time.sleep(JOURNAL_RETRY_S)


@functools.cache  # reading Optuna's migrations is the slowest step of opening a storage
def migrations() -> alembic.script.ScriptDirectory:
    """Return Optuna's migrations of the schema."""
    config = alembic.config.Config()
    # A percent sign is special in a configuration file.
    config.set_main_option("script_location", str(Path(models.__file__).with_name("alembic")).replace("%", "%%"))
    return alembic.script.ScriptDirectory.from_config(config)


def schema_is_ready(connection: Connection, shown: str) -> bool:
    """Return whether Optuna's tables exist. Raises StorageError if their schema is not that of this Optuna version."""
    tables = set(sa.inspect(connection).get_table_names())
    if not tables & set(models.BaseModel.metadata.tables):
        return False
    found = None
    if "alembic_version" in tables:
        found = alembic.migration.MigrationContext.configure(connection).get_current_revision()
    head = migrations().get_current_head()
    if found == head:
        return True
    if found is None or found in {script.revision for script in migrations().walk_revisions()}:
        raise StorageError(
            f"{shown}: the tables were created by an older Optuna (schema {found or 'unknown'}, needed: {head});"
            f" make a backup, then run `optuna storage upgrade --storage {connection.engine.url.drivername}://...`"
        )
    raise StorageError(
        f"{shown}: the tables were created by a newer Optuna (schema {mask(found)}, needed: {head}); update hpo,"
        " or name another storage"
    )


def _create_tables(connection: Connection) -> None:
    models.BaseModel.metadata.create_all(connection)
    version = {"schema_version": models.SCHEMA_VERSION, "library_version": optuna.__version__}
    connection.execute(sa.insert(models.VersionInfoModel.__table__), version)
    head = migrations().get_current_head()
    assert head is not None
    alembic.migration.MigrationContext.configure(connection).stamp(migrations(), head)
