"""User data in memory: NumPy arrays, tensors or lists, as the data set `arrays:HASH`.

`remember_arrays` makes arrays known in this process, under the hash of their content. They are not copied; where one
has been changed since, reading it raises DataError. Only `read_test` converts the test arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.data.user.arrays import ArrayPair, encode_groups, examples_from_arrays
from hpo.errors import DataError

TRAINING, VALIDATION, TEST = ("x", "y"), ("x_val", "y_val"), ("x_test", "y_test")
GROUPS, CLASSES = "groups", "classes"
WHERE = "hpo.Data"
"""The name of data in memory in error messages."""

HASH_LETTERS = 16

Arrays = Mapping[str, NDArray[Any]]

_arrays: dict[str, Arrays] = {}


def remember_arrays(given: Mapping[str, Any]) -> str:
    """Make arrays known; return their data set. The names are x, y, x_val, y_val, x_test, y_test, groups and classes.

    Raises DataError for an array that cannot be converted, and for one without its partner or with another length.
    """
    arrays = {name: _array(value, name) for name, value in given.items()}
    for x, y in (TRAINING, VALIDATION, TEST):
        if (x in arrays) != (y in arrays):
            missing, other = (x, y) if y in arrays else (y, x)
            raise DataError(f"{WHERE}: {missing}: missing beside {other}")
        if x in arrays and (not arrays[x].ndim or arrays[x].shape[:1] != arrays[y].shape[:1]):
            shapes = f"{list(arrays[x].shape)} and {list(arrays[y].shape)}"
            raise DataError(f"{WHERE}: {x} and {y} must have one row for each example (got shapes {shapes})")
    dataset = f"arrays:{_hash_of(arrays)}"
    _arrays[dataset] = arrays
    return dataset


def unknown_data(noun: str, keyword: str) -> DataError:
    """Return the error for data that another process had in its memory."""
    return DataError(
        f"the study's {noun} in the memory of another process: create the same hpo.Data({keyword}) here first, or "
        "save the data to a file and use that in a study of another name"
    )


@dataclass(frozen=True)
class ArraysSource:
    """The data set of known arrays, whether the study has groups, and the kind of its task."""

    dataset: str
    has_groups: bool = False
    task: str = "classification"

    def read_training(self) -> RawExamples:
        """Read x and y, and the groups and class names where there are any."""
        arrays = self._read()
        classes = arrays[CLASSES].tolist() if CLASSES in arrays else None
        raw = self._examples(arrays, TRAINING, classes)
        groups = encode_groups(arrays[GROUPS], f"{WHERE}: {GROUPS}", len(raw)) if self.has_groups else None
        own = partial(self._examples, arrays, VALIDATION, raw.names) if VALIDATION[0] in arrays else None
        return replace(raw, groups=groups, read_validation=own)

    def test_size(self) -> int | None:
        """Return the number of test examples; 0 without a test set."""
        return len(self._known().get(TEST[0], ()))

    def check_test(self) -> None:
        """Raise DataError without a test set."""
        if TEST[0] not in self._known():
            raise DataError(f"{WHERE}: has no test set: pass {' and '.join(TEST)}")

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Read x_test and y_test."""
        self.check_test()
        return self._examples(self._read(), TEST, names)

    def _examples(self, arrays: Arrays, names: tuple[str, str], classes: Sequence[str] | None) -> RawExamples:
        x, y = (arrays[name] for name in names)
        return examples_from_arrays(ArrayPair(x, y, WHERE, names), classes, self.task)

    def _known(self) -> Arrays:
        if self.dataset not in _arrays:
            raise unknown_data("arrays were", "x=..., y=...")
        return _arrays[self.dataset]

    def _read(self) -> Arrays:
        """Return the arrays. Raises DataError where one has been changed."""
        arrays = self._known()
        if f"arrays:{_hash_of(arrays)}" != self.dataset:
            raise DataError(f"{WHERE}: an array was changed after hpo.Data was made: make hpo.Data again, or of a copy")
        return arrays


def _hash_of(arrays: Arrays) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        if array.dtype.kind in "OT":  # Python strings
            digest.update(json.dumps(array.tolist(), default=repr).encode())
        else:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:HASH_LETTERS]


def _array(value: Any, name: str) -> NDArray[Any]:
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu()
    if np.ma.is_masked(value):
        raise DataError(f"{WHERE}: {name}: has masked elements; fill them, or remove these examples")
    try:
        if isinstance(value, list | tuple) and value and isinstance(value[0], str):
            return np.asarray(value, object)  # unchanged: NumPy would convert numbers among them to strings
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal length, a tensor in bfloat16
        raise DataError(f"{WHERE}: {name}: cannot be converted to an array ({error})") from error
