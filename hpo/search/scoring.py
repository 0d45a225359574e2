"""Objective values of a network trial, from its learning curve."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hpo.search.study_records import Curve
from hpo.studyfile import Config, Study
from hpo.training.trainer import Trainer


def score_epoch(study: Study, curve: Curve) -> int:
    """Return the epoch whose value is a trial's score so far: the last, or the best."""
    values = curve[study.search.first_metric]
    if study.search.score == "last":
        return len(values)
    return values.index((min if study.search.minimized else max)(values)) + 1


def fold_scores(study: Study, curve: Curve) -> list[float]:
    """Return the scores of a trial on each fold, whose mean is its score so far; empty without `data.folds`."""
    epoch, metric, scores = score_epoch(study, curve), study.search.first_metric, list[float]()
    while (of_fold := f"{metric}/{len(scores) + 1}") in curve:
        scores.append(curve[of_fold][epoch - 1])
    return scores


def objective_values(
    study: Study, trainer: Trainer, config: Config, curve: Curve, seconds: Sequence[float]
) -> tuple[float, ...]:
    """Return a trial's objective values so far, one a metric. `seconds` are its shares of the epochs' times."""
    epoch = score_epoch(study, curve)

    def value(metric: str) -> float:
        match metric:
            case "parameters":
                return float(trainer.parameters(config))
            case "seconds_per_epoch":  # the first epoch also builds the stack
                return statistics.median(seconds[1:] or seconds)
            case _:
                return curve[metric][epoch - 1]

    return tuple(map(value, study.search.metrics))
