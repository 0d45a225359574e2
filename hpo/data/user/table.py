"""User data from a table: a CSV or Parquet file with columns for the targets, as `table:houses.csv`.

A CSV file is read as text, and each column converted by itself, so that an error names column and row. Rows are counted
as in the file: the header of a CSV file is row 1; a Parquet file has no header, and its first row is row 1. A table in
memory, `memory:HASH`, is read from there. Rows of a
CSV file without any value are ignored. `validation` may be another file. `test` is another file, or a fraction of the
rows to set aside; only `read_test` reads that file and converts those rows, of which only the groups are read before.
Every problem is a DataError of one line.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.data.table_rows import TableRows
from hpo.data.user.arrays import encode_groups, encode_labels
from hpo.data.user.memory_arrays import WHERE
from hpo.data.user.memory_table import table_in_memory
from hpo.errors import OTHER_TASKS, DataError, nearest
from hpo.memory_code import is_in_memory
from hpo.text import first_few
from hpo.untrusted_files import open_regular_file

MISSING_NUMBERS = ("NA", "N/A", "NaN", "nan", "null")
"""Texts of a missing number, besides an empty cell. In other columns only an empty cell is missing."""

MAX_NAMES = 5
"""Maximum number of column names in one message."""


@dataclass(frozen=True)
class TableSource:
    """A table, its target and feature columns, its validation set if that is a file, and its test set.

    The targets are one column of classes, or for the other tasks columns of numbers, for several labels 0 and 1.
    Without `features`, all columns but targets and groups are features. A test set that is a fraction has the last rows
    if they are in time order, else random rows, or whole groups: the same ones for every study and seed.
    """

    path: Path
    task: str
    targets: tuple[str, ...]
    features: tuple[str, ...] | None
    categorical: tuple[str, ...]
    groups: str | None
    validation: Path | float | None
    test: Path | float | None
    is_time_order: bool

    def read_training(self) -> RawExamples:
        """Read the rows that are not set aside for the test set."""
        frame = self._frame(self.path)
        groups = self._groups(frame)
        training = self._split(len(frame), groups)[0]
        kept = frame.take(training)
        rows = kept.rows(*self._columns(frame))
        for name in (*rows.numeric, *rows.categorical):
            kept.require_varied(name, rows)
        targets, names = self._read_targets(kept, None)
        known = None if groups is None else groups[training]
        own = partial(self._read_file, self.validation, names) if isinstance(self.validation, Path) else None
        return RawExamples(rows, targets, None, names, groups=known, read_validation=own)

    def training_cells(self) -> pl.DataFrame:
        """Return all columns, as the file has them, of the rows that are not set aside."""
        frame = self._frame(self.path)
        return frame.take(self._split(len(frame), self._groups(frame))[0]).cells

    def test_size(self) -> int | None:
        """Return the number of rows set aside; 0 without a test set, None for a file, which is not opened."""
        if not isinstance(self.test, float):
            return None if self.test else 0
        frame = self._frame(self.path)
        return len(self._split(len(frame), self._groups(frame))[1])

    def check_test(self) -> None:
        """Raise DataError without a test set."""
        if self.test is None:
            raise DataError(f"{self.path}: has no test set: set data.test to a file or a fraction of the rows")

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Read the test file, or the rows set aside."""
        self.check_test()
        if isinstance(self.test, Path):
            return self._read_file(self.test, names)
        frame = self._frame(self.path)
        sealed = frame.take(self._split(len(frame), self._groups(frame))[1])
        targets, names = self._read_targets(sealed, names)
        return RawExamples(sealed.rows(*self._columns(frame)), targets, None, names)

    def _read_file(self, path: Path, names: tuple[str, ...]) -> RawExamples:
        """Read another file with the columns of the table; `names` are the classes or labels of the training rows."""
        columns, frame = self._columns(self._frame(self.path)), self._frame(path)
        for name in (*columns[0], *columns[1]):
            frame.require(name)
        targets, names = self._read_targets(frame, names)
        return RawExamples(frame.rows(*columns), targets, None, names)

    def _frame(self, path: Path) -> _Frame:
        others = () if self.groups is None else (self.groups,)
        wanted = None if self.features is None else (*self.features, *self.targets, *others)
        return _read(path, wanted)

    def _read_targets(
        self, frame: _Frame, names: Sequence[str] | None
    ) -> tuple[NDArray[np.int64] | NDArray[np.float64], tuple[str, ...]]:
        """Return the targets and the names of classes or labels; `names` are those of training rows."""
        if self.task == "classification":
            return frame.labels(self.targets[0], names)
        columns = np.stack([frame.target_numbers(name, self.task == "multilabel") for name in self.targets], 1)
        return columns, self.targets if self.task == "multilabel" else ()

    def _groups(self, frame: _Frame) -> NDArray[np.int64] | None:
        """Return the number of each row's group, None without groups."""
        return None if self.groups is None else frame.groups(self.groups)

    def _columns(self, frame: _Frame) -> tuple[list[str], list[str]]:
        """Return the names of the number columns and of the categorical columns, in the order of the features."""
        others = [name for name in frame.names if name not in (*self.targets, self.groups)]
        features = others if self.features is None else self.features
        if not features:
            raise DataError(
                f"{self.path}: has no column besides {', '.join(frame.names)}: a table has a target and at least one "
                "feature, separated by commas"
            )
        for name in (*self.targets, *features, *self.categorical):
            frame.require(name)
        return [n for n in features if n not in self.categorical], [n for n in features if n in self.categorical]

    def _split(self, rows: int, groups: NDArray[np.int64] | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of the training rows and of the rows set aside, each in the order of the file."""
        if not isinstance(self.test, float):
            return np.arange(rows), np.arange(0)
        parts = np.arange(rows) if groups is None else groups  # which are set aside as a whole
        count = len(np.unique(parts))
        size = round(self.test * count)
        if not 0 < size < count:
            left, kind = "training" if size else "test", "rows" if groups is None else "groups"
            raise DataError(f"{self.path}: data.test = {self.test:g} leaves no {left} {kind} of {count}")
        order = np.arange(count)[::-1]
        if not self.is_time_order:
            order = np.random.Generator(np.random.PCG64([0, 1])).permutation(count)  # the split has PCG64(seed)
        is_test = np.isin(parts, order[:size])
        return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def read_rows(path: Path, numeric: Sequence[str], categorical: Sequence[str]) -> TableRows:
    """Read these columns of a table, in whatever order the file has them; other columns are ignored."""
    frame = _read(path, (*numeric, *categorical))
    for name in (*numeric, *categorical):
        frame.require(name)
    return frame.rows(numeric, categorical)


@dataclass(frozen=True, eq=False)
class _Frame:
    """Rows of a file, with the numbers that they have there; `names` are all columns of the file."""

    path: Path
    names: tuple[str, ...]
    cells: pl.DataFrame
    lines: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lines)

    def take(self, indices: NDArray[np.int64]) -> _Frame:
        return _Frame(self.path, self.names, self.cells[indices], self.lines[indices])

    def require(self, name: str) -> None:
        """Raise DataError unless the file has this column."""
        if name not in self.names:
            has = nearest(name, self.names) or f"; it has {first_few(self.names, MAX_NAMES)}"
            raise DataError(f"{self.path}: has no column '{name}'{has}")

    def require_varied(self, name: str, rows: TableRows) -> None:
        """Raise DataError for a feature that has no value, or the same one in each row."""
        if name in rows.numeric:
            column = rows.numbers[:, rows.numeric.index(name)]
            values = set(np.unique(column[~np.isnan(column)])[:2].tolist())
        else:
            values = set(rows.categories[:, rows.categorical.index(name)].tolist()) - {None}
        if len(values) < 2:
            value = f"is {next(iter(values))!r} in all rows" if values else "has no value"
            raise DataError(f"{self.path}: column '{name}' {value}: leave it out of data.features")

    def rows(self, numeric: Sequence[str], categorical: Sequence[str]) -> TableRows:
        """Return the feature columns."""
        numbers = [self._numbers(name) for name in numeric]
        texts = [np.array(self._texts(name).to_list(), object) for name in categorical]
        return TableRows(
            str(self.path),
            self.lines,
            tuple(numeric),
            np.stack(numbers, 1) if numbers else np.zeros((len(self), 0)),
            tuple(categorical),
            np.stack(texts, 1) if texts else np.zeros((len(self), 0), object),
        )

    def groups(self, name: str) -> NDArray[np.int64]:
        """Return the number of each row's group, from 0 in the order of their names."""
        self.require(name)
        column = self._texts(name)
        self._refuse(name, column.is_null(), "the group is missing; fill it in, or remove the row")
        return encode_groups(np.array(column.to_list(), object), f"{self.path}: column '{name}'", len(column))

    def labels(self, name: str, names: Sequence[str] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the column's labels and the class names, those given or all labels of the column.

        Class names are in the order of their numbers if all are whole numbers, else in alphabetical order.
        """
        self.require(name)
        column = self._texts(name)
        self._refuse(name, column.is_null(), "the target is missing; remove the row")
        known = names
        if known is None:
            found = column.unique()
            numbers = found.cast(pl.Float64, strict=False)
            if numbers.null_count() == 0 and (fractions := column.filter(_with_fraction(column))).len():
                raise DataError(
                    f"{self.path}: column '{name}' has numbers, such as {fractions[0]}, where labels must be whole "
                    f"numbers or names. {OTHER_TASKS}"
                )
            whole = found.cast(pl.Int64, strict=False)
            known = sorted(found.to_list(), key=int) if whole.null_count() == 0 else sorted(found.to_list())
        else:
            unknown = ~column.is_in(list(known))
            self._refuse(name, unknown, "is not a class of the training rows", column)
        return encode_labels(np.array(column.to_list(), object), f"{self.path}: column '{name}'", known)

    def target_numbers(self, name: str, is_label: bool) -> NDArray[np.float64]:
        """Return a column of target numbers, or the 0 and 1 of a label."""
        self.require(name)
        numbers = self._numbers(name)
        self._refuse(name, pl.Series(np.isnan(numbers)), "the target is missing; remove the row")
        if is_label:
            self._refuse(name, pl.Series(~np.isin(numbers, (0, 1))), "the label must be 0 or 1")
        return numbers

    def _numbers(self, name: str) -> NDArray[np.float64]:
        """Return a column of numbers, NaN where a value is missing."""
        column = self._column(name)
        if column.dtype.is_numeric() or column.dtype == pl.Boolean:
            numbers = column.cast(pl.Float64)
        else:
            texts = column.cast(pl.String).str.strip_chars()
            texts = texts.set(texts.is_in(["", *MISSING_NUMBERS]), None)
            numbers = texts.cast(pl.Float64, strict=False)
            wrong = numbers.is_null() & texts.is_not_null()
            self._refuse(name, wrong, "is not a number; list columns of text in data.categorical", texts)
        self._refuse(name, numbers.is_infinite().fill_null(False), "is not a finite number", column)
        return numbers.fill_null(np.nan).to_numpy()

    def _texts(self, name: str) -> pl.Series:
        """Return a column of texts, None where a value is missing."""
        texts = self._column(name).cast(pl.String).str.strip_chars()
        return texts.set(texts == "", None)

    def _column(self, name: str) -> pl.Series:
        column = self.cells[name]
        if not (column.dtype.is_numeric() or column.dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)):
            kinds = "numbers, booleans, strings and categories"
            raise DataError(
                f"{self.path}: column '{name}' has the type {column.dtype}, but hpo reads {kinds}: convert it, or "
                "leave it out of data.features"
            )
        return column

    def _refuse(self, name: str, wrong: pl.Series, problem: str, values: pl.Series | None = None) -> None:
        """Raise DataError for the first row where `wrong` is true."""
        index = wrong.arg_max() if wrong.any() else None
        if index is not None:
            text = "" if values is None else f"'{values[index]}' "
            raise DataError(f"{self.path}: row {self.lines[index]}, column '{name}': {text}{problem}")


def _with_fraction(column: pl.Series) -> pl.Series:
    numbers = column.cast(pl.Float64, strict=False)
    return (numbers != numbers.floor()).fill_null(False)


def _read(path: Path, wanted: Collection[str] | None) -> _Frame:
    """Read a file; of a Parquet file only the columns `wanted`, None for all. The rows of a DataFrame begin at 0."""
    if is_in_memory(path.name):
        cells = table_in_memory(path.name)
        if not len(cells):
            raise DataError(f"{WHERE}: the table has no rows")
        return _Frame(Path(WHERE), tuple(cells.columns), cells, np.arange(len(cells)))
    try:
        with open_regular_file(path) as file:
            if path.suffix == ".parquet":
                names = list(pl.read_parquet_schema(file))
                file.seek(0)
                cells = pl.read_parquet(file, columns=[name for name in names if wanted is None or name in wanted])
                lines = np.arange(1, len(cells) + 1)
            else:
                cells = _read_csv(path, file.read())
                names = cells.columns
                kept = cells.select(pl.any_horizontal(pl.all().is_not_null())).to_series().to_numpy().nonzero()[0]
                cells, lines = cells[kept], kept + 2
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise DataError(f"{path}: is not a {path.suffix} file, or is damaged ({reason})") from error
    if not len(lines):
        raise DataError(f"{path}: has no rows")
    return _Frame(path, tuple(names), cells, lines)


def _read_csv(path: Path, content: bytes) -> pl.DataFrame:
    """Return all cells below the header as text, empty ones as None."""
    try:
        cells = pl.read_csv(content, has_header=False, infer_schema=False, try_parse_dates=False)
    except pl.exceptions.NoDataError as error:
        raise DataError(f"{path}: is empty") from error
    except pl.exceptions.ComputeError as error:
        if "found more fields" in str(error):
            raise DataError(
                f"{path}: a row has more cells than the header: quote cells that contain a comma"
            ) from error
        if "utf-8" in str(error):
            raise DataError(f"{path}: is not UTF-8 text: save it as UTF-8") from error
        raise
    names = [(cell or "").strip() for cell in cells.row(0)]
    for number, name in enumerate(names, start=1):
        if not name or not name.isprintable():
            raise DataError(f"{path}: column {number} has no printable name in row 1: name it, or remove the column")
        if names.index(name) + 1 < number:
            raise DataError(f"{path}: two columns are called '{name}': rename or remove one")
    cells = cells[1:]
    cells.columns = names
    return cells.with_columns(pl.all().replace("", None))
