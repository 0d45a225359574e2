"""User data from a function: `my_data.py:load`.

The function returns x and y, or x, y and the class names, in the forms of `hpo.data.user.arrays`; or a dictionary with
x and y, and optionally classes, x_val and y_val, and groups. A function with an argument `test` returns the sealed test
set for `test=True`; only `read_test` calls it so. Its exceptions and invalid results are errors of one line that name
it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.data.user.arrays import ArrayPair, encode_groups, examples_from_arrays
from hpo.errors import CodeError, DataError
from hpo.usercode import load_reference, one_line_error

TEST = "test"
TRAINING, VALIDATION = ("x", "y"), ("x_val", "y_val")
CLASSES = "classes"


@dataclass(frozen=True)
class FunctionSource:
    """The reference to a function, the folder of its file, the key of the study's groups, and the kind of its task."""

    reference: str
    folder: Path
    groups: str | None = None
    task: str = "classification"

    def read_training(self) -> RawExamples:
        """Call the function for the training examples."""
        found = self._call({})
        raw = self._examples(found, TRAINING, None)
        groups = None
        if self.groups is not None:
            where = f"{self.reference}: {self.groups} (data.groups)"
            groups = encode_groups(self._array(self._required(found, self.groups), self.groups), where, len(raw))
        own = any(name in found for name in VALIDATION)
        read = partial(self._examples, found, VALIDATION, raw.names) if own else None
        return replace(raw, groups=groups, read_validation=read)

    def test_size(self) -> int | None:
        """Return 0 if the function has no argument `test`, else None: only a call would tell the number."""
        return None if self._has_test() else 0

    def check_test(self) -> None:
        """Raise DataError if the function has no argument `test`."""
        if not self._has_test():
            raise DataError(f"{self.reference}: has no test set, because the function has no argument '{TEST}'")

    def read_test(self, names: tuple[str, ...], channels: int) -> RawExamples:
        """Call the function for the test set."""
        self.check_test()
        return self._examples(self._call({TEST: True}), TRAINING, names)

    def _has_test(self) -> bool:
        return TEST in inspect.signature(self._function()).parameters

    def _function(self) -> Callable[..., Any]:
        found = load_reference(self.reference, self.folder)
        if not callable(found):
            raise CodeError(f"{self.reference}: is not a function, but of type {type(found).__name__}")
        function: Callable[..., Any] = found
        return function

    def _call(self, arguments: dict[str, bool]) -> dict[str, Any]:
        """Call the function; return what it returns by key."""
        function = self._function()
        try:
            found = function(**arguments)
        except Exception as error:
            raise CodeError(f"{self.reference}: {one_line_error(error, self.folder)}") from error
        if isinstance(found, Mapping):
            return {str(key): value for key, value in found.items()}
        if not isinstance(found, tuple) or len(found) not in (2, 3):
            returned = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
            forms = "x, y or x, y, class names or a dictionary with x and y"
            raise DataError(f"{self.reference}: returned {returned}; it must return {forms}")
        return dict(zip((*TRAINING, CLASSES), found, strict=False))

    def _examples(self, found: Mapping[str, Any], keys: tuple[str, str], names: Sequence[str] | None) -> RawExamples:
        x, y = (self._array(self._required(found, key), key) for key in keys)
        if names is None and found.get(CLASSES) is not None:
            names = self._names(found[CLASSES])
        return examples_from_arrays(ArrayPair(x, y, self.reference, keys), names, self.task)

    def _required(self, found: Mapping[str, Any], key: str) -> Any:
        if key not in found:
            wanted = f"'{key}' (data.groups)" if key == self.groups else f"'{key}'"
            raise DataError(f"{self.reference}: returned no {wanted}, only {', '.join(found) or 'an empty dictionary'}")
        return found[key]

    def _array(self, value: Any, name: str) -> NDArray[Any]:
        if np.ma.is_masked(value):
            raise DataError(f"{self.reference}: {name} has masked elements; fill them, or remove these examples")
        try:
            array = np.asarray(value)
            if array.dtype.kind == "U" and isinstance(value, list | tuple):
                return np.asarray(value, object)  # unchanged: NumPy would convert numbers in it to strings
        except (ValueError, TypeError, RuntimeError) as error:  # lists of unequal length, or tensors on a GPU
            raise DataError(f"{self.reference}: {name} cannot be converted to an array ({error})") from error
        return array

    def _names(self, value: Any) -> list[str]:
        names = self._array(value, "the class names").tolist()
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            kind = type(value).__name__
            raise DataError(f"{self.reference}: the class names must be a list of strings (got {kind})")
        return list(map(str, names))
