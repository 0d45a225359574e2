"""Early stopping (`training.patience`): decide from a trial's learning curve alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence


def has_stopped_improving(patience: int | None, values: Sequence[float], minimized: bool) -> bool:
    """Return whether early stopping ends a trial: the last `patience` of its metric's values improve on no earlier one.

    `values` has one value per epoch. The decision depends on the trial's own learning curve only, so a trial ends in
    the same epoch alone as in a population. Without patience (None) there is no early stopping.
    """
    if patience is None or len(values) <= patience:
        return False
    best = min if minimized else max
    return best(values) == best(values[:-patience])
