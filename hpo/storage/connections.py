"""Connections to a storage: how they are tuned, how its tables are made, and how its errors read.

Promises: an SQLite connection waits for others instead of failing, checks foreign keys and does not wait for the disk
at every commit; the tables are made whole or not at all, however many processes open a new storage at once; tables of
another Optuna schema are refused and left as they are; an error of the database is a StorageError of one line, and a
TransientError where trying again may help; a pooled connection to a server is checked before it is used.
Knows the schema as a whole, nothing of what the rows mean.
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
# libpq's settings: a server that cannot be reached, or whose machine has gone without a word, is given up in half a
# minute. The URL may say otherwise.
NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
# Held by the process that makes a storage's tables: any number that is always the same ("hpo" in ASCII).
TABLES_LOCK = 0x68706F
# SQLite's error names, by their beginning, as a sentence's end.
SQLITE_ERRORS = {
    "SQLITE_BUSY": f"locked by another process for {BUSY_TIMEOUT_S:.0f} s; stop that process, or try again later",
    "SQLITE_FULL": "the disk is full; make room and try again (what was stored is kept)",
    "SQLITE_READONLY": "cannot be written; check the permissions of the file and its folder",
    "SQLITE_NOTADB": "is not an SQLite database; name another file",
    "SQLITE_CORRUPT": "the database is damaged; put back a copy, or name another file",
    "SQLITE_CANTOPEN": "cannot be opened; check the permissions of the file and its folder",
    "SQLITE_IOERR": "the disk cannot be read or written; check it and try again",
}
# PostgreSQL's error codes, by their beginning, likewise.
POSTGRESQL_ERRORS = {
    "25006": "the server is read-only; name the one that takes writes",
    "42501": "the user may not do this; grant it the rights to make and change tables",
    "53100": "the server's disk is full; make room and try again (what was stored is kept)",
}
# The server goes away or is not there yet; too many connections; a transaction gave way to another.
TRANSIENT = ("08", "57P01", "57P02", "57P03", "53300", "40001", "40P01")


class TransientError(StorageError):
    """The storage cannot be reached, or did not do it this time. What was asked for may be asked for again."""


class TunedConnection(sqlite3.Connection):
    """An SQLite connection with hpo's settings, which belong to the connection and not to the file."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA foreign_keys = ON")
        # With a write-ahead log this is safe against a killed process; a power cut may undo the last commits, never
        # damage the file.
        self.execute("PRAGMA synchronous = NORMAL")


def engine_options(location: Location) -> dict[str, Any]:
    """Return the options for SQLAlchemy's create_engine."""
    if location.file is None:
        given = {key: value for key, value in NETWORK.items() if key not in location.url.query}
        if "PGCONNECT_TIMEOUT" in os.environ:
            given.pop("connect_timeout", None)
        return {"pool_pre_ping": True, "connect_args": given}
    return {"connect_args": {"timeout": BUSY_TIMEOUT_S, "factory": TunedConnection}}


def prepare(location: Location) -> None:
    """Make the storage ready for use: the journal's mode, and the tables where there are none yet."""
    try:
        engine = sa.create_engine(location.url, poolclass=sa.NullPool, **engine_options(location))
    except sa.exc.ArgumentError as error:
        raise StorageError(f"{location.shown}: {sentence(error)}") from error
    explain_errors(engine, location.shown)
    if location.file is not None:
        _use_write_ahead_log(location.file, location.shown)
    with engine.connect() as connection:
        ready = schema_is_ready(connection, location.shown)
    if not ready:
        with write(engine) as connection:
            lock_tables(connection)
            # Asked again: another process may have made the tables while this one waited for the lock.
            if not schema_is_ready(connection, location.shown):
                _make_tables(connection)


def lock_tables(connection: Connection) -> None:
    """Let nobody else make tables until the transaction ends. On SQLite one that writes has the lock already."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(TABLES_LOCK)))


@contextlib.contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """One transaction that writes. On SQLite it holds the write lock from its start."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            # A transaction that reads first and writes later fails at once, without waiting, when another process
            # wrote in between.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


@contextlib.contextmanager
def read(engine: Engine) -> Iterator[Connection]:
    """One view of the storage for several queries: nothing that is written meanwhile shows."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            # Python's driver opens no transaction for a SELECT.
            connection.exec_driver_sql("BEGIN")
        else:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


def explain_errors(engine: Engine, shown: str) -> None:
    """Turn the engine's errors into a StorageError that names the storage as `shown`."""

    # The engine itself stays out of the function: it would never be collected, nor its connections closed.
    on_server = engine.dialect.name == "postgresql"

    def explain(context: ExceptionContext) -> None:
        error, cause = context.sqlalchemy_exception, context.original_exception
        if isinstance(cause, UnicodeEncodeError):  # such as bytes of a command line that are no UTF-8
            raise StorageError(f"{shown}: holds no {cause.object!r}, and cannot: a name is whole characters") from cause
        # A pooled connection found dead before its use: the pool opens another one.
        if context.is_pre_ping or not isinstance(error, sa.exc.DBAPIError):
            return
        if on_server:
            _explain_postgresql(context, shown)
        # A row that is there already is Optuna's own business, and a wrong statement is a defect that keeps its
        # traceback. Without a connection it is the URL that is wrong, whatever the driver calls it.
        passed_on = isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError) and context.connection
        if isinstance(error, sa.exc.DatabaseError) and not passed_on:
            _fail(shown, cause)

    sa.event.listen(engine, "handle_error", explain)


def _explain_postgresql(context: ExceptionContext, shown: str) -> None:
    cause = context.original_exception
    state = getattr(cause, "sqlstate", None) or ""
    if context.connection is None:
        said = sentence(cause).removeprefix("connection failed: ")
        check = "check that the server runs, and the URL's host, user, password and database"
        raise TransientError(f"{shown}: {said}; {check}") from cause
    if context.is_disconnect or state.startswith(TRANSIENT):
        raise TransientError(f"{shown}: {sentence(cause)}") from cause
    for beginning, advice in POSTGRESQL_ERRORS.items():
        if state.startswith(beginning):
            raise StorageError(f"{shown}: {sentence(cause)}: {advice}") from cause


def _fail(shown: str, error: BaseException) -> NoReturn:
    name = getattr(error, "sqlite_errorname", None) or ""
    for beginning, advice in SQLITE_ERRORS.items():
        if name.startswith(beginning):
            kind = TransientError if beginning == "SQLITE_BUSY" else StorageError
            raise kind(f"{shown}: {advice}") from error
    raise StorageError(f"{shown}: the database answered: {sentence(error)}") from error


def sentence(error: BaseException) -> str:
    """Return what an error says, on one line and without passwords."""
    return mask(" ".join(str(error).split()))


def _use_write_ahead_log(file: Path, shown: str) -> None:
    """Let readers and a writer work side by side. The mode stays with the file."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with contextlib.closing(sqlite3.connect(file, timeout=BUSY_TIMEOUT_S)) as connection:
                # Where a file system cannot do it, SQLite keeps the mode it had: slower, and still right.
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.DatabaseError as error:
            # Two processes that change the mode at once are told so at once: SQLite does not wait there.
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                _fail(shown, error)
            time.sleep(JOURNAL_RETRY_S)


@functools.cache  # reading Optuna's migrations takes longer than all else that opening a storage asks
def _migrations() -> alembic.script.ScriptDirectory:
    config = alembic.config.Config()
    # A percent sign is special in a configuration file.
    config.set_main_option("script_location", str(Path(models.__file__).with_name("alembic")).replace("%", "%%"))
    return alembic.script.ScriptDirectory.from_config(config)


def schema_is_ready(connection: Connection, shown: str) -> bool:
    """Whether Optuna's tables are there. A schema other than this Optuna's is refused."""
    tables = set(sa.inspect(connection).get_table_names())
    if not tables & set(models.BaseModel.metadata.tables):
        return False
    found = None
    if "alembic_version" in tables:
        found = alembic.migration.MigrationContext.configure(connection).get_current_revision()
    migrations = _migrations()
    head = migrations.get_current_head()
    if found == head:
        return True
    if found is None or found in {script.revision for script in migrations.walk_revisions()}:
        raise StorageError(
            f"{shown}: its tables are of an older Optuna (schema {found or 'unknown'}, needed: {head});"
            f" make a copy, then run `optuna storage upgrade --storage {connection.engine.url.drivername}://...`"
        )
    raise StorageError(
        f"{shown}: its tables are of a newer Optuna (schema {mask(found)}, needed: {head}); update hpo,"
        " or name another storage"
    )


def _make_tables(connection: Connection) -> None:
    models.BaseModel.metadata.create_all(connection)
    version = {"schema_version": models.SCHEMA_VERSION, "library_version": optuna.__version__}
    connection.execute(sa.insert(models.VersionInfoModel.__table__), version)
    head = _migrations().get_current_head()
    assert head is not None
    alembic.migration.MigrationContext.configure(connection).stamp(_migrations(), head)
