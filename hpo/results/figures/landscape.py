"""The landscape of a search: where in its space trials scored what.

The axes are learning rate and weight decay where both are searched, else the two most important numbers that are
searched; where there is one, or nothing but choices, the score stands against it. An axis is logarithmic where its
range is. Pruned and failed trials have symbols of their own: their scores cannot be compared, or do not exist. A few
hopeless scores do not take all the colours: the worst tenth has the last one.
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
from hpo.results.figures.style import FAILED, PRUNED, SCALE, message, new_figure, plain, short
from hpo.results.ranking import score

USUAL = ("lr", "weight_decay")
KEPT = 100
"""The best trials are drawn in any case where not all can be."""

MANY = 2000
"""Points beyond which they are drawn smaller."""


def landscape(source: Source) -> go.Figure:
    """Return the trials as points of the search space, coloured by their scores."""
    axes = _axes(source)
    if not axes:
        return message(f"{plain(source.name)}: landscape", "No parameter is searched.")
    within = {state: [trial for trial in source.ended(state) if lies_in(trial, axes)] for state in TrialState}
    ranked = sorted(within[TrialState.COMPLETE], key=score, reverse=source.maximized)
    completed = spread(ranked[::-1], source.limit, ranked[:KEPT])  # the best ones last, which is above the others
    worst = score(ranked[-1]) if ranked else 0.0
    failed, pruned = (spread(within[state], source.limit) for state in (TrialState.FAIL, TrialState.PRUNED))
    figure = new_figure(f"{plain(source.name)}: {plain(source.score)} by {_named(axes)}{_of_which(source, axes)}")
    parts = [
        (failed, "failed", FAILED),
        (pruned, "pruned", PRUNED),
        (completed, "completed", _coloured(source, completed, ranked)),
    ]
    for trials, how, marker in parts:
        if trials:
            figure.add_scatter(mode="markers", name=how, marker=marker, **_points(source, axes, trials, how, worst))
    x, y = [_axis(name, each) for name, each in axes.items()] if len(axes) == 2 else [_axis(*axes.popitem()), {}]
    figure.update_xaxes(x)
    figure.update_yaxes(y or {"title": {"text": plain(source.score)}})
    return figure.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"})


def _named(names: Iterable[str]) -> str:
    return " and ".join(plain(label(name)) for name in names)


def _of_which(source: Source, axes: Iterable[str]) -> str:
    """Return whose landscape it is where not every trial has a place in it."""
    partial = [name for name in axes if name in source.conditional]
    return f", of the trials with {_named(partial)}" if partial else ""


def _axes(source: Source) -> dict[str, BaseDistribution]:
    """Return the one or two parameters that are the figure's axes; none where nothing is searched."""
    searched = {name: each for name, each in space(source.trials).items() if not each.single()}
    if all(name in searched and _is_number(searched[name]) for name in USUAL):
        return {name: searched[name] for name in USUAL}
    parts = parameter_importances(source)
    ranked = [] if isinstance(parts, str) else list(parts)
    ranked += [name for name in searched if name not in ranked]
    ranked.sort(key=lambda name: name in source.conditional)  # axes that every trial has a place on come first
    numbers = [name for name in ranked if _is_number(searched[name])]
    return {name: searched[name] for name in numbers[:2] or ranked[:1]}


def _points(
    source: Source, axes: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial], how: str, worst: float
) -> dict[str, Any]:
    """Return where trials stand; where scores are an axis, failed ones, which have none, stand where the worst does."""
    columns = [_values(trials, name, each) for name, each in axes.items()]
    if len(columns) == 1:
        columns.append(short(worst if how == "failed" else score(trial) for trial in trials))
    lines = [f"trial %{{text}}, {how}"]
    lines += [f"{plain(label(name))}: %{{{place}}}" for name, place in zip(axes, "xy", strict=False)]
    points = {"x": columns[0], "y": columns[1], "text": [trial.number for trial in trials]}
    if how == "completed":
        lines.append(f"{plain(source.score)}: %{{marker.color:.4f}}")
    elif how == "pruned":
        lines.append(f"{plain(source.score)} when it was pruned: %{{customdata:.4f}}")
        points["customdata"] = short(map(score, trials))
    return {**points, "hovertemplate": "<br>".join(lines) + "<extra></extra>"}


def _coloured(source: Source, trials: Sequence[FrozenTrial], ranked: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Return markers from the best score's colour to that of the worst tenth."""
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
        return axis | {"type": "log" if distribution.log else "linear", "exponentformat": "power"}
    return axis | {"type": "category"}


def _values(trials: Sequence[FrozenTrial], name: str, distribution: BaseDistribution) -> list[Any]:
    if _is_number(distribution):
        return short(trial.params[name] for trial in trials)
    return [plain(str(trial.params[name])) for trial in trials]


def _is_number(distribution: BaseDistribution) -> bool:
    return isinstance(distribution, FloatDistribution | IntDistribution)
