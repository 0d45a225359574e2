"""CIFAR-10's binary version: records of one label byte and 3,072 pixel bytes (a red, a green and a blue plane).

Promises: any whole number of records a file is accepted, in data_batch_1.bin, data_batch_2.bin and so on without a gap;
anything else is a DataError of one line that names the file. `read_test` alone opens the test file.
Knows nothing of where folders come from; the pickled "python" version is never read, since unpickling runs code.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import numpy as np

from hpo.data.idx import MAX_IMAGES, check_labels
from hpo.data.images import RawImages
from hpo.errors import DataError

KIND = "CIFAR-10 binary"
_TEST = "test_batch.bin"
_BATCH = re.compile(r"data_batch_([1-9][0-9]{0,3})\.bin")


def holds(folder: Path) -> bool:
    """Say whether the folder has any training batch."""
    return bool(_numbers(folder))


def read_training(folder: Path, shape: tuple[int, int, int], classes: int) -> RawImages:
    """Read the training batches of a folder, in the order of their numbers."""
    batches = [_read(path, shape, classes) for path in _batches(folder, shape)]
    return RawImages(
        np.concatenate([batch.pixels for batch in batches]), np.concatenate([batch.labels for batch in batches])
    )


def read_test(folder: Path, shape: tuple[int, int, int], classes: int) -> RawImages:
    """Read the sealed test batch of a folder."""
    _records(folder / _TEST, shape)
    return _read(folder / _TEST, shape, classes)


def check_test(folder: Path, shape: tuple[int, int, int]) -> None:
    """Raise DataError where the test file is missing or not of a sound size; it is not opened."""
    _records(folder / _TEST, shape)


def count_training(folder: Path, shape: tuple[int, int, int]) -> int:
    """Return how many training images the files' sizes give, opening none."""
    return sum(_records(path, shape) for path in _batches(folder, shape))


def test_size(folder: Path, shape: tuple[int, int, int]) -> int | None:
    """Return how many test images there are from the file's size; None where that cannot be told."""
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


def _batches(folder: Path, shape: tuple[int, int, int]) -> list[Path]:
    """Return the batches' paths, each of a sound size, before any is read."""
    numbers = _numbers(folder)
    expected = range(1, numbers[-1] + 1 if numbers else 2)
    missing = sorted(set(expected) - set(numbers))
    if missing:
        raise DataError(f"{folder / f'data_batch_{missing[0]}.bin'}: missing; copy the whole data set there")
    paths = [folder / f"data_batch_{number}.bin" for number in numbers]
    if sum(_records(path, shape) for path in paths) > MAX_IMAGES:
        raise DataError(f"{folder}: more than {MAX_IMAGES:,} images in all")
    return paths


def _records(path: Path, shape: tuple[int, int, int]) -> int:
    """Return the number of records that the file's size gives."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    record = 1 + math.prod(shape)
    count, rest = divmod(size, record)
    if rest or not 0 < count <= MAX_IMAGES:
        raise DataError(
            f"{path}: truncated, oversize or not CIFAR-10's binary version ({size:,} bytes, records have {record:,})"
        )
    return count


def _read(path: Path, shape: tuple[int, int, int], classes: int) -> RawImages:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    record = 1 + math.prod(shape)
    if len(content) % record:
        raise DataError(f"{path}: changed while it was read; try again")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    check_labels(records[:, 0], classes, path)
    return RawImages(records[:, 1:].reshape(-1, *shape), records[:, 0])
