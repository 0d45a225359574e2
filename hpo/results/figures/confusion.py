"""Confusion matrix: a square for each pair of classes, with the number of examples.

The colour is the square root of the fraction of the class's examples, so that few errors are visible; the diagonal
contains the correct predictions. With several labels there is a row for each label instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from hpo.results.figures.style import SCALE, new_figure, plain, short


def confusion(name: str, counts: Sequence[Sequence[int]], names: Sequence[str], subtitle: str) -> go.Figure:
    """Return the figure; `counts[a][b]` examples of class a were predicted as b, `names` are the class names."""
    classes = [plain(each) for each in names]
    figure = _matrix(name, subtitle, counts, classes, classes)
    figure.update_traces(hovertemplate="class %{y}, predicted %{x}: %{customdata} examples<extra></extra>")
    figure.update_xaxes(title_text="predicted class")
    return figure.update_yaxes(title_text="class", scaleanchor="x")


def label_counts(name: str, labels: Sequence[Mapping[str, Any]], subtitle: str) -> go.Figure:
    """Return the figure of several labels: a row for each label, with the examples that have it or not."""
    kinds = ("true_positive", "false_negative", "false_positive", "true_negative")
    counts = [[label[kind] for kind in kinds] for label in labels]
    rows = [plain(label["name"]) for label in labels]
    figure = _matrix(name, subtitle, counts, [kind.replace("_", " ") for kind in kinds], rows)
    figure.update_traces(hovertemplate="label %{y}, %{x}: %{customdata} examples<extra></extra>")
    return figure.update_yaxes(title_text="label")


def _matrix(
    name: str, subtitle: str, counts: Sequence[Sequence[int]], columns: Sequence[str], rows: Sequence[str]
) -> go.Figure:
    figure = new_figure(f"{plain(name)}: {plain(subtitle)}")
    shares = [short((count / max(1, sum(row))) ** 0.5 for count in row) for row in counts]
    figure.add_heatmap(
        x=list(columns),
        y=list(rows),
        z=shares,
        zmin=0,
        zmax=1,
        text=[[str(count) if count else "" for count in row] for row in counts],
        texttemplate="%{text}",
        customdata=[[int(count) for count in row] for row in counts],
        colorscale=SCALE,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(type="category", side="top", showgrid=False)
    return figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
