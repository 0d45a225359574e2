"""User data in memory: DataFrames of pandas and polars, as the table `table:memory:HASH`.

`remember_table` makes a table known in this process, under the hash of its content.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import polars as pl

from hpo.data.user.memory_arrays import HASH_LETTERS, WHERE, unknown_data
from hpo.errors import DataError
from hpo.memory_code import MEMORY

_tables: dict[str, pl.DataFrame] = {}


def remember_table(table: Any) -> str:
    """Make a pandas or polars DataFrame known; return its path in a study file. Raises DataError for other objects."""
    cells = _polars(table)
    for name in cells.columns:
        if not name or not name.isprintable():
            raise DataError(f"{WHERE}: column {name!r} has no printable name: rename it")
    path = f"{MEMORY}{_hash_of(cells)}"
    _tables[path] = cells
    return path


def table_in_memory(path: str) -> pl.DataFrame:
    """Return a known table. Raises DataError where this process does not have it."""
    if path not in _tables:
        raise unknown_data("table was", "table=...")
    return _tables[path]


def _hash_of(cells: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for column in cells:
        digest.update(f"{column.name} {column.dtype} {len(column)}\n".encode())
        digest.update(column.is_null().to_numpy().tobytes())
        if column.dtype.is_numeric():
            digest.update(column.fill_null(0).to_numpy().tobytes())
        else:
            digest.update(json.dumps(column.to_list(), default=str).encode())
    return digest.hexdigest()[:HASH_LETTERS]


def _polars(table: Any) -> pl.DataFrame:
    """Return a table as a polars DataFrame that later changes of the table do not reach."""
    if isinstance(table, pl.DataFrame):
        return table.clone()
    kind = type(table)
    if kind.__module__.partition(".")[0] != "pandas" or not hasattr(table, "columns"):
        advice = "; call its collect()" if isinstance(table, pl.LazyFrame) else ""
        raise DataError(f"{WHERE}: table: must be a DataFrame of pandas or polars (got {kind.__name__}{advice})")
    names = list(table.columns)
    for name in names:
        if not isinstance(name, str) or names.count(name) > 1:
            raise DataError(f"{WHERE}: column {name!r}: the names of columns must be different strings; rename it")
    return pl.DataFrame([_column(name, table[name]) for name in names])


def _column(name: str, column: Any) -> pl.Series:
    """Return a column of a pandas DataFrame; a missing value is null."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub":
        return pl.Series(name, column.to_numpy(copy=True), nan_to_null=True)
    values = [None if missing else value for value, missing in zip(column.tolist(), column.isna(), strict=True)]
    try:
        return pl.Series(name, values)
    except (TypeError, pl.exceptions.PolarsError) as error:
        problem = "has values of several types: convert it, or leave it out of `features`"
        raise DataError(f"{WHERE}: column '{name}' {problem}") from error
