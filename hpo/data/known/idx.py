"""IDX files, the format of MNIST and Fashion-MNIST: images and labels, plain or gzip (by content, not by name).

Results have the expected shape and labels of known classes. Anything else (truncated, too large, wrong magic number,
different counts) is a DataError that names the file. `read_test` alone opens test files.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.errors import DataError

KIND = "IDX"
IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801  # unsigned bytes in 3 dimensions, in 1
GZIP_MAGIC = b"\x1f\x8b"
MAX_IMAGES = 2_000_000  # a header with more is damaged, and would make hpo allocate all memory

_TRAINING = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def has_training_files(folder: Path) -> bool:
    """Return whether the folder has any of the training files."""
    return any(_find(folder, name) for name in _TRAINING)


def read_training(folder: Path, shape: tuple[int, ...], classes: int) -> RawExamples:
    """Read the training images and labels of a folder."""
    return _read_pair(folder, _TRAINING, shape, classes)


def read_test(folder: Path, shape: tuple[int, ...], classes: int) -> RawExamples:
    """Read the sealed test images and labels of a folder."""
    return _read_pair(folder, _TEST, shape, classes)


def check_test(folder: Path, shape: tuple[int, ...]) -> None:
    """Raise DataError if a test file is missing; none is opened."""
    for name in _TEST:
        _required(folder, name)


def count_training(folder: Path, shape: tuple[int, ...]) -> int:
    """Return the number of training images in the header of their file; no more is read."""
    path = _required(folder, _TRAINING[0])
    with _reading(path) as stream:
        return _header(stream, path, IMAGES_MAGIC, shape[1:])


def test_size(folder: Path, shape: tuple[int, ...]) -> int | None:
    """Return the number of test images by a plain file's size; None if it would have to be opened."""
    path = _find(folder, _TEST[0])
    if path is None or path.suffix == ".gz":
        return None
    count, rest = divmod(path.stat().st_size - 16, math.prod(shape))
    return count if rest == 0 and count > 0 else None


def training_labels_sha256(folder: Path) -> str | None:
    """Return the SHA-256 of the uncompressed file of training labels; None if it cannot be read."""
    path = _find(folder, _TRAINING[1])
    if path is None:
        return None
    try:
        with _reading(path) as stream:
            return hashlib.sha256(stream.read(8 + MAX_IMAGES)).hexdigest()
    except DataError:
        return None


def _find(folder: Path, name: str) -> Path | None:
    # os.path.isfile returns False for a folder without access, where Path.is_file would raise.
    return next((path for path in (folder / name, folder / f"{name}.gz") if os.path.isfile(path)), None)


def _required(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise DataError(f"{folder / name}: missing (plain or .gz); copy the whole data set there")
    return path


def _read_pair(folder: Path, names: tuple[str, str], shape: tuple[int, ...], classes: int) -> RawExamples:
    images_path, labels_path = (_required(folder, name) for name in names)
    pixels = _read(images_path, IMAGES_MAGIC, shape[1:]).reshape(-1, *shape)
    labels = _read(labels_path, LABELS_MAGIC, ())
    if len(labels) != len(pixels):
        raise DataError(f"{labels_path}: has {len(labels)} labels, but {images_path.name} has {len(pixels)} images")
    check_labels(labels, classes, labels_path)
    return RawExamples(pixels, labels)


def check_labels(labels: NDArray[np.uint8], classes: int, path: Path) -> None:
    """Raise DataError for the first label above the number of classes."""
    wrong = np.flatnonzero(labels >= classes)
    if len(wrong):
        raise DataError(f"{path}: label {labels[wrong[0]]} of image {wrong[0]} is above {classes - 1}")


def _read(path: Path, magic: int, item: tuple[int, ...]) -> NDArray[np.uint8]:
    with _reading(path) as stream:
        count = _header(stream, path, magic, item)
        expected = count * math.prod(item)
        body = stream.read(expected + 1)
    if len(body) != expected:
        problem = "truncated" if len(body) < expected else "longer than in its header"
        size = f"{len(body):,}" if len(body) < expected else f"more than {expected:,}"
        raise DataError(
            f"{path}: {problem} ({size} bytes of content, {expected:,} expected); copy or download it again"
        )
    return np.frombuffer(body, dtype=np.uint8)


def _header(stream: IO[bytes], path: Path, magic: int, item: tuple[int, ...]) -> int:
    """Read and check the header; return the number of items."""
    fields = 2 + len(item)
    head = stream.read(4 * fields)
    if len(head) < 4 * fields:
        raise DataError(f"{path}: truncated in its header ({len(head)} bytes); copy or download it again")
    found, count, *shape = struct.unpack(f">{fields}I", head)
    if found != magic:
        what = "images" if magic == IMAGES_MAGIC else "labels"
        raise DataError(f"{path}: not an IDX file of {what} (magic 0x{found:08x}, 0x{magic:08x} expected)")
    if tuple(shape) != item:
        raise DataError(f"{path}: images of {'x'.join(map(str, shape))}, {'x'.join(map(str, item))} expected")
    if not 0 < count <= MAX_IMAGES:
        raise DataError(f"{path}: its header has {count:,} items, 1 to {MAX_IMAGES:,} expected")
    return int(count)


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzip file for reading; every failure is a DataError that names it."""
    try:
        with open(path, "rb") as raw:
            if raw.peek(2)[:2] != GZIP_MAGIC:
                yield raw
                return
            with gzip.GzipFile(fileobj=raw) as content:
                yield content  # type: ignore[misc]  # a stream of bytes, but not IO in typeshed
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: its gzip data is damaged or truncated; copy or download it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
