"""Learning curves of the best trials, one frame for each, five in a row, titled with trial number and score.

Validation is solid, training dashed; metrics other than accuracy and loss have validation curves only. Fractions are
drawn from 0 to 1, losses from 0 on; all frames have the same axes.
For objective studies and studies of other programs, the curves are the reported intermediate values.
"""

from __future__ import annotations

import math
import textwrap
from typing import Any

import plotly.graph_objects as go
from optuna.trial import FrozenTrial

from hpo.results.figures.source import Source, in_words
from hpo.results.figures.style import (
    BLUE,
    TRAINING_DASH,
    VALIDATION_DASH,
    VERMILLION,
    Drawing,
    blank,
    notice,
    plain,
    short,
)
from hpo.results.ranking import best_line, rank_label, score, score_text
from hpo.results.study_facts import STEP
from hpo.studyfile.objective import VALUE

COLUMNS = 5
ROW_PIXELS, FRAME_PIXELS = 190, 110
"""Their sum is the height of a figure with one row."""

GAP_X, GAP_Y = 0.15, 0.3
"""The space between two frames, as a fraction of a frame with its space."""

FRACTIONS = ("accuracy", "balanced_accuracy", "f1", "f1_weighted", "auroc", "top_k", "average_precision")
"""Metrics from 0 to 1, which have the same axis in all figures."""

HOVER_CHARACTERS = 60
LINES = (("train", "training", VERMILLION, TRAINING_DASH), ("val", "validation", BLUE, VALIDATION_DASH))
REPORTED = ((VALUE, "reported", BLUE, VALIDATION_DASH),)


def curves(source: Source) -> go.Figure:
    """Return the grid of the best trials' learning curves."""
    return go.Figure(draw_curves(source, COLUMNS))


def draw_curves(source: Source, columns: int) -> Drawing:
    """Return the grid of the best trials' learning curves, with at most `columns` frames in a row."""
    reported = any(VALUE in curve for curve in source.curves.values())  # an objective's metric may have any name
    measure = source.metric.removeprefix("val_") if source.metric.startswith("val_") and not reported else None
    known = VALUE if measure is None else source.metric
    ranked = [trial for trial in source.best if source.curves.get(trial.number, {}).get(known)]
    if not ranked:
        return notice(f"{plain(source.name)}: learning curves", "No trial has completed with a learning curve.")
    best = "the best trial" if len(ranked) == 1 else f"the {len(ranked)} best trials"
    drawing = blank(f"{plain(source.name)}: {plain(named(measure))} of {best}")
    columns = min(columns, len(ranked))
    rows = math.ceil(len(ranked) / columns)
    layout = drawing["layout"]
    layout |= {"annotations": [], "height": FRAME_PIXELS + ROW_PIXELS * rows, "margin": {"t": 70}}
    layout["title"] |= {"y": 1, "yanchor": "top", "pad": {"t": 15}}
    layout["legend"] = {
        "orientation": "h",
        "x": 1,
        "xanchor": "right",
        "y": 0.99,
        "yanchor": "top",
        "yref": "container",
    }
    for index, trial in enumerate(ranked):
        layout |= _axes(index, len(ranked), columns, rows, measure)
        label = rank_label(index + 1, trial.number, source.metrics)
        layout["annotations"].append(_title(index, f"{label}: {score_text(source.metric, score(trial))}"))
        drawing["data"] += _lines(index, trial, source, measure)
    return drawing


def named(measure: str | None) -> str:
    """Return the name of a metric without its split: `accuracy`, `AUROC`; that of reported values for None."""
    return VALUE if measure is None else in_words(f"val_{measure}").replace("validation ", "", 1)


def _lines(index: int, trial: FrozenTrial, source: Source, measure: str | None) -> list[dict[str, Any]]:
    """Return the curves of a frame; their hover text has the trial's rank, scores and parameters."""
    parts = best_line(index + 1, trial, source.metrics).split(" | ", 2)
    known = "<br>".join(plain(line) for part in parts for line in textwrap.wrap(part, HOVER_CHARACTERS))
    traces = []
    curve, at = source.curves[trial.number], "step" if measure is None else "epoch"
    for split, label, colour, dash in REPORTED if measure is None else LINES:
        values = curve.get(split if measure is None else f"{split}_{measure}", [])
        if not values:  # metrics of the study's own are measured on the validation split only
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "lines" if len(values) > 1 else "markers",
                "x": curve.get(STEP) or list(range(1, len(values) + 1)),
                "y": short(values),
                "xaxis": f"x{_axis_suffix(index)}",
                "yaxis": f"y{_axis_suffix(index)}",
                "name": label,
                "legendgroup": label,
                "showlegend": index == 0,
                "line": {"color": colour, "dash": dash, "width": 1.5},
                "marker": {"color": colour},
                "meta": known,
                "hovertemplate": f"{label} %{{y:.4f}} after {at} %{{x}}<br>%{{meta}}<extra></extra>",
            }
        )
    return traces


def _axes(index: int, count: int, columns: int, rows: int, measure: str | None) -> dict[str, Any]:
    """Return the two axes of a frame; only those on the left and lower side of the grid have titles."""
    row, column = divmod(index, columns)
    suffix = _axis_suffix(index)
    width, height = 1 / (columns - GAP_X), 1 / (rows - GAP_Y)
    left, top = column * width, 1 - row * height
    lowest = index + columns >= count
    at = "step" if measure is None else "epoch"
    scales: dict[str | None, dict[str, Any]] = {"loss": {"rangemode": "tozero", "nticks": 5}}
    scales |= {fraction: {"range": [0, 1], "dtick": 0.25} for fraction in FRACTIONS}
    x = {
        "domain": [left, left + width * (1 - GAP_X)],
        "anchor": f"y{suffix}",
        "showticklabels": lowest,
        "nticks": 5,
        "title": {"text": at if lowest else "", "font": {"size": 11}, "standoff": 5},
    }
    y = {
        "domain": [max(0.0, top - height * (1 - GAP_Y)), top],
        "anchor": f"x{suffix}",
        "showticklabels": column == 0,
        **scales.get(measure, {"nticks": 5}),
    }
    small = {"tickfont": {"size": 10}}
    shared = {"x": {"matches": "x"}, "y": {"matches": "y"}} if index else {"x": {}, "y": {}}
    return {f"xaxis{suffix}": x | small | shared["x"], f"yaxis{suffix}": y | small | shared["y"]}


def _title(index: int, text: str) -> dict[str, Any]:
    suffix = _axis_suffix(index)
    place = {"xref": f"x{suffix} domain", "yref": f"y{suffix} domain", "x": 0.5, "y": 1, "yanchor": "bottom"}
    return {"text": text, "showarrow": False, "font": {"size": 11}, **place}


def _axis_suffix(index: int) -> str:
    """Return the suffix of the names of a frame's axes."""
    return str(index + 1) if index else ""
