"""Style of all figures: colours, lines, frame, and the message of a figure without data.

The colours are those of Okabe and Ito, which colour-blind people can distinguish. Validation is solid and training
dashed in every figure. Numbers are plain lists with few digits, so that a figure is small as JSON and every plotly.js
can read it. Knows nothing of studies.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable
from typing import Any, TypeAlias

import plotly.graph_objects as go

Drawing: TypeAlias = dict[str, Any]
"""A figure as plotly's JSON: its traces, `data`, and its `layout`.

plotly's own objects check each property, which takes a hundred times as long.
"""

BLUE, VERMILLION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
"""Colours of studies, parameters or classes in one figure."""

GREY, INK, GRID = "#8A8A8A", "#222222", "#E5E5E5"
SCALE = "Viridis"
"""The colour scale for scores, from bad (dark) to good (bright)."""

PRUNED = {"symbol": "triangle-down-open", "color": GREY, "size": 7}
FAILED = {"symbol": "x-thin-open", "color": VERMILLION, "size": 8}
"""Markers of trials without a comparable score."""

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
"""The template of all figures; plotly's own would make the JSON ten times as long."""

LINE_WIDTH = 100  # characters in a line of a message
MOST_POWERS = 8  # powers of ten with a tick on a log axis
DECADES = 1.5
"""The decades of a log axis from which only powers of ten are labelled."""


def blank(title: str) -> Drawing:
    """Return an empty drawing in this style; escape user text in the title with `plain`."""
    return {"data": [], "layout": {"template": TEMPLATE, "title": {"text": title}}}


def notice(title: str, sentence: str) -> Drawing:
    """Return a drawing with only a sentence: the reason why there is nothing to draw."""
    drawing = blank(title)
    text = {
        "text": "<br>".join(textwrap.wrap(sentence, LINE_WIDTH)),
        "showarrow": False,
        "font": {"size": 15, "color": GREY},
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
    }
    drawing["layout"] |= {"xaxis": {"visible": False}, "yaxis": {"visible": False}, "annotations": [text]}
    return drawing


def new_figure(title: str) -> go.Figure:
    """Return an empty figure in this style; escape user text in the title with `plain`."""
    return go.Figure(blank(title))


def message(title: str, sentence: str) -> go.Figure:
    """Return a figure with only a sentence: the reason why there is nothing to draw."""
    return go.Figure(notice(title, sentence))


def drawing_json(drawing: Drawing) -> str:
    """Return a drawing as JSON, with null for numbers that are not finite, as plotly writes it."""
    return json.dumps(json.loads(json.dumps(drawing), parse_constant=lambda name: None))


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Return a log axis for values from `low` to `high`, labelled at powers of ten, or over few decades at numbers.

    plotly labels the ticks between powers of ten with a bare 2 and 5, which crowd a narrow figure.
    """
    decades = math.log10(high / low)
    if decades > DECADES:
        ticks = {"exponentformat": "power", "dtick": math.ceil(decades / MOST_POWERS)}
    else:
        ticks = {"nticks": 5, "tickformat": "~s" if low >= 1 else ".2~g"}
    return {"type": "log", **ticks}


def plain(text: str) -> str:
    """Return text escaped for plotly, which reads `<b>` as bold: names may contain any characters."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(values: Iterable[float], digits: int = 5) -> list[float]:
    """Return the numbers with few significant digits."""
    return [float(f"{value:.{digits}g}") for value in values]
