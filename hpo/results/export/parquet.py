"""Parquet export of several trials: the columns of the CSV export with their types, and the learning curves as lists.

A parameter's column has numbers, strings or booleans where all its values are of that type, else JSON as in CSV. A
missing value is null. The curves are the columns `curve.METRIC`, an element for each epoch.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import polars as pl

from hpo.results.export.text import FIRST_COLUMNS, check_options, further_columns
from hpo.results.export.trials import trial_records
from hpo.storage import Storage
from hpo.text import json_text, printable_lines

_TYPES: dict[str, Any] = {
    "number": pl.Int64,
    "value": pl.Float64,
    "seed": pl.Int64,
    "epochs": pl.Int64,
    "started": pl.Datetime("ms", "UTC"),
    "ended": pl.Datetime("ms", "UTC"),
}
"""The types of the columns of every table; the others are strings."""


def export_parquet(
    storage: Storage,
    name: str,
    *,
    confirmed: bool = False,
    every: bool = False,
    top: int | None = None,
    trial: int | None = None,
    ensemble: bool = False,
) -> bytes:
    """Return the content of a Parquet file of the best trial, of `every` trial or of the `top` best.

    Raises UsageError for options that exclude each other, and for those that export one trial.
    """
    check_options("parquet", confirmed=confirmed, every=every, top=top, trial=trial, ensemble=ensemble)
    return parquet_bytes(trial_records(storage, name, every=every, top=top))


def parquet_bytes(records: Iterable[dict[str, Any]]) -> bytes:
    """Return the content of a Parquet file with a row for each record of a trial."""
    rows = list(records)
    metrics, params = further_columns(rows)
    curves = {metric: f"curve.{_text(metric)}" for row in rows for metric in row["curve"]}
    params = {name: f"params.{name}" if column in curves.values() else column for name, column in params.items()}
    columns = [
        *(pl.Series(name, [_text(row[name]) for row in rows], _TYPES.get(name, pl.String)) for name in FIRST_COLUMNS),
        *(pl.Series(_text(name), [row["values"].get(name) for row in rows], pl.Float64) for name in metrics),
        *(_params(_text(column), [row["params"].get(name, ...) for row in rows]) for name, column in params.items()),
        *(
            pl.Series(column, [row["curve"].get(metric) for row in rows], pl.List(pl.Float64), strict=False)
            for metric, column in curves.items()
        ),
    ]
    file = io.BytesIO()
    pl.DataFrame(columns).write_parquet(file)
    return file.getvalue()


def _text(value: Any) -> Any:
    """Return a string with escapes for unprintable characters, among them those that UTF-8 lacks."""
    return printable_lines(value) if isinstance(value, str) else value


def _params(name: str, values: list[Any]) -> pl.Series:
    """Return the column of a parameter's values, `...` where a trial has none."""
    kinds = {type(value) for value in values if value is not ...}
    given = [None if value is ... else _text(value) for value in values]
    fits = all(abs(value) < 2**63 for value in given if isinstance(value, int))
    for types, column in (({bool}, pl.Boolean), ({int}, pl.Int64), ({int, float}, pl.Float64), ({str}, pl.String)):
        if kinds <= types and fits:
            return pl.Series(name, given, column, strict=False)  # not strict: whole numbers among others
    return pl.Series(name, [None if value is ... else json_text(value) for value in values], pl.String)
