"""Learning curves as NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def curve_of(values: Mapping[str, Sequence[float]]) -> dict[str, NDArray[np.float64]]:
    """Return a trial's curve, metric -> [epochs]."""
    return {metric: np.array(each, dtype=np.float64) for metric, each in values.items()}


def stacked(curves: Sequence[Mapping[str, NDArray[np.float64]]]) -> dict[str, NDArray[np.float64]]:
    """Return the curves of several trials, metric -> [trials, epochs], with NaN after each one's end."""
    metrics = dict.fromkeys(metric for curve in curves for metric in curve)
    longest = max((len(each) for curve in curves for each in curve.values()), default=0)
    found = {metric: np.full((len(curves), longest), np.nan) for metric in metrics}
    for row, curve in enumerate(curves):
        for metric, each in curve.items():
            found[metric][row, : len(each)] = each
    return found
