"""CIFAR-10's binary version: records of one label byte and 3,072 pixel bytes (a red, a green and a blue plane).

Training files are data_batch_1.bin, data_batch_2.bin and so on without a gap, each with any number of complete records.
Anything else is a DataError that names the file. `read_test` alone opens the test file. The pickled "python" version is
never read, because unpickling executes code.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np

from hpo.data.examples import RawExamples
from hpo.data.known.idx import MAX_IMAGES, check_labels
from hpo.errors import DataError

KIND = "CIFAR-10 binary"
_TEST = "test_batch.bin"
_BATCH = re.compile(r"data_batch_([1-9][0-9]{0,3})\.bin")


def has_training_files(folder: Path) -> bool:
    """Return whether the folder has any training batch."""
    return bool(_numbers(folder))


def read_training(folder: Path, shape: tuple[int, ...], classes: int) -> RawExamples:
    """Read the training batches of a folder, in the order of their numbers."""
    batches = [_read(path, shape, classes) for path in _batches(folder, shape)]
    return RawExamples(
        np.concatenate([batch.inputs for batch in batches]), np.concatenate([batch.targets for batch in batches])
    )


def read_test(folder: Path, shape: tuple[int, ...], classes: int) -> RawExamples:
    """Read the sealed test batch of a folder."""
    _records(folder / _TEST, shape)
    return _read(folder / _TEST, shape, classes)


def check_test(folder: Path, shape: tuple[int, ...]) -> None:
    """Raise DataError if the test file is missing or has an invalid size; it is not opened."""
    _records(folder / _TEST, shape)


def count_training(folder: Path, shape: tuple[int, ...]) -> int:
    """Return the number of training images by the files' sizes; none is opened."""
    return sum(_records(path, shape) for path in _batches(folder, shape))


def test_size(folder: Path, shape: tuple[int, ...]) -> int | None:
    """Return the number of test images by the file's size; None if that is invalid."""
    try:
        return _records(folder / _TEST, shape)
    except DataError:
        return None


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(match[1]) for match in map(_BATCH.fullmatch, names) if match)


def _batches(folder: Path, shape: tuple[int, ...]) -> list[Path]:
    """Return the paths of the batches, after all their sizes were checked."""
    numbers = _numbers(folder)
    expected = range(1, numbers[-1] + 1 if numbers else 2)
    missing = sorted(set(expected) - set(numbers))
    if missing:
        raise DataError(f"{folder / f'data_batch_{missing[0]}.bin'}: missing; copy the whole data set there")
    paths = [folder / f"data_batch_{number}.bin" for number in numbers]
    if sum(_records(path, shape) for path in paths) > MAX_IMAGES:
        raise DataError(f"{folder}: more than {MAX_IMAGES:,} images")
    return paths


def _records(path: Path, shape: tuple[int, ...]) -> int:
    """Return the number of records by the file's size."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    record = 1 + math.prod(shape)
    count, rest = divmod(size, record)
    if rest or not 0 < count <= MAX_IMAGES:
        raise DataError(
            f"{path}: truncated, too large or not CIFAR-10's binary version ({size:,} bytes, records have {record:,})"
        )
    return count


def _read(path: Path, shape: tuple[int, ...], classes: int) -> RawExamples:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    record = 1 + math.prod(shape)
    if len(content) % record:
        raise DataError(f"{path}: changed while it was read; try again")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    check_labels(records[:, 0], classes, path)
    return RawExamples(records[:, 1:].reshape(-1, *shape), records[:, 0])
