"""Rows of a table as read from a file, before preprocessing: numbers, categories, and where each row is in its file.

Missing values are NaN among numbers and None among categories. This module opens no file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo.errors import DataError


@dataclass(frozen=True, eq=False)
class TableRows:
    """The feature columns of some rows.

    `numbers` is float64 [N, len(numeric)], `categories` has strings or None, [N, len(categorical)]. `lines` are the
    numbers of the rows in `file`.
    """

    file: str
    lines: NDArray[np.int64]
    numeric: tuple[str, ...]
    numbers: NDArray[np.float64]
    categorical: tuple[str, ...]
    categories: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.lines)

    def take(self, indices: NDArray[np.int64]) -> TableRows:
        """Return the rows at `indices`, in that order."""
        parts = self.lines[indices], self.numeric, self.numbers[indices], self.categorical, self.categories[indices]
        return TableRows(self.file, *parts)

    def followed_by(self, other: TableRows) -> TableRows:
        """Return these rows and then those of `other`, which has the same columns."""
        return TableRows(
            self.file,
            np.concatenate([self.lines, other.lines]),
            self.numeric,
            np.concatenate([self.numbers, other.numbers]),
            self.categorical,
            np.concatenate([self.categories, other.categories]),
        )

    def sha256(self) -> str:
        """Return the SHA-256 of the columns' names and values."""
        names = [self.numeric, self.categorical, len(self)]
        digest = hashlib.sha256(json.dumps(names).encode())
        digest.update(np.ascontiguousarray(self.numbers, "<f8").data)
        digest.update(json.dumps(self.categories.tolist()).encode())
        return digest.hexdigest()

    def require(self, valid: NDArray[np.bool_], columns: Sequence[str], problem: Callable[[int, int], str]) -> None:
        """Raise DataError for the first row with an invalid value, naming its row and column.

        `valid` is [N, len(columns)]; `problem` returns the text for the index of a row and of a column.
        """
        if valid.all():
            return
        row, column = (int(index) for index in np.argwhere(~valid)[0])
        raise DataError(f"{self.file}: row {self.lines[row]}, column '{columns[column]}': {problem(row, column)}")
