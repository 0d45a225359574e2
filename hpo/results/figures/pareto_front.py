"""Pareto front of several metrics: one frame for each further metric against the first one.

Every completed trial is a point; those on the front are highlighted. For two metrics a line connects the front. The
number of parameters has a log axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.subplots import make_subplots

from hpo.results.figures.source import Source, in_words, spread
from hpo.results.figures.style import GREY, TEMPLATE, VERMILLION, log_axis, message, plain, short
from hpo.results.ranking import params_line, scores_line
from hpo.storage.pareto import best_first, losses

FRAME_PIXELS = 420
HOVER_CHARACTERS = 200


def front(source: Source) -> go.Figure:
    """Return the figure of the trials by their metrics, with the front highlighted."""
    if len(source.metrics) == 1:
        title = f"{plain(source.name)}: Pareto front"
        return message(title, "Trials are scored by one metric, so there is one best.")
    title = f"{plain(source.name)}: {plain(', '.join(map(in_words, source.metrics)))}"
    scored = {
        t.number: t for t in source.trials if t.state == TrialState.COMPLETE and all(map(math.isfinite, t.values))
    }
    if not scored:
        return message(title, f"No trial has completed with a score: {plain(source.outcomes)}.")
    directions = source.directions
    best = best_first({number: losses(trial.values, directions) for number, trial in scored.items()})
    on_front = [scored[number] for number in best]
    others = [trial for number, trial in scored.items() if number not in set(best)]
    columns = len(source.metrics) - 1
    figure = make_subplots(rows=1, cols=columns, horizontal_spacing=0.15 / columns)
    figure.update_layout(template=TEMPLATE, title={"text": title}, height=FRAME_PIXELS)
    for column in range(1, columns + 1):
        _add(figure, source, column, spread(others, source.limit), on_front)
    return figure


def _add(
    figure: go.Figure, source: Source, column: int, others: Sequence[FrozenTrial], best: Sequence[FrozenTrial]
) -> None:
    """Add the frame of a metric, given by its index."""
    metric, mode = source.metrics[column], "lines+markers" if len(source.metrics) == 2 else "markers"
    ends = {"color": VERMILLION, "size": 9}, {"color": GREY, "size": 6, "opacity": 0.5}
    drawn = (("on the front", best, mode, ends[0]), ("others", others, "markers", ends[1]))
    for label, trials, how, marker in reversed(drawn):
        figure.add_scatter(
            x=short(trial.values[column] for trial in trials),
            y=short(trial.values[0] for trial in trials),
            mode=how,
            name=label,
            showlegend=column == 1,
            legendgroup=label,
            marker=marker,
            line={"color": VERMILLION, "width": 1, "shape": "vh"},
            customdata=[_hover_text(trial, source.metrics) for trial in trials],
            hovertemplate="%{customdata}<extra></extra>",
            row=1,
            col=column,
        )
    counts = [trial.values[column] for _, trials, _, _ in drawn for trial in trials]
    scale = log_axis(min(counts), max(counts)) if metric == "parameters" and min(counts) > 0 else {}
    figure.update_xaxes(title={"text": plain(in_words(metric))}, row=1, col=column, **scale)
    figure.update_yaxes(title={"text": plain(source.score)} if column == 1 else None, row=1, col=column)


def _hover_text(trial: FrozenTrial, metrics: Sequence[str]) -> str:
    params = params_line(trial.params, trial.distributions)[:HOVER_CHARACTERS]
    return f"trial {trial.number}: {plain(scores_line(trial, metrics))}<br>{plain(params)}"
