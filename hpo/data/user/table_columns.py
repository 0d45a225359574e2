"""Columns of a table without a study: whether they are numbers or text, their different and their missing values.

The values of the rows that a study sets aside as its test set are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from hpo.data.user.table import MISSING_NUMBERS, TableSource


@dataclass(frozen=True)
class Column:
    """A column: `distinct` counts its different values and `missing` its missing ones, of `rows`.

    A column of another type, such as a date, cannot be a feature. `low` and `high` are None unless all are numbers.
    """

    name: str
    kind: Literal["numbers", "text", "other"]
    rows: int
    distinct: int
    missing: int
    is_whole: bool = False
    low: float | None = None
    high: float | None = None


def training_columns(source: TableSource) -> list[Column]:
    """Return the columns of a table in the order of the file. Raises DataError where the file cannot be read."""
    return [_column(each) for each in source.training_cells()]


def _column(cells: pl.Series) -> Column:
    name, rows = cells.name, len(cells)
    if cells.dtype.is_numeric() or cells.dtype == pl.Boolean:
        return _of_numbers(cells.cast(pl.Float64), rows)
    if cells.dtype not in (pl.String, pl.Categorical, pl.Enum):
        return Column(name, "other", rows, cells.n_unique(), cells.null_count())
    texts = cells.cast(pl.String).str.strip_chars()
    texts = texts.set(texts == "", None)
    known = texts.set(texts.is_in(MISSING_NUMBERS).fill_null(False), None)
    numbers = known.cast(pl.Float64, strict=False)
    if numbers.null_count() == known.null_count() < rows:
        return _of_numbers(numbers, rows)
    return Column(name, "text", rows, texts.drop_nulls().n_unique(), texts.null_count())


def _of_numbers(numbers: pl.Series, rows: int) -> Column:
    known = numbers.drop_nulls().drop_nans()
    low, high = known.min(), known.max()
    return Column(
        numbers.name,
        "numbers",
        rows,
        known.n_unique(),
        rows - len(known),
        bool((known == known.floor()).all()),
        None if low is None else float(low),  # type: ignore[arg-type]
        None if high is None else float(high),  # type: ignore[arg-type]
    )
