"""Which classes are taken for which: a square for each pair, with the number of images in it.

The colour is the share of the class's images, on a scale that shows the few that went wrong beside the many that did
not; the diagonal is what was right.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from hpo.results.figures.style import SCALE, new_figure, plain, short


def confusion(name: str, counts: Sequence[Sequence[int]], names: Sequence[str], subtitle: str) -> go.Figure:
    """Return the figure of a confusion matrix, `counts[a][b]` images of class a called b; `names` are the classes'."""
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
        hovertemplate="class %{y}, called %{x}: %{customdata} images<extra></extra>",
        colorscale=SCALE,
        showscale=False,
        xgap=1,
        ygap=1,
    )
    figure.update_xaxes(title_text="answer", type="category", side="top", showgrid=False)
    figure.update_yaxes(title_text="class", type="category", autorange="reversed", showgrid=False, scaleanchor="x")
    return figure
