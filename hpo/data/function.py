"""User data from a function: `my_data.py:load`.

The function returns x and y, or x, y and the class names, in the forms of `hpo.data.user_arrays`. A function with an
argument `test` returns the sealed test set for `test=True`; only `read_test` calls it so. Its exceptions and invalid
results are errors of one line that name it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.examples import RawExamples
from hpo.data.user_arrays import ArrayPair, examples_from_arrays
from hpo.errors import CodeError, DataError
from hpo.usercode import load_reference, one_line_error

TEST = "test"


@dataclass(frozen=True)
class FunctionSource:
    """The reference to a function, and the folder of its file."""

    reference: str
    folder: Path

    def read_training(self) -> RawExamples:
        """Call the function for the training examples."""
        return self._examples({}, None)

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
        return self._examples({TEST: True}, names)

    def _has_test(self) -> bool:
        return TEST in inspect.signature(self._function()).parameters

    def _function(self) -> Callable[..., Any]:
        found = load_reference(self.reference, self.folder)
        if not callable(found):
            raise CodeError(f"{self.reference}: is not a function, but of type {type(found).__name__}")
        function: Callable[..., Any] = found
        return function

    def _examples(self, arguments: dict[str, bool], names: Sequence[str] | None) -> RawExamples:
        function = self._function()
        try:
            found = function(**arguments)
        except Exception as error:
            raise CodeError(f"{self.reference}: {one_line_error(error, self.folder)}") from error
        if not isinstance(found, tuple) or len(found) not in (2, 3):
            returned = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
            raise DataError(f"{self.reference}: returned {returned}; it must return x, y or x, y, class names")
        x, y = (self._array(value, name) for name, value in zip("xy", found, strict=False))
        if names is None and len(found) == 3 and found[2] is not None:
            names = self._names(found[2])
        return examples_from_arrays(ArrayPair(x, y, self.reference), names)

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
