"""How the best trials read, a line each, and whether the best lies at the edge of what was searched.

Only completed trials are ranked: a pruned one was judged on fewer epochs than the others, so its last value is not
comparable. It reads, and never writes, a study.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from hpo.errors import HpoError
from hpo.results.edges import Side, number, wider_bound
from hpo.results.lookup import metric_of
from hpo.search.space import few_digits, settings
from hpo.storage import Storage, best_trials, summary
from hpo.studyfile import Parameter, Range, Study
from hpo.studyfile.writing import key_text

METRIC_LABELS = {"val_accuracy": "val acc", "val_loss": "val loss"}


def best_line(rank: int, trial: FrozenTrial, metric: str = "val_accuracy") -> str:
    """Return `Best-1 (val acc: 0.8500) | lr: 9.2616e-03, weight decay: 7.2296e-06`."""
    head = f"Best-{rank} ({METRIC_LABELS.get(metric, metric)}: {_value(trial):.4f})"
    params = params_line(trial.params, trial.distributions)
    return f"{head} | {params}" if params else head


def params_line(params: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> str:
    """Return `lr: 9.2616e-03, weight decay: 7.2296e-06`."""
    return ", ".join(
        f"{name.replace('_', ' ')}: {_shown(value, distributions[name])}" for name, value in params.items()
    )


def top_lines(storage: Storage, name: str, n: int) -> list[str]:
    """Return a line for each of the `n` best trials of the study of that name."""
    study = summary(storage, name)
    if len(study.directions) != 1:
        raise HpoError(f"study {name!r}: has several objectives, so its trials have no one order")
    trials = best_trials(storage, name, n)
    if not trials:
        raise HpoError(f"study {name!r}: no finished trial yet; launch it to go on")
    metric = metric_of(study.user_attrs) or "value"
    return [best_line(rank, trial, metric) for rank, trial in enumerate(trials, start=1)]


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
        if trial.values is not None and math.isfinite(_value(trial)):
            runs.setdefault(settings(study, trial.params), []).append(trial)
    found = [Configuration(same[0].params, tuple(same), fmean(map(_value, same))) for same in runs.values()]
    return sorted(found, key=lambda each: each.mean if study.search.minimized else -each.mean)


def edge_warnings(study: Study, best: FrozenTrial) -> list[str]:
    """Return a line for each searched range at whose edge the best trial lies, with the option that widens it.

    An edge that the study file cannot move (a dropout rate of 0, a whole number of 1) is no reason to warn.
    """
    lines = []
    for parameter in study.parameters:
        if isinstance(parameter.searched, Range) and parameter.name in best.params:
            wider = wider_bound(study, parameter, parameter.searched, best.params)
            if wider is not None:
                shown = _shown(best.params[parameter.name], best.distributions[parameter.name])
                lines.append(_warning(parameter, parameter.searched, shown, *wider))
    return lines


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None  # ranked trials are finished ones
    return trial.value


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
