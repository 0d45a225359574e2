"""The user's own arrays in a file that numpy.savez wrote: x, y, and perhaps x_test, y_test and classes.

Promises: members are read one by one, so x_test and y_test stay unread but by `read_test`; nothing is ever unpickled;
a file that is not as it has to be is a DataError of one line that names it.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from hpo.data.images import RawImages
from hpo.data.own import Part, own_images
from hpo.errors import DataError
from hpo.untrusted_files import open_regular_file

TRAINING, TEST = ("x", "y"), ("x_test", "y_test")
CLASSES = "classes"

_HEADER = 128  # bytes before an array's content, as numpy writes them for so few axes


@dataclass(frozen=True)
class Npz:
    """The file."""

    path: Path

    def read_training(self) -> RawImages:
        """Read x and y, and the names of the classes where they are there."""
        with self._opened() as file:
            classes = None
            if CLASSES in file.files:
                found = self._array(file, CLASSES)
                if found.dtype.kind != "U" or found.ndim != 1:
                    raise DataError(
                        f"{self.path}: {CLASSES} holds {found.dtype}; it is a list of strings, a class each"
                    )
                classes = found.tolist()
            return own_images(self._part(file, TRAINING), classes)

    def test_size(self) -> int | None:
        """Return how many images x_test has by its size in the archive's directory; 0 where it is not there."""
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
        """Raise DataError unless x_test and y_test are there; neither is read."""
        with self._opened() as file:
            if not any(name in file.files for name in TEST):
                raise DataError(f"{self.path}: has no sealed test images (no arrays {' and '.join(TEST)})")
            for name in TEST:
                self._required(file, name)

    def read_test(self, names: tuple[str, ...], channels: int) -> RawImages:
        """Read x_test and y_test, as they are."""
        self.check_test()
        with self._opened() as file:
            return own_images(self._part(file, TEST), names)

    def _part(self, file: NpzFile, names: tuple[str, str]) -> Part:
        x, y = (self._array(file, name) for name in names)
        return Part(x, y, str(self.path), names)

    def _required(self, file: NpzFile, name: str) -> str:
        if name not in file.files:
            raise DataError(f"{self.path}: has no array '{name}' (it has {', '.join(file.files) or 'none'})")
        return name

    def _array(self, file: NpzFile, name: str) -> NDArray[Any]:
        try:
            found: Any = file[self._required(file, name)]
        except ValueError as error:
            if "pickle" in str(error):
                what = "holds Python objects, which only unpickling would bring back; save it as numbers or strings"
                raise DataError(f"{self.path}: {name} {what}") from error
            raise
        if not isinstance(found, np.ndarray):
            raise DataError(f"{self.path}: {name} is no array")
        return found

    def _header(self, file: NpzFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        stream: IO[bytes]
        with _archive(file).open(f"{self._required(file, name)}.npy") as stream:
            read = npy.read_array_header_1_0 if npy.read_magic(stream) == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(stream)
        return shape, dtype

    @contextmanager
    def _opened(self) -> Iterator[NpzFile]:
        """Open the archive; every failure to read it is a DataError naming it."""
        try:
            with open_regular_file(self.path) as raw:
                found: Any = np.load(raw, allow_pickle=False)
                if not isinstance(found, NpzFile):
                    raise DataError(f"{self.path}: holds a single array; save x and y with numpy.savez")
                with found as file:
                    yield file
        except (ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.path}: is no .npz file, or is damaged or cut short") from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error


def _archive(file: NpzFile) -> zipfile.ZipFile:
    assert file.zip is not None, "it is open"
    return file.zip
