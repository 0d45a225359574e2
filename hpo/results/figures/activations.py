"""Histograms of the activations before training: one column for each layer, one row for each initialization.

Where `init` is searched, each choice has a row, or both ends and the middle of a range; all other settings have their
first value of the study file. The inputs are training examples, and the weights those of the study's first trial at its
start. A figure of the storage's study files, not of its trials: it loads the data and trains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from hpo.data import load_splits
from hpo.results.figures.style import BLUE, GREY, message, new_figure, plain, short
from hpo.search.points import baseline, trial_seed
from hpo.search.space import decode
from hpo.search.study_records import check_data, stored_study
from hpo.storage import Storage, load_study
from hpo.studyfile import Choices, Study
from hpo.training.device_data import split_shape
from hpo.training.networks.activation_statistics import (
    BOUNDS,
    LayerOutputs,
    OutputStatistics,
    layer_outputs,
    output_statistics,
)
from hpo.training.tasks.task import output_count

EXAMPLES = 1000
BINS = 50
WIDEST = 5.0
"""Larger outputs of an unbounded activation are counted in the last bin."""

OUTLIERS = 0.5  # percent of the outputs on either side that may lie beyond the axis
ROW_PIXELS, FRAME_PIXELS = 150, 130


@dataclass(frozen=True)
class InitialNetwork:
    """The outputs of an untrained network, layer by layer."""

    init: Any
    activation: str
    outputs: LayerOutputs

    @property
    def spreads(self) -> dict[str, OutputStatistics]:
        """Statistics of each layer's outputs."""
        return {layer: output_statistics(values, self.activation) for layer, values in self.outputs.items()}


def initial_networks(storage: Storage, name: str) -> list[InitialNetwork]:
    """Return a network for each initialization of the study; none for a user-defined network.

    Raises HpoError where the data have changed.
    """
    stored = load_study(storage, name)
    study = stored_study(stored)
    if study.first_settings.network.kind == "module":
        return []
    split = load_splits(study)[0]
    check_data(study, split, stored)
    inputs = split.train.inputs[:EXAMPLES]
    shape, outputs = split_shape(split), output_count(study.task, split)
    settings = [study.first_settings.network.model_copy(update={"init": init}) for init in _inits(study)]
    seed = trial_seed(study, 0)
    return [
        InitialNetwork(each.init, each.activation, layer_outputs(each, inputs, outputs, seed, shape))
        for each in settings
    ]


def histograms(name: str, networks: Sequence[InitialNetwork]) -> go.Figure:
    """Return the figure. All frames have the same axes; the bin that contains zero may exceed its frame.

    Values beyond the axis are counted in the outermost bins.
    """
    title = f"{plain(name)}: activations before training"
    if not networks:
        return message(title, "The network is user-defined and sets its own initial weights.")
    layers = list(networks[0].outputs)
    if not layers:
        return message(title, "The network has no hidden layer.")
    low, high = _range(networks)
    edges = np.linspace(low, high, BINS + 1)
    shares = [{layer: _shares(values, edges) for layer, values in network.outputs.items()} for network in networks]
    rows = len(networks)
    how = "fraction of the outputs, over training examples; sd: standard deviation"
    figure = new_figure(f"{title}<br><sup>{how}</sup>")
    shared: dict[str, Any] = {"shared_xaxes": "all", "shared_yaxes": "all"}
    spacing = {"horizontal_spacing": 0.015, "vertical_spacing": 0.12 / rows}
    labels = [f"init: {network.init}" for network in networks]
    make_subplots(rows, len(layers), column_titles=layers, row_titles=labels, figure=figure, **shared, **spacing)
    figure.update_annotations(font_size=12)
    for row, (network, heights) in enumerate(zip(networks, shares, strict=True), start=1):
        for column, (layer, found) in enumerate(network.spreads.items(), start=1):
            figure.add_bar(**_bars(heights[layer], edges, found), row=row, col=column)
            _write(figure, found, row, column)
    figure.update_xaxes(range=[low, high], nticks=5, tickfont_size=10)
    figure.update_yaxes(range=[0, _top(shares, edges)], nticks=4, tickfont_size=10)
    return figure.update_layout(
        height=FRAME_PIXELS + ROW_PIXELS * rows, margin={"t": 100, "b": 40}, bargap=0, showlegend=False
    )


def _inits(study: Study) -> list[Any]:
    for parameter in study.parameters:
        if parameter.path == ("network", "init"):
            if isinstance(parameter.searched, Choices):
                return list(parameter.searched.choices)
            middle = decode(parameter, baseline(study)[parameter.name])
            return [parameter.searched.low, middle, parameter.searched.high]
    return [study.first_settings.network.init]


def _range(networks: Sequence[InitialNetwork]) -> tuple[float, float]:
    bounds = BOUNDS.get(networks[0].activation)
    if bounds is not None and np.isfinite(bounds).all():
        return bounds
    ends = [np.percentile(values, [OUTLIERS, 100 - OUTLIERS]) for each in networks for values in each.outputs.values()]
    low, high = min(0.0, *(float(end[0]) for end in ends)), max(float(end[1]) for end in ends)
    return max(low, -WIDEST), min(high, WIDEST) or 1.0


def _shares(values: NDArray[np.float32], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the fraction of the outputs in each bin; values beyond the edges count in the outermost bins."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return counts / values.size


def _top(shares: Sequence[Mapping[str, NDArray[np.float64]]], edges: NDArray[np.float64]) -> float:
    zero = int(np.clip(np.searchsorted(edges, 0.0, side="right") - 1, 0, BINS - 1))
    others = [np.delete(each, zero).max() for row in shares for each in row.values()]
    return 1.1 * float(max(others)) or 1.0


def _bars(heights: NDArray[np.float64], edges: NDArray[np.float64], found: OutputStatistics) -> dict[str, Any]:
    saturated = "" if found.saturated is None else f", saturated {found.saturated:.1%}"
    statistics = f"mean {found.mean:.4g}, sd {found.sd:.4g}, zeros {found.zeros:.1%}{saturated}"
    return {
        "x": short((edges[:-1] + edges[1:]) / 2),
        "y": short(heights),
        "marker": {"color": BLUE, "line": {"width": 0}},
        "hovertemplate": f"%{{y:.2%}} around %{{x:.3g}}<br>{statistics}<extra></extra>",
    }


def _write(figure: go.Figure, found: OutputStatistics, row: int, column: int) -> None:
    lines = [f"sd {found.sd:.2g}", f"zero {found.zeros:.0%}"]
    lines += [] if found.saturated is None else [f"saturated {found.saturated:.0%}"]
    place = {"xref": "x domain", "yref": "y domain", "x": 0.97, "y": 0.95, "xanchor": "right", "yanchor": "top"}
    text = {"text": "<br>".join(lines), "align": "right", "font": {"size": 10, "color": GREY}, "showarrow": False}
    figure.add_annotation(place | text, row=row, col=column)
