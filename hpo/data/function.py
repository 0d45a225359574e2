"""The user's own images from a function of theirs: `my_data.py:load`.

The function returns x and y, or x, y and the names of the classes, as `hpo.data.own` wants them. One that has an
argument `test` returns the sealed test images with `test=True`. Promises: it is called so by `read_test` alone; what it
raises, and what it returns that cannot be used, is an error of one line that names it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpo.data.images import RawImages
from hpo.data.own import Part, own_images
from hpo.errors import CodeError, DataError
from hpo.usercode import load_reference, one_line_error

TEST = "test"


@dataclass(frozen=True)
class Function:
    """What is called, and the folder of its file."""

    reference: str
    folder: Path

    def read_training(self) -> RawImages:
        """Call the function."""
        return self._images({}, None)

    def test_size(self) -> int | None:
        """Return 0 where the function has no test images; how many there are, only calling it would tell."""
        return None if self._has_test() else 0

    def check_test(self) -> None:
        """Raise DataError where the function has no test images."""
        if not self._has_test():
            raise DataError(f"{self.reference}: has no sealed test images (its function has no argument '{TEST}')")

    def read_test(self, names: tuple[str, ...], channels: int) -> RawImages:
        """Call the function for its test images."""
        self.check_test()
        return self._images({TEST: True}, names)

    def _has_test(self) -> bool:
        return TEST in inspect.signature(self._function()).parameters

    def _function(self) -> Callable[..., Any]:
        found = load_reference(self.reference, self.folder)
        if not callable(found):
            raise CodeError(f"{self.reference}: is no function (it is of type {type(found).__name__})")
        function: Callable[..., Any] = found
        return function

    def _images(self, arguments: dict[str, bool], names: Sequence[str] | None) -> RawImages:
        function = self._function()
        try:
            found = function(**arguments)
        except Exception as error:
            raise CodeError(f"{self.reference}: {one_line_error(error, self.folder)}") from error
        if not isinstance(found, tuple) or len(found) not in (2, 3):
            what = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
            raise DataError(f"{self.reference}: returned {what}; it has to return x, y, or x, y, names of the classes")
        x, y = (self._array(value, name) for name, value in zip("xy", found, strict=False))
        if names is None and len(found) == 3 and found[2] is not None:
            names = self._names(found[2])
        return own_images(Part(x, y, self.reference), names)

    def _array(self, value: Any, name: str) -> NDArray[Any]:
        if np.ma.is_masked(value):
            raise DataError(f"{self.reference}: {name} has masked elements; fill them, or leave these images out")
        try:
            array = np.asarray(value)
            if array.dtype.kind == "U" and isinstance(value, list | tuple):
                return np.asarray(value, object)  # as it was given: NumPy makes strings of the numbers in it, too
        except (ValueError, TypeError, RuntimeError) as error:  # of lists of unequal length, or tensors on a GPU
            raise DataError(f"{self.reference}: {name} cannot be made an array ({error})") from error
        return array

    def _names(self, value: Any) -> list[str]:
        names = self._array(value, "the names of the classes").tolist()
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            kind = type(value).__name__
            raise DataError(f"{self.reference}: the names of the classes are a list of strings (it returned a {kind})")
        return list(map(str, names))
