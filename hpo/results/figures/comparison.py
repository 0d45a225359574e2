"""Figure of groups of runs: metric and loss against the epoch, one colour for each group.

Groups of an objective study have one frame with the reported values against the step.

Validation is solid, training dashed; each line is the mean of the group's runs, with a band from the lowest to the
highest run. With `by`, each value of that parameter has a frame with the metric alone. Frames of the same measure have
the same axes. Knows nothing of storages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.colors
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from hpo.errors import UsageError
from hpo.results.compare.runs import Group, groups_by_value, tested_metric
from hpo.results.figures.curves import FRACTIONS, named
from hpo.results.figures.style import (
    GREY,
    PALETTE,
    SCALE,
    TRAINING_DASH,
    VALIDATION_DASH,
    log_axis,
    new_figure,
    plain,
    short,
)

MOST_COLOURS = 16
COLUMNS = 4
ROW_PIXELS, FRAME_PIXELS, PLAIN_PIXELS = 210, 130, 520
DECADES = 2
"""Losses over a wider span have a log axis."""

LONGEST_BESIDE = 36
"""The longest label, in characters, with which the legend is beside the frames; otherwise it is below them."""

LABEL_PIXELS = 30

LINES = (("train", "training", TRAINING_DASH, 1.2), ("val", "validation", VALIDATION_DASH, 1.8))
REPORTED = "reported value"
REPORTED_LINES = (("", REPORTED, VALIDATION_DASH, 1.8),)
BANDS = "bands from the lowest to the highest run"
HOW = f"validation solid, training dashed; {BANDS}"


def comparison(groups: Sequence[Group], by: str | None = None) -> go.Figure:
    """Return the figure. Raises UsageError for more groups than there are distinguishable colours."""
    labels = list(dict.fromkeys(group.label(by) for group in groups))
    if len(labels) > MOST_COLOURS:
        raise UsageError(
            f"{len(labels)} configurations are too many for a figure, the limit is {MOST_COLOURS}: draw a frame for "
            "each value of a parameter with --by PARAMETER, or select configurations by a trial of each, such as "
            f"'{groups[0].study}#{groups[-1].numbers[0]}'"
        )
    colours = dict(zip(labels, _colours(len(labels)), strict=True))
    if groups[0].objective and not any(run.curve for group in groups for run in group.runs):
        names = ", ".join(dict.fromkeys(group.study for group in groups))
        raise UsageError(f"{names}: no run has reported values (trial.report), so there is no curve to draw")
    return _frame_per_measure(groups, colours) if by is None else _frame_per_value(groups, by, colours)


def _measures(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return what each frame has: the tested metric without its split and the loss, or the reported values."""
    if groups[0].objective:
        return (REPORTED,)
    tested = tested_metric(groups).removeprefix("val_")
    return ("loss",) if tested == "loss" else (tested, "loss")


def _name(measure: str) -> str:
    return REPORTED if measure == REPORTED else plain(named(measure))


def _at(groups: Sequence[Group]) -> str:
    return "step" if groups[0].objective else "epoch"


def _frame_per_measure(groups: Sequence[Group], colours: dict[str, str]) -> go.Figure:
    measures = _measures(groups)
    what = f"{' and '.join(map(_name, measures))} against {_at(groups)}"
    figure = _titled(groups, what, PLAIN_PIXELS)
    make_subplots(1, len(measures), horizontal_spacing=0.08, figure=figure)
    for column, measure in enumerate(measures, start=1):
        for group in groups:
            figure.add_traces(_traces(group, group.label(), measure, colours[group.label()]), 1, column)
        figure.update_xaxes(title_text=_at(groups), col=column)
        figure.update_yaxes(title_text=_name(measure), **_axis(groups, measure), col=column)
    without = [group.label() for group in groups if not group.runs]
    return _legend(figure, list(colours), colours, without)


def _frame_per_value(groups: Sequence[Group], by: str, colours: dict[str, str]) -> go.Figure:
    parts = groups_by_value(groups, by)
    columns = min(COLUMNS, len(parts))
    rows = math.ceil(len(parts) / columns)
    measure = _measures(groups)[0]
    what = f"{_name(measure)} against {_at(groups)} by {by.replace('_', ' ')}"
    figure = _titled(groups, what, FRAME_PIXELS + ROW_PIXELS * rows)
    titles = [plain(value) for value in parts]
    shared = {"shared_xaxes": "all", "shared_yaxes": "all"}
    spacing = {"horizontal_spacing": 0.02, "vertical_spacing": 0.22 / rows}
    make_subplots(rows, columns, subplot_titles=titles, figure=figure, **shared, **spacing)
    for index, part in enumerate(parts.values()):
        row, column = divmod(index, columns)
        for group in part:
            label = group.label(by)
            figure.add_traces(_traces(group, label, measure, colours[label]), row + 1, column + 1)
        for line, group in enumerate(group for group in part if not group.runs):
            place = {"xref": "x domain", "yref": "y domain", "x": 0.03, "y": 0.97 - 0.12 * line, "yanchor": "top"}
            text = {"text": plain(f"{group.label(by)}: no run completed"), "font": {"size": 10, "color": GREY}}
            figure.add_annotation(place | text, showarrow=False, row=row + 1, col=column + 1)
        if index + columns >= len(parts):
            figure.update_xaxes(title_text=_at(groups), showticklabels=True, row=row + 1, col=column + 1)
    figure.update_annotations(selector={"yanchor": "bottom"}, font_size=11)
    figure.update_xaxes(nticks=5, tickfont_size=10)
    figure.update_yaxes(nticks=5, tickfont_size=10, **_axis(groups, measure))
    return _legend(figure, list(colours), colours, [])


def _traces(group: Group, label: str, measure: str, colour: str) -> list[dict[str, Any]]:
    if not group.runs:
        return []
    traces: list[dict[str, Any]] = []
    for split, word, dash, width in REPORTED_LINES if group.objective else LINES:
        epochs, curves = _curves(group, split, measure)
        if not len(curves):
            continue
        shown = f"{word} %{{y:.4f}} at step" if group.objective else f"{word} {_name(measure)} %{{y:.4f}} after epoch"
        shared = {"type": "scatter", "legendgroup": label, "showlegend": False}
        if len(curves) > 1:
            traces.append(shared | _band(epochs, curves, colour))
        mean = {
            "mode": "lines" if len(epochs) > 1 else "lines+markers",
            "x": epochs,
            "y": short(curves.mean(axis=0)),
            "name": plain(label),
            "line": {"color": colour, "dash": dash, "width": width},
            "meta": plain(label),
            "hovertemplate": f"{shown} %{{x}}<br>%{{meta}}<extra></extra>",
        }
        traces.append(shared | mean)
    return traces


def _curves(group: Group, split: str, measure: str) -> tuple[list[int], NDArray[np.float64]]:
    """Return epochs or steps, and the values there, [runs, epochs]; no runs where the measure has no such values."""
    if group.objective:
        steps, values = group.reported()
        return steps.astype(int).tolist(), values
    key = f"{split}_{measure}"
    if key not in group.runs[0].curve:  # the study's own metrics are of the validation split only
        return [], np.empty((0, 0))
    curves = group.curves(key)
    return list(range(1, curves.shape[1] + 1)), curves


def _band(epochs: list[int], curves: NDArray[np.float64], colour: str) -> dict[str, Any]:
    red, green, blue = plotly.colors.hex_to_rgb(colour)
    return {
        "mode": "lines",
        "x": epochs + epochs[::-1],
        "y": short([*curves.max(axis=0), *curves.min(axis=0)[::-1]]),
        "fill": "toself",
        "fillcolor": f"rgba({red},{green},{blue},0.15)",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def _axis(groups: Sequence[Group], measure: str) -> dict[str, Any]:
    """Return the y axis of a measure: from 0 to 1 for a fraction, and for others as the values need it."""
    if measure in FRACTIONS:
        return {"range": [0, 1]}
    return _loss_axis(groups) if measure == "loss" else {}


def _loss_axis(groups: Sequence[Group]) -> dict[str, Any]:
    losses = [group.curves(f"{split}_loss").ravel() for group in groups if group.runs for split in ("train", "val")]
    values = np.concatenate(losses) if losses else np.ones(1)
    log = values.min() > 0 and values.max() > 10**DECADES * values.min()
    if not log:
        return {"rangemode": "tozero"}
    return log_axis(values.min(), values.max())


def _colours(count: int) -> list[str]:
    """Return `count` distinct colours: of the palette, or if it is too small, of a colour scale."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    places = np.linspace(0, 0.93, count)  # the brightest is hardly visible on white
    parts = plotly.colors.sample_colorscale(SCALE, places, colortype="tuple")
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in parts]


def _titled(groups: Sequence[Group], what: str, height: int) -> go.Figure:
    studies = list(dict.fromkeys(group.study for group in groups))
    how = BANDS if groups[0].objective else HOW
    figure = new_figure(f"{plain(', '.join(studies))}: {what}<br><sup>{how}</sup>")
    return figure.update_layout(height=height, margin={"t": 90, "b": 60})


def _legend(figure: go.Figure, labels: Sequence[str], colours: dict[str, str], without: Sequence[str]) -> go.Figure:
    """Add one legend for all frames, below them where labels are long."""
    for label in labels:
        name = f"{label}: no run completed" if label in without else label
        line = {"color": colours[label], "width": 2.5}
        figure.add_scatter(x=[None], y=[None], mode="lines", name=plain(name), legendgroup=label, line=line)
    figure.update_xaxes(title_font_size=12, title_standoff=4)
    figure.update_yaxes(title_font_size=12, title_standoff=4)
    if max(map(len, labels), default=0) > LONGEST_BESIDE:
        below = LABEL_PIXELS * len(labels)
        place = {"yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"}
        height, bottom = figure.layout.height + below, figure.layout.margin.b + below
        figure.update_layout(height=height, margin_b=bottom, legend=place)
    return figure.update_layout(showlegend=True)
