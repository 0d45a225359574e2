"""A study's objectives as Optuna understands them: which direction is better, and since when nothing has."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.storage.front import best_first, losses
from hpo.studyfile import AnyStudy


def directions(study: AnyStudy) -> list[StudyDirection]:
    """Return the direction of each of a study's objectives."""
    minimized = study.search.all_minimized
    return [StudyDirection.MINIMIZE if less else StudyDirection.MAXIMIZE for less in minimized]


def since_best(trials: Sequence[FrozenTrial], wanted: Sequence[StudyDirection]) -> int:
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
