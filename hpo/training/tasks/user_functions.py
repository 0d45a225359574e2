"""User-defined losses and metrics, `FILE.py:NAME`: functions of one member, called for all members of a stack.

    loss(output, targets)        tensors [B, outputs] and [B, ...]; returns the loss of each row, [B]
    metric(predictions, targets) NumPy arrays of all N validation examples; returns a number

The predictions of a classification are probabilities, [N, classes]. A wrong result raises SettingError with the key of
the study file; exceptions of the functions are raised as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from hpo.errors import CodeError, SettingError
from hpo.training.devices import is_out_of_memory
from hpo.training.tasks.losses import RowLosses, in_float
from hpo.usercode import load_reference

LOSS, METRIC = "task.loss", "search.metric"


def load_function(reference: str, folder: Path, key: str) -> Callable[..., Any]:
    """Return the function that a reference of this key names. Raises SettingError unless it is one."""
    try:
        function = load_reference(reference, folder)
    except CodeError as error:
        raise SettingError(key, str(error)) from error
    if not callable(function) or isinstance(function, type):
        raise SettingError(key, f"{reference} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]  # any callable


class UserLoss:
    """The loss of K members. Runs once for all members by torch.func.vmap, or member by member where vmap cannot."""

    def __init__(self, reference: str, function: Callable[[Tensor, Tensor], Any]) -> None:
        self._reference, self._function = reference, function
        self._can_map = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> RowLosses:
        """Return the losses [K, B] of outputs [K, B, outputs]. Raises SettingError for another shape or type."""
        values = in_float(outputs)
        rows = self._mapped(values, targets) if len(values) > 1 else None
        if rows is None:
            rows = torch.stack([self._checked(self._function(member, targets), len(targets)) for member in values])
        return RowLosses(rows, rows)

    def _mapped(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return the losses of all members at once; None where vmap cannot run the function."""
        if not self._can_map:
            return None
        try:
            rows: object = vmap(self._function, in_dims=(0, None))(outputs, targets)
        except Exception as error:  # an error of the function itself is raised again when it is called member by member
            if is_out_of_memory(error):
                raise
            self._can_map = False
            return None
        if isinstance(rows, Tensor):
            self._checked(rows[0], len(targets))
            return rows
        self._checked(rows, len(targets))
        return None

    def _checked(self, rows: object, examples: int) -> Tensor:
        must = f"it must return a floating-point tensor [{examples}], one loss for each example"
        if not isinstance(rows, Tensor):
            raise SettingError(LOSS, f"{self._reference} returns a {type(rows).__name__}; {must}")
        if rows.shape != (examples,) or not rows.dtype.is_floating_point:
            given = f"{list(rows.shape)} ({str(rows.dtype).removeprefix('torch.')}) for {examples} examples"
            raise SettingError(LOSS, f"{self._reference} returns {given}; {must}")
        return rows


class UserMetric:
    """A metric of K members, called member by member on the CPU. `predict` turns outputs [N, outputs] into predictions.

    The arrays of each call are copies, which the function may change.
    """

    def __init__(
        self,
        reference: str,
        function: Callable[[NDArray[Any], NDArray[Any]], Any],
        predict: Callable[[Tensor], Tensor],
    ) -> None:
        self._reference, self._function, self._predict = reference, function, predict

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the metric of each member, [K]. Raises SettingError where the function returns no number."""
        predictions, expected = self._predict(outputs).cpu().numpy(), targets.cpu().numpy()
        values = [self._number(self._function(member.copy(), expected.copy())) for member in predictions]
        return torch.tensor(values, dtype=outputs.dtype, device=outputs.device)

    def _number(self, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            problem = f"{self._reference} returns a {type(value).__name__}; it must return a number"
            raise SettingError(METRIC, problem) from error
