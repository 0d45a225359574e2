"""Which trials are the best: of one objective all, in order; of several those on the Pareto front.

On the front are those to which no other is preferable: as good in all objectives and better in one. Pure functions of
values; equal trials are equally good. Knows nothing of studies and tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from optuna.study import StudyDirection
from optuna.study._multi_objective import _is_pareto_front

Losses = tuple[float, ...]
"""A value for each objective, less of each better."""


def losses(values: Sequence[float], directions: Sequence[StudyDirection]) -> Losses:
    """Return values, one for each direction, as losses."""
    return tuple(
        -value if direction == StudyDirection.MAXIMIZE else value
        for value, direction in zip(values, directions, strict=True)
    )


def best_first(known: Mapping[int, Losses]) -> list[int]:
    """Return the numbers of the best trials in the order of their first losses, equal ones in that of their numbers."""
    numbers = list(known)
    if len(known) > 1 and len(known[numbers[0]]) > 1:
        on_front = _is_pareto_front(np.array(list(known.values())), assume_unique_lexsorted=False)
        numbers = [number for number, is_on in zip(numbers, on_front, strict=True) if is_on]
    return sorted(numbers, key=lambda number: (*known[number], number))
