"""Confusion matrix: a square for each pair of classes, with the number of examples.

The colour is the square root of the fraction of the class's examples, so that few errors are visible; the diagonal
contains the correct predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from hpo.results.figures.style import SCALE, new_figure, plain, short


def confusion(name: str, counts: Sequence[Sequence[int]], names: Sequence[str], subtitle: str) -> go.Figure:
    """Return the figure; `counts[a][b]` examples of class a were predicted as b, `names` are the class names."""
    figure = new_figure(f"{plain(name)}: {plain(subtitle)}")
    classes = [plain(each) for each in names]
    shares = [short((count / max(1, sum(row))) ** 0.5 for count in row) for row in counts]
    figure.add_heatmap(
        x=classes,
        y=classes,
        z=shares,
        zmin=0,
        zmax=1,
        text=[[str(count) if count else "" for count in row] for row in counts],
        texttemplate="%{text}",
        customdata=[[int(count) for count in row] for row in counts],
        hovertemplate="class %{y}, predicted %{x}: %{customdata} examples<extra></extra>",
        colorscale=SCALE,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(title_text="predicted class", type="category", side="top", showgrid=False)
    figure.update_yaxes(title_text="class", type="category", autorange="reversed", showgrid=False, scaleanchor="x")
    return figure
