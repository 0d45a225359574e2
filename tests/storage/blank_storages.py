"""Blank storages, with tables but no rows: creating the tables would take longer than most tests.

A blank file is a copy (see conftest.py). A database is emptied after its use and used again; it is dropped if a test
has changed more than rows, or if it has grown large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
from optuna.storages._rdb import models
from postgresql_server import Server

from hpo.storage import open_storage

Blank = Callable[[], AbstractContextManager[str]]
"""A context manager with the URL of a blank storage."""

LARGEST = 2_000_000  # bytes of a database's rows, deleted ones included, which every query would scan
ROWS_OF = [table.name for table in models.BaseModel.metadata.sorted_tables if table.name != "version_info"]
ALONE = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
OURS = "SELECT {} FROM pg_class WHERE relnamespace = 'public'::regnamespace"
SIZE, TABLES, SEQUENCES = (
    OURS.format("sum(pg_relation_size(oid))"),
    f"{OURS.format('relname')} AND relkind = 'r'",
    f"{OURS.format('relname')} AND relkind = 'S'",
)
# Columns, permissions, constraints, triggers, functions and settings, which tests can change.
SHAPE = """
SELECT (SELECT array_agg((relname, relacl, attname, atttypid::regtype)::text ORDER BY relname, attnum) FROM pg_class c
            JOIN pg_attribute ON attrelid = c.oid WHERE relnamespace = 'public'::regnamespace AND attnum > 0),
       (SELECT count(*) FROM pg_constraint), (SELECT count(*) FROM pg_trigger), (SELECT count(*) FROM pg_proc),
       (SELECT nspacl::text FROM pg_namespace WHERE nspname = 'public'),
       (SELECT (datacl, datdba)::text FROM pg_database WHERE datname = current_database()),
       (SELECT count(*) FROM pg_db_role_setting)
"""
VERSIONS = "SELECT (SELECT array_agg(a::text) FROM alembic_version a), (SELECT array_agg(v::text) FROM version_info v)"


class BlankDatabases:
    """Blank databases of a server. As many are created as are used at the same time."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._free: list[str] = []
        self._made_as: list[Any] = []
        self._empty = ""

    @contextmanager
    def __call__(self) -> Iterator[str]:
        name = self._free.pop() if self._free else self._made()
        yield self.server.url(name)
        if self._emptied(name):
            self._free.append(name)
        else:
            self.server.drop(name)

    def _made(self) -> str:
        name = self.server.create()
        open_storage(self.server.url(name)).close()
        if not self._empty:
            with psycopg.connect(self.server.url(name)) as connection:
                self._made_as = [connection.execute(query).fetchone() for query in (SHAPE, VERSIONS)]
                sequences = [sequence for (sequence,) in connection.execute(SEQUENCES)]
            # Any order of tables, because foreign keys are not checked.
            self._empty = "SET session_replication_role = replica; BEGIN;"
            self._empty += "".join(f"DELETE FROM {table};" for table in ROWS_OF)
            self._empty += "".join(f"SELECT setval('{sequence}', 1, false);" for sequence in sequences)
            self._empty += "COMMIT"
        return name

    def _emptied(self, name: str) -> bool:
        """Delete all rows, and tables that are not Optuna's; return whether the database is as it was created."""
        with psycopg.connect(self.server.url(name), autocommit=True) as connection:
            connection.execute(ALONE, [name])
            for (table,) in connection.execute(TABLES).fetchall():
                if table not in [*ROWS_OF, "version_info", "alembic_version"]:
                    connection.execute(f"DROP TABLE {table}".encode())
            (size,) = connection.execute(SIZE).fetchone() or (0,)
            # If the shape differs, the tables of versions may not exist.
            as_made = all(
                connection.execute(query).fetchone() == made
                for query, made in zip((SHAPE, VERSIONS), self._made_as, strict=True)
            )
            if size > LARGEST or not as_made:
                return False
            connection.execute(self._empty.encode())
        return True
