"""The data sets inside scikit-learn, without a download: digits (images), breast_cancer, wine and diabetes (rows).

The last 20% after a fixed shuffle are the sealed test set, the same for every study and seed. Only `read_test` returns
them, although the package has all examples in one file, which is read completely. scikit-learn is not imported, because
that takes longer than a small search.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.errors import DataError

KIND = "scikit-learn"
_SEAL_SEED = 0  # defines the test sets: never change it


@dataclass(frozen=True)
class _File:
    """A file of rows, each with its numbers and then its label, or with its target in the file `targets`.

    `white` is None for numbers that stay unchanged.
    """

    name: str
    rows: int
    columns: int
    header: int = 0
    white: int | None = None
    targets: str | None = None


_FILES = {
    "digits": _File("digits.csv.gz", 1797, 64, white=16),
    "breast_cancer": _File("breast_cancer.csv", 569, 30, header=1),
    "wine": _File("wine_data.csv", 178, 13, header=1),
    "diabetes": _File("diabetes_data_raw.csv.gz", 442, 10, targets="diabetes_target.csv.gz"),
}


def installed_folder() -> Path | None:
    """Return scikit-learn's folder without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("sklearn")
    return Path(spec.origin).parent if spec and spec.origin else None


def test_size(name: str) -> int:
    """Return the number of examples in the sealed test set."""
    return round(0.2 * _FILES[name].rows)


def training_size(name: str) -> int:
    """Return the number of examples outside the sealed test set."""
    return _FILES[name].rows - test_size(name)


def read_training(name: str, shape: tuple[int, ...]) -> RawExamples:
    """Return the examples outside the sealed test set."""
    return _read(name, shape, slice(0, training_size(name)))


def read_test(name: str, shape: tuple[int, ...]) -> RawExamples:
    """Return the sealed test set."""
    return _read(name, shape, slice(training_size(name), None))


def _read(name: str, shape: tuple[int, ...], part: slice) -> RawExamples:
    file, folder = _FILES[name], installed_folder()
    if folder is None:
        raise DataError(f"{name}: these data are part of scikit-learn, which is not installed")
    path = folder / "datasets" / "data" / file.name
    kind = np.float64 if file.white is None else np.uint8
    try:
        rows = _read_text(path, "," if file.targets is None else None, kind, file.header)
        if file.targets is not None:
            rows = np.column_stack([rows, _read_text(path.with_name(file.targets))])
    except (OSError, ValueError) as error:
        raise DataError(f"{name}: {path} cannot be read ({error}); reinstall scikit-learn") from error
    if rows.shape != (file.rows, file.columns + 1):
        raise DataError(f"{name}: scikit-learn has {len(rows)} of these examples, {file.rows} expected; reinstall it")
    chosen: NDArray[Any] = rows[np.random.Generator(np.random.PCG64(_SEAL_SEED)).permutation(file.rows)[part]]
    inputs = chosen[:, :-1].reshape(-1, *shape).copy()
    if file.white is not None:
        return RawExamples(inputs, chosen[:, -1].copy(), file.white)
    targets = chosen[:, -1].astype(np.int64) if file.targets is None else chosen[:, -1:].copy()
    return RawExamples(inputs.astype(np.float32), targets, None)


@functools.cache  # a worker reads the same small file for each study
def _read_text(path: Path, delimiter: str | None = None, kind: Any = np.float64, header: int = 0) -> NDArray[Any]:
    rows = np.loadtxt(path, delimiter=delimiter, dtype=kind, skiprows=header)
    rows.flags.writeable = False
    return rows
