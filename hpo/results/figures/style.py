"""What all figures look alike by: their colours, lines and frame, and how a figure says that there is nothing to draw.

The colours are those of Okabe and Ito, which people who cannot tell red from green can tell apart. Validation is solid
and training dashed, in every figure. Numbers are plain lists of few digits, so that a figure is small as JSON, and any
plotly.js can read it. Knows nothing of studies.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
"""One colour a study, a parameter or a class, where several share a figure."""

GREY, INK, GRID = "#8A8A8A", "#222222", "#E5E5E5"
SCALE = "Viridis"
"""From bad, dark, to good, bright: for a figure that colours points by their score."""

PRUNED = {"symbol": "triangle-down-open", "color": GREY, "size": 7}
FAILED = {"symbol": "x-thin-open", "color": VERMILLION, "size": 8}
"""Markers of trials that have no score to compare with others'."""

VALIDATION_DASH, TRAINING_DASH = "solid", "dash"

AXIS: dict[str, Any] = {
    "gridcolor": GRID,
    "linecolor": GREY,
    "showline": True,
    "mirror": True,
    "ticks": "outside",
    "zeroline": False,
    "automargin": True,
}

TEMPLATE: dict[str, Any] = {
    "layout": {
        "colorway": list(PALETTE),
        "font": {"family": "system-ui, Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        "title": {"x": 0.01, "xanchor": "left"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": AXIS,
        "yaxis": AXIS,
        "legend": {"bgcolor": "rgba(255,255,255,0.7)"},
        "hoverlabel": {"align": "left"},
    }
}
"""The frame of a figure, in the place of plotly's own, which would make each figure's JSON ten times as long."""

WIDEST = 100  # characters in a line of a sentence


def new_figure(title: str) -> go.Figure:
    """Return an empty figure of this look; what is to be shown as it is written goes through `plain` before."""
    return go.Figure(layout={"template": TEMPLATE, "title": {"text": title}})


def message(title: str, sentence: str) -> go.Figure:
    """Return a figure that says in one sentence, in as many lines as it takes, why there is nothing to draw."""
    figure = new_figure(title)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    centre = {"xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5}
    lines = "<br>".join(textwrap.wrap(sentence, WIDEST))
    figure.add_annotation(text=lines, showarrow=False, font={"size": 15, "color": GREY}, **centre)
    return figure


def plain(text: str) -> str:
    """Return the text as plotly shows it letter by letter: it takes `<b>` for bold, and names may hold anything."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(values: Iterable[float], digits: int = 5) -> list[float]:
    """Return the numbers with so many significant digits, more than anybody can see."""
    return [float(f"{value:.{digits}g}") for value in values]
