"""Ranking of trials by one metric, or by non-domination where there are several (the Pareto front).

A trial is on the front where no other is at least as good in all metrics and better in one. Pure functions of values:
equal trials are equally good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import is_pareto_front
from hpo.studyfile import AnyStudy

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
        on_front = is_pareto_front(np.array(list(known.values())), assume_unique_lexsorted=False)
        numbers = [number for number, is_on in zip(numbers, on_front, strict=True) if is_on]
    return sorted(numbers, key=lambda number: (*known[number], number))


def directions(study: AnyStudy) -> list[StudyDirection]:
    """Return the direction of each of a study's objectives."""
    minimized = study.search.all_minimized
    return [StudyDirection.MINIMIZE if less else StudyDirection.MAXIMIZE for less in minimized]


def trials_since_best(trials: Sequence[FrozenTrial], wanted: Sequence[StudyDirection]) -> int:
    """Return how many completed and pruned trials have higher numbers than the last that was an improvement.

    Of one objective that is the first of the best, of several the last that brought something new to the front.
    """
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    known = {t.number: losses(t.values, wanted) for t in ended if t.state == TrialState.COMPLETE}
    best = best_first(known)
    firsts: dict[tuple[float, ...], int] = {}
    for number in sorted(best) if len(wanted) > 1 else best[:1]:
        firsts.setdefault(known[number], number)
    last = max(firsts.values(), default=-1)
    return sum(trial.number > last for trial in ended)
