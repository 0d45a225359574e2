"""Ranked trials as lines of text, and trials grouped by configuration.

Only completed trials are ranked: the last value of a pruned trial is from fewer epochs and cannot be compared. Reads
studies and changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from hpo.results.no_best_trial import no_best_trial
from hpo.results.study_facts import metrics_of
from hpo.search.points import FIXED
from hpo.search.space import few_digits, settings
from hpo.storage import Storage, best_trials, summary
from hpo.storage.studies import MAX_TRIALS
from hpo.studyfile import AnyStudy, ObjectiveStudy
from hpo.text import printable

METRIC_LABELS = {
    "val_accuracy": "val acc",
    "val_balanced_accuracy": "val balanced acc",
    "val_f1_weighted": "val weighted f1",
    "val_top_k": "val top-k acc",
    "val_loss": "val loss",
    "parameters": "parameters",
    "seconds_per_epoch": "s an epoch",
}


def metric_label(metric: str) -> str:
    """Return the short name of a metric: `val acc`, `val f1`."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


def rank_label(rank: int, trial: int, metrics: Sequence[str] = ("val_accuracy",)) -> str:
    """Return a rank with the number of its trial: `Best-3 (trial 40)`, or `Front-3 (trial 40)` of several metrics."""
    return f"{'Best' if len(metrics) == 1 else 'Front'}-{rank} (trial {trial})"


def best_line(rank: int, trial: FrozenTrial, metrics: Sequence[str] = ("val_accuracy",)) -> str:
    """Return `Best-1 (trial 40) | val acc: 0.8500 | lr: 9.2616e-03, weight decay: 7.2296e-06`."""
    parts = [rank_label(rank, trial.number, metrics), scores_line(trial, metrics)]
    return " | ".join(filter(None, [*parts, params_line(trial.params, trial.distributions)]))


def scores_line(trial: FrozenTrial, metrics: Sequence[str]) -> str:
    """Return `val acc: 0.8500, parameters: 25,450`; with folds `val acc: 0.8500 ± 0.0120 over 5 folds`."""
    texts = zip(metrics, score_texts(trial, metrics), strict=True)
    return ", ".join(f"{metric_label(metric)}: {text}" for metric, text in texts)


def score_texts(trial: FrozenTrial, metrics: Sequence[str]) -> list[str]:
    """Return the text of each value of a trial; with folds, the first one is `0.8500 ± 0.0120 over 5 folds`."""
    texts = [score_text(metric, value) for metric, value in zip(metrics, trial.values, strict=True)]
    if folds := trial.user_attrs.get("fold_scores"):
        texts[0] += f" ± {stdev(folds):.4f} over {len(folds)} folds"
    return texts


def score_text(metric: str, value: float) -> str:
    """Return the text of a metric's value."""
    return f"{value:,.0f}" if metric == "parameters" else f"{value:.4f}"


def values_of(metrics: Sequence[str], trial: FrozenTrial) -> dict[str, dict[str, float]]:
    """Return `{"values": {metric: value}}` for the record of a trial; {} for a study of one metric."""
    return {"values": dict(zip(metrics, trial.values or (), strict=False))} if len(metrics) > 1 else {}


def score(trial: FrozenTrial) -> float:
    """Return a trial's value of the first metric."""
    assert trial.values is not None
    return float(trial.values[0])


def params_line(params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> str:
    """Return `lr: 9.2616e-03, weight decay: 7.2296e-06`."""
    return ", ".join(
        printable(f"{name.replace('_', ' ')}: {value_text(value, distributions[name])}")
        for name, value in params.items()
    )


def value_text(value: Any, distribution: BaseDistribution) -> str:
    """Return the text of a parameter's value."""
    if not isinstance(distribution, FloatDistribution):
        return str(few_digits(value))
    # with four decimals a small number of a linear range would be 0.0000
    return f"{value:.4e}" if distribution.log or 0 < abs(value) < 1e-3 else f"{value:.4f}"


def top_lines(storage: Storage, name: str, n: int) -> list[str]:
    """Return a line for each of the `n` best trials of a study; see `best_trials`.

    A last line names the number of further trials on the Pareto front.
    """
    metrics = metrics_of(summary(storage, name))
    trials = best_trials(storage, name, n if len(metrics) == 1 else MAX_TRIALS)
    if not trials:
        raise no_best_trial(storage, name)
    lines = [best_line(rank, trial, metrics) for rank, trial in enumerate(trials[:n], start=1)]
    more = len(trials) - n
    return [*lines, f"and {more} more on the front; -n {len(trials)} shows all"] if more > 0 else lines


@dataclass(frozen=True)
class Configuration:
    """Trials of the same configuration in the given order; `mean` is the mean of their scores."""

    params: Mapping[str, Any]
    trials: tuple[FrozenTrial, ...]
    mean: float


def by_configuration(study: AnyStudy, trials: Iterable[FrozenTrial]) -> dict[str, list[FrozenTrial]]:
    """Return the trials by configuration (the text of `settings`), in the given order.

    A trial of a repeated point of an objective study has the values of the point: where the function has failed, it may
    not have suggested all parameters.
    """
    groups: dict[str, list[FrozenTrial]] = {}
    points = isinstance(study, ObjectiveStudy) and study.search.repeats > 1
    for trial in trials:
        values = trial.system_attrs.get(FIXED, trial.params) if points else trial.params
        groups.setdefault(settings(study, values), []).append(trial)
    return groups


def ranked_configurations(study: AnyStudy, trials: Iterable[FrozenTrial]) -> list[Configuration]:
    """Return the configurations of the trials that have a finite score, the best mean first."""
    scored = [trial for trial in trials if trial.values is not None and math.isfinite(score(trial))]
    groups = by_configuration(study, scored).values()
    found = [Configuration(same[0].params, tuple(same), fmean(map(score, same))) for same in groups]
    return sorted(found, key=lambda each: each.mean if study.search.minimized else -each.mean)
