"""Landscape of a search: the scores of the trials over two parameters.

The axes are learning rate and weight decay where both are searched, else the two most important numeric parameters;
with one numeric parameter, or choices only, the second axis is the score. An axis is logarithmic where its range is.
Pruned and failed trials have their own symbols, as their scores cannot be compared or do not exist. The worst tenth of
the scores shares one colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hpo.results.figures.importances import parameter_importances
from hpo.results.figures.source import Source, label, lies_in, space, spread
from hpo.results.figures.style import FAILED, PRUNED, SCALE, Drawing, blank, log_axis, notice, plain, short
from hpo.results.ranking import score
from hpo.text import join_and

USUAL = ("lr", "weight_decay")
ALWAYS_DRAWN = 100
"""The number of best trials that are always drawn, where not all trials can be."""

MARGIN = 0.05
"""The space beyond the ends of a log axis, as a fraction of it."""

MANY = 2000
"""The number of points from which they are drawn smaller."""


def landscape(source: Source) -> go.Figure:
    """Return the figure of the trials as points in the search space, coloured by score."""
    return go.Figure(draw_landscape(source))


def draw_landscape(source: Source) -> Drawing:
    """Return the trials as points in the search space, coloured by score."""
    axes = _axes(source)
    if not axes:
        return notice(f"{plain(source.name)}: landscape", "No parameter is searched.")
    within = {state: [trial for trial in source.ended(state) if lies_in(trial, axes)] for state in TrialState}
    ranked = sorted(within[TrialState.COMPLETE], key=score, reverse=source.maximized)
    completed = spread(ranked[::-1], source.limit, ranked[:ALWAYS_DRAWN])  # the best ones last, so that they are on top
    worst = score(ranked[-1]) if ranked else 0.0
    failed, pruned = (spread(within[state], source.limit) for state in (TrialState.FAIL, TrialState.PRUNED))
    drawing = blank(f"{plain(source.name)}: {plain(source.score)} by {_names(axes)}{_restriction(source, axes)}")
    parts = [
        (failed, "failed", FAILED),
        (pruned, "pruned", PRUNED),
        (completed, "completed", _coloured(source, completed, ranked)),
    ]
    for trials, how, marker in parts:
        if trials:
            points = _points(source, axes, trials, how, worst)
            drawing["data"].append({"type": "scatter", "mode": "markers", "name": how, "marker": marker, **points})
    x, *others = [_axis(name, each) for name, each in axes.items()]
    drawing["layout"] |= {
        "xaxis": x,
        "yaxis": others[0] if others else {"title": {"text": plain(source.score)}},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
    }
    return drawing


def _names(parameters: Iterable[str]) -> str:
    return join_and([plain(label(name)) for name in parameters])


def _restriction(source: Source, axes: Iterable[str]) -> str:
    """Return the part of the title about trials without a conditional parameter, which are not drawn."""
    partial = [name for name in axes if name in source.conditional]
    return f", of the trials with {_names(partial)}" if partial else ""


def _axes(source: Source) -> dict[str, BaseDistribution]:
    """Return the one or two parameters of the axes; none where no parameter is searched."""
    searched = {name: each for name, each in space(source.trials).items() if not each.single()}
    if all(name in searched and _is_number(searched[name]) for name in USUAL):
        return {name: searched[name] for name in USUAL}
    parts = parameter_importances(source)
    ranked = [] if isinstance(parts, str) else list(parts)
    ranked += [name for name in searched if name not in ranked]
    ranked.sort(key=lambda name: name in source.conditional)  # unconditional parameters first
    numbers = [name for name in ranked if _is_number(searched[name])]
    return {name: searched[name] for name in numbers[:2] or ranked[:1]}


def _points(
    source: Source, axes: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial], how: str, worst: float
) -> dict[str, Any]:
    """Return the coordinates of trials; on a score axis failed trials, which have no score, are drawn at the worst."""
    columns = [_values(trials, name, each) for name, each in axes.items()]
    if len(columns) == 1:
        columns.append(short(worst if how == "failed" else score(trial) for trial in trials))
    lines = [f"trial %{{text}}, {how}"]
    lines += [f"{plain(label(name))}: %{{{place}}}" for name, place in zip(axes, "xy", strict=False)]
    points = {"x": columns[0], "y": columns[1], "text": [str(trial.number) for trial in trials]}
    if how == "completed":
        lines.append(f"{plain(source.score)}: %{{marker.color:.4f}}")
    elif how == "pruned":
        lines.append(f"{plain(source.score)} when it was pruned: %{{customdata:.4f}}")
        points["customdata"] = short(map(score, trials))
    return {**points, "hovertemplate": "<br>".join(lines) + "<extra></extra>"}


def _coloured(source: Source, trials: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Return markers coloured by score; the colour scale ends at the worst tenth."""
    if not ranked:
        return {}
    ends = score(ranked[0]), score(ranked[math.ceil(0.9 * len(ranked)) - 1])
    return {
        "size": 8 if len(trials) <= MANY else 5,
        "color": short(map(score, trials)),
        "colorscale": SCALE,
        "reversescale": not source.maximized,
        "cmin": min(ends),
        "cmax": max(ends),
        "showscale": True,
        "colorbar": {"title": {"text": plain(source.score), "side": "right"}},
        "line": {"width": 0.5, "color": "white"},
    }


def _axis(name: str, distribution: BaseDistribution) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": plain(label(name))}}
    if isinstance(distribution, FloatDistribution | IntDistribution):
        if not distribution.log:
            return axis | {"type": "linear"}
        low, high = math.log10(distribution.low), math.log10(distribution.high)
        margin = MARGIN * (high - low)
        return axis | log_axis(distribution.low, distribution.high) | {"range": [low - margin, high + margin]}
    return axis | {"type": "category"}


def _values(trials: Sequence[FrozenTrial], name: str, distribution: BaseDistribution) -> list[Any]:
    if _is_number(distribution):
        return short(trial.params[name] for trial in trials)
    return [plain(str(trial.params[name])) for trial in trials]


def _is_number(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, FloatDistribution | IntDistribution)
