"""Patience: when a trial ends because it has stopped getting better.

It is decided from the trial's own curve, so a trial ends in the same epoch alone as in company. Who trains decides what
an end is: the training itself knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpo.studyfile.models import is_minimized


def is_over(patience: int | None, values: Sequence[float], metric: str) -> bool:
    """Return whether the last `patience` of a metric's values, one an epoch, are no better than the best before."""
    if patience is None or len(values) <= patience:
        return False
    best = min if is_minimized(metric) else max
    return best(values) == best(values[:-patience])
