"""One cache of compiled SQL statements for all SQLAlchemy engines of a process.

SQLAlchemy compiles each statement once an engine, and each test opens storages of its own: a third of the time of a
small search. Engines of the same database have equal dialects, so this cache ignores the identity of the dialect.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.util import LRUCache

CAPACITY = 2000


class CompiledStatements(LRUCache[Any, Any]):
    """SQLAlchemy's cache, whose keys begin with the dialect, with the name of the dialect instead."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((key[0].name, *key[1:]), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__((key[0].name, *key[1:]), compiled)


def share_compiled_statements() -> None:
    """Let all engines of this process use one cache."""
    cache = CompiledStatements(CAPACITY)

    @sa.event.listens_for(sa.engine.Engine, "engine_connect")
    def use_cache(connection: sa.engine.Connection) -> None:
        connection.execution_options(compiled_cache=cache)
