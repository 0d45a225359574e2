"""How the best trials read, a line each, and whether the best lies at the edge of what was searched.

Only completed trials are ranked: a pruned one was judged on fewer epochs than the others, so its last value is not
comparable. It reads, and never writes, a study.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from hpo.results.edges import Side, number, wider_bound
from hpo.results.lookup import metrics_of
from hpo.results.unranked import no_best
from hpo.search.space import few_digits, settings
from hpo.storage import Storage, best_trials, summary
from hpo.studyfile import Parameter, Range, Study
from hpo.studyfile.writing import key_text
from hpo.text import printable

METRIC_LABELS = {
    "val_accuracy": "val acc",
    "val_loss": "val loss",
    "parameters": "parameters",
    "seconds_per_epoch": "s an epoch",
}


def rank_label(rank: int, trial: int, metrics: Sequence[str] = ("val_accuracy",)) -> str:
    """Return a rank with the number of its trial: `Best-3 (trial 40)`, or `Front-3 (trial 40)` of several metrics."""
    return f"{'Best' if len(metrics) == 1 else 'Front'}-{rank} (trial {trial})"


def best_line(rank: int, trial: FrozenTrial, metrics: Sequence[str] = ("val_accuracy",)) -> str:
    """Return `Best-1 (trial 40) | val acc: 0.8500 | lr: 9.2616e-03, weight decay: 7.2296e-06`."""
    parts = [rank_label(rank, trial.number, metrics), scores_line(trial, metrics)]
    return " | ".join(filter(None, [*parts, params_line(trial.params, trial.distributions)]))


def scores_line(trial: FrozenTrial, metrics: Sequence[str]) -> str:
    """Return `val acc: 0.8500, parameters: 25,450`."""
    values = zip(metrics, trial.values, strict=True)
    return ", ".join(f"{METRIC_LABELS.get(metric, metric)}: {score_text(metric, value)}" for metric, value in values)


def score_text(metric: str, value: float) -> str:
    """Return a value of a metric as it is shown."""
    return f"{value:,.0f}" if metric == "parameters" else f"{value:.4f}"


def values_of(metrics: Sequence[str], trial: FrozenTrial) -> dict[str, dict[str, float]]:
    """Return what a record says of a trial besides its score: where there are several metrics, its value of each."""
    return {"values": dict(zip(metrics, trial.values or (), strict=False))} if len(metrics) > 1 else {}


def score(trial: FrozenTrial) -> float:
    """Return the score of a trial that has one: what the first metric says of it."""
    assert trial.values is not None
    return float(trial.values[0])


def params_line(params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> str:
    """Return `lr: 9.2616e-03, weight decay: 7.2296e-06`."""
    return ", ".join(
        printable(f"{name.replace('_', ' ')}: {_shown(value, distributions[name])}") for name, value in params.items()
    )


def top_lines(storage: Storage, name: str, n: int) -> list[str]:
    """Return a line for each of the `n` best trials of the study of that name; see `best_trials`.

    Of a front that has more of them, a last line says so.
    """
    study = summary(storage, name)
    metrics = metrics_of(study)
    trials = best_trials(storage, name, n if len(metrics) == 1 else None)
    if not trials:
        raise no_best(storage, name)
    lines = [best_line(rank, trial, metrics) for rank, trial in enumerate(trials[:n], start=1)]
    return (
        lines if len(trials) <= n else [*lines, f"and {len(trials) - n} more on the front; -n {len(trials)} shows all"]
    )


@dataclass(frozen=True)
class Configuration:
    """Trials with the same settings, in the order in which they were given; `mean` is that of their values."""

    params: Mapping[str, Any]
    trials: tuple[FrozenTrial, ...]
    mean: float


def configurations(study: Study, trials: Iterable[FrozenTrial]) -> list[Configuration]:
    """Return the configurations of the trials that have a finite value, the best mean first."""
    runs: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.values is not None and math.isfinite(score(trial)):
            runs.setdefault(settings(study, trial.params), []).append(trial)
    found = [Configuration(same[0].params, tuple(same), fmean(map(score, same))) for same in runs.values()]
    return sorted(found, key=lambda each: each.mean if study.search.minimized else -each.mean)


def edge_warnings(study: Study, best: Sequence[FrozenTrial]) -> list[str]:
    """Return a line for each searched range at one edge of which all the best lie, with the option that widens it.

    The best are one trial, or those on the front of several metrics. An edge that the study file cannot move (a dropout
    rate of 0, a whole number of 1) is no reason to warn.
    """
    lines = []
    for parameter in study.parameters:
        if isinstance(parameter.searched, Range) and all(parameter.name in trial.params for trial in best):
            bounds = {wider_bound(study, parameter, parameter.searched, trial.params) for trial in best}
            wider = bounds.pop() if len(bounds) == 1 else None
            if wider is not None:
                shown = _shown(best[0].params[parameter.name], best[0].distributions[parameter.name])
                lines.append(_warning(parameter, parameter.searched, shown, *wider))
    return lines


def _shown(value: Any, distribution: BaseDistribution) -> str:
    if not isinstance(distribution, FloatDistribution):
        return str(few_digits(value))
    # four decimals would show a small number of an ordinary range as 0.0000
    return f"{value:.4e}" if distribution.log or 0 < abs(value) < 1e-3 else f"{value:.4f}"


def _warning(parameter: Parameter, searched: Range, shown: str, edge: Side, wider: float) -> str:
    bound = searched.high if edge == "high" else searched.low
    change = shlex.quote(f"{key_text((*parameter.path, edge))}={number(wider)}")
    return (
        f"the best {parameter.name} ({shown}) lies at the {edge} edge of its range ({number(bound)}): "
        f"to search beyond it, launch again with --set {change} --extend and more --trials"
    )
