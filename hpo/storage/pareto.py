"""Ranking of trials by one metric, or by non-domination if there are several metrics (the Pareto front).

A trial is on the Pareto front if no other trial is at least as good in all metrics and better in one. All functions are
pure functions of values; trials with equal values are equally good.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.optuna_internals import is_pareto_front

Losses = tuple[float, ...]
"""One value for each objective; lower is better."""


def losses(values: Sequence[float], directions: Sequence[StudyDirection]) -> Losses:
    """Return objective values as losses: values to be maximized change sign."""
    return tuple(
        -value if direction == StudyDirection.MAXIMIZE else value
        for value, direction in zip(values, directions, strict=True)
    )


def best_first(trials: Mapping[int, Losses]) -> list[int]:
    """Return the numbers of the trials, or of the Pareto front if there are several losses, by losses, then number."""
    numbers = list(trials)
    if len(trials) > 1 and len(trials[numbers[0]]) > 1:
        on_front = is_pareto_front(np.array(list(trials.values())), assume_unique_lexsorted=False)
        numbers = [number for number, is_on in zip(numbers, on_front, strict=True) if is_on]
    return sorted(numbers, key=lambda number: (*trials[number], number))


def trials_since_best(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection], *, count_pruned: bool = True
) -> int:
    """Return the number of completed and pruned trials after the last improvement, 0 before the first completed trial.

    With one objective the last improvement is the first trial with the best value; with several it is the last trial
    that added a new point to the Pareto front. Without `count_pruned` the completed trials alone are counted.
    """
    ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    values = {t.number: losses(t.values, directions) for t in ended if t.state == TrialState.COMPLETE}
    if not values:
        return 0
    best = best_first(values)
    firsts: dict[tuple[float, ...], int] = {}
    for number in sorted(best) if len(directions) > 1 else best[:1]:
        firsts.setdefault(values[number], number)
    last = max(firsts.values())
    return sum(trial.number > last for trial in ended if count_pruned or trial.state == TrialState.COMPLETE)
