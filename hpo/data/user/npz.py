"""User data in an .npz file of numpy.savez: x and y, optionally x_val, y_val, x_test, y_test, classes and groups.

Arrays are read one by one, and only `read_test` reads x_test and y_test. Nothing is ever unpickled. An invalid file is
a DataError that names it.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.data.user.arrays import ArrayPair, encode_groups, examples_from_arrays
from hpo.errors import DataError
from hpo.untrusted_files import open_regular_file

TRAINING, VALIDATION, TEST = ("x", "y"), ("x_val", "y_val"), ("x_test", "y_test")
CLASSES = "classes"

_HEADER = 128  # bytes before an array's content, as NumPy writes for few axes


@dataclass(frozen=True)
class NpzSource:
    """The .npz file, the name of the array with the study's groups, and the kind of its task."""

    path: Path
    groups: str | None = None
    task: str = "classification"

    def read_training(self) -> RawExamples:
        """Read x and y, and the class names and groups if there are any."""
        with self._opened() as file:
            classes = None
            if CLASSES in file.files:
                found = self._array(file, CLASSES)
                if found.dtype.kind != "U" or found.ndim != 1:
                    raise DataError(f"{self.path}: {CLASSES} has type {found.dtype}; it must be a list of strings")
                classes = found.tolist()
            raw = examples_from_arrays(self._pair(file, TRAINING), classes, self.task)
            groups = None if self.groups is None else self._groups(file, self.groups, len(raw))
            own = any(name in file.files for name in VALIDATION)
        return replace(raw, groups=groups, read_validation=partial(self._read_validation, raw.names) if own else None)

    def test_size(self) -> int | None:
        """Return the number of test examples by the sizes in the archive's directory; 0 without a test set."""
        with self._opened() as file:
            if not any(name in file.files for name in TEST):
                return 0
            counts = set()
            for name, sealed in zip(TRAINING, TEST, strict=True):
                shape, dtype = self._header(file, name)
                size = _archive(file).getinfo(f"{self._required(file, sealed)}.npy").file_size - _HEADER
                count, rest = divmod(size, max(1, math.prod(shape[1:]) * dtype.itemsize))
                counts.add(None if rest else count)
            return counts.pop() if len(counts) == 1 else None

    def check_test(self) -> None:
        """Raise DataError unless the file has x_test and y_test; neither is read."""
        with self._opened() as file:
            if not any(name in file.files for name in TEST):
                raise DataError(f"{self.path}: has no test set (arrays {' and '.join(TEST)})")
            for name in TEST:
                self._required(file, name)

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Read x_test and y_test."""
        self.check_test()
        with self._opened() as file:
            return examples_from_arrays(self._pair(file, TEST), names, self.task)

    def _read_validation(self, names: tuple[str, ...]) -> RawExamples:
        with self._opened() as file:
            return examples_from_arrays(self._pair(file, VALIDATION), names, self.task)

    def _groups(self, file: NpzFile, name: str, examples: int) -> NDArray[np.int64]:
        if name in TEST:
            raise DataError(f"{self.path}: {name} belongs to the sealed test set and cannot be data.groups")
        return encode_groups(self._array(file, name), f"{self.path}: {name} (data.groups)", examples)

    def _pair(self, file: NpzFile, names: tuple[str, str]) -> ArrayPair:
        x, y = (self._array(file, name) for name in names)
        return ArrayPair(x, y, str(self.path), names)

    def _required(self, file: NpzFile, name: str) -> str:
        if name not in file.files:
            raise DataError(f"{self.path}: has no array '{name}' (it has {', '.join(file.files) or 'none'})")
        return name

    def _array(self, file: NpzFile, name: str) -> NDArray[Any]:
        try:
            found: Any = file[self._required(file, name)]
        except ValueError as error:
            if "pickle" in str(error):
                problem = "has Python objects, which hpo does not unpickle; save it as numbers or strings"
                raise DataError(f"{self.path}: {name} {problem}") from error
            raise
        if not isinstance(found, np.ndarray):
            raise DataError(f"{self.path}: {name} is not an array")
        return found

    def _header(self, file: NpzFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        stream: IO[bytes]
        with _archive(file).open(f"{self._required(file, name)}.npy") as stream:
            read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
        return shape, dtype

    @contextmanager
    def _opened(self) -> Iterator[NpzFile]:
        """Open the archive; every failure to read it is a DataError that names it."""
        try:
            with open_regular_file(self.path) as raw:
                found: Any = np.load(raw, allow_pickle=False)
                if not isinstance(found, NpzFile):
                    raise DataError(f"{self.path}: has a single array; save x and y with numpy.savez")
                with found as file:
                    yield file
        except (ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.path}: is not an .npz file, or is damaged or truncated") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error


def _archive(file: NpzFile) -> zipfile.ZipFile:
    assert file.zip is not None, "it is open"
    return file.zip
