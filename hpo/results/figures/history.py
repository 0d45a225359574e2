"""Score of each trial against its number, with the best score so far.

Losses above 0 have a log axis. A pruned trial is drawn at its last value, which is from fewer epochs and never the
best.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState

from hpo.results.figures.source import Source, spread
from hpo.results.figures.style import BLUE, PRUNED, VERMILLION, log_axis, message, new_figure, plain, short
from hpo.results.ranking import score


def history(source: Source) -> go.Figure:
    """Return the figure of the scores in the order of the trial numbers."""
    completed, pruned = source.ended(TrialState.COMPLETE), source.ended(TrialState.PRUNED)
    title = f"{plain(source.name)}: {plain(source.score)} of each trial"
    if not completed and not pruned:
        return message(title, f"No trial has completed with a score: {plain(source.outcomes)}.")
    figure = new_figure(title)
    best = _improvements(completed, source.maximized)
    best = spread(best, source.limit, best[-1:])
    _add_points(figure, spread(completed, source.limit, best), "completed", {"color": BLUE, "size": 6, "opacity": 0.6})
    _add_points(figure, spread(pruned, source.limit), "pruned", PRUNED)
    if best:
        x = [trial.number for trial in best]
        y = short(map(score, best))
        last = max(trial.number for trial in source.trials)
        line = {"color": VERMILLION, "width": 2, "shape": "hv"}
        hover = "best so far %{y:.4f}<extra></extra>"
        figure.add_scatter(
            x=[*x, last], y=[*y, y[-1]], mode="lines", name="best so far", line=line, hovertemplate=hover
        )
    scores = [score(trial) for trial in completed + pruned]
    losses = source.metric == "val_loss" and min(scores) > 0
    figure.update_xaxes(title={"text": "trial"})
    axis = log_axis(min(scores), max(scores)) if losses else {"type": "linear"}
    return figure.update_yaxes(title={"text": plain(source.score)}, **axis)


def _improvements(completed: list[FrozenTrial], maximized: bool) -> list[FrozenTrial]:
    """Return the trials that were better than all earlier ones."""
    found: list[FrozenTrial] = []
    for trial in completed:
        if not found or (score(trial) > score(found[-1]) if maximized else score(trial) < score(found[-1])):
            found.append(trial)
    return found


def _add_points(figure: go.Figure, trials: list[FrozenTrial], label: str, marker: dict[str, Any]) -> None:
    if trials:
        figure.add_scatter(
            x=[trial.number for trial in trials],
            y=short(map(score, trials)),
            mode="markers",
            name=label,
            marker=marker,
            hovertemplate=f"trial %{{x}}, {label}: %{{y:.4f}}<extra></extra>",
        )
