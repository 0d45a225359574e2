"""Figures for the dashboard's study page: those that optuna-dashboard lacks, made for half a column.

Half a column of the page is about 600 pixels wide and 450 high. So titles are wrapped and leave the tool bar free, the
study's name, which the page shows, is left out, a legend is inside, and there are few frames.
"""

from __future__ import annotations

import html
import textwrap
from dataclasses import replace

from optuna.study import StudyDirection

from hpo.results.figures.curves import draw_curves
from hpo.results.figures.landscape import draw_landscape
from hpo.results.figures.source import Source
from hpo.results.figures.style import Drawing, plain
from hpo.studyfile.objective import VALUE

FRAMES, COLUMNS = 4, 2
TITLE_CHARACTERS = 44  # in a line: the tool bar is on the right
TITLE_SIZE, LABEL_SIZE, TICK_SIZE = 14, 12, 10
TOP, LINE = 36, 18
"""Pixels above the frames: of the first line of the title with its margin, and of each further line."""

INSET = 0.05
"""The space between a legend and its frame's edges, as a fraction of the frame's height."""


def half_column_figures(source: Source) -> dict[str, Drawing]:
    """Return the figures of a study for half a column, by kind: landscape, and learning curves of the best trials.

    A kind without data is left out, and so are reported values, which optuna-dashboard draws.
    """
    drawn = {"landscape": _landscape(source)}
    if not any(VALUE in curve for curve in source.curves.values()):
        drawn["curves"] = _curves(source)
    return {kind: _fitted(drawing, source.name) for kind, drawing in drawn.items() if drawing["data"]}


def _landscape(source: Source) -> Drawing:
    drawing = draw_landscape(source)
    for trace in drawing["data"]:
        if bar := trace["marker"].get("colorbar"):
            bar |= {"thickness": 12, "tickfont": {"size": TICK_SIZE}}
            bar["title"]["font"] = {"size": LABEL_SIZE}
    drawing["layout"]["legend"] = {"orientation": "h", "x": 0.02, "xanchor": "left", "y": 0.98, "yanchor": "top"}
    return drawing


def _curves(source: Source) -> Drawing:
    drawing = draw_curves(replace(source, best=source.best[:FRAMES]), COLUMNS)
    if not drawing["data"]:
        return drawing
    layout = drawing["layout"]
    # in the first frame, on the side that rising or falling curves leave empty
    falls = source.directions[0] == StudyDirection.MINIMIZE
    across, up = layout["xaxis"]["domain"], layout["yaxis"]["domain"]
    inset = INSET * (up[1] - up[0])
    y, side = (up[1] - inset, "top") if falls else (up[0] + inset, "bottom")
    place = {"yref": "paper", "x": across[1] - inset, "xanchor": "right", "y": y, "yanchor": side}
    layout["legend"] = {"orientation": "v", "font": {"size": TICK_SIZE}, **place}
    return drawing


def _fitted(drawing: Drawing, name: str) -> Drawing:
    """Return the drawing with a wrapped title without the study's name; the page sets the height."""
    layout = drawing["layout"]
    layout.pop("height", None)
    text = layout["title"]["text"].removeprefix(f"{plain(name)}: ")
    lines = [plain(line) for line in textwrap.wrap(html.unescape(text[:1].upper() + text[1:]), TITLE_CHARACTERS)]
    title = {"text": "<br>".join(lines), "font": {"size": TITLE_SIZE}, "y": 1, "yanchor": "top", "pad": {"t": 12}}
    layout |= {"title": title, "margin": {"l": 10, "r": 10, "b": 10, "t": TOP + LINE * len(lines)}}
    for key, axis in layout.items():
        if key.startswith(("xaxis", "yaxis")):
            axis["tickfont"] = {"size": TICK_SIZE}
            axis["title"] = axis.get("title", {}) | {"font": {"size": LABEL_SIZE}}
    return drawing
