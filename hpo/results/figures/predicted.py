"""Predicted against true numbers of a regression: a point for each example, a frame for each column of the targets.

Exact predictions lie on the diagonal line.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpo.results.figures.style import BLUE, GREY, new_figure, plain, short

FRAME_PIXELS, EXTRA_PIXELS = 420, 100


def predicted_against_true(name: str, pairs: Sequence[Sequence[Sequence[float]]], subtitle: str) -> go.Figure:
    """Return the figure; `pairs` has pairs of a true and a predicted number for each column."""
    figure = new_figure(f"{plain(name)}: {plain(subtitle)}")
    titles = [f"column {column}" for column in range(len(pairs))] if len(pairs) > 1 else None
    make_subplots(len(pairs), 1, subplot_titles=titles, figure=figure)
    for row, column in enumerate(pairs, start=1):
        true, predicted = zip(*column, strict=True)
        ends = [min(*true, *predicted), max(*true, *predicted)]
        line = {"color": GREY, "width": 1, "dash": "dash"}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=line, hoverinfo="skip", showlegend=False, row=row, col=1)
        figure.add_scatter(
            x=short(true),
            y=short(predicted),
            mode="markers",
            marker={"color": BLUE, "size": 5, "opacity": 0.6},
            hovertemplate="true %{x:.4g}, predicted %{y:.4g}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_xaxes(title_text="true", row=row, col=1)
        figure.update_yaxes(title_text="predicted", row=row, col=1)
    return figure.update_layout(height=FRAME_PIXELS * len(pairs) + EXTRA_PIXELS)
