"""The edges of a searched range: whether a value lies at one, and how far a study file would let it be moved out.

Promises: a bound that is offered is one that a launch accepts. Knows nothing of trials or storages.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from hpo.errors import UsageError
from hpo.search.space import check_space
from hpo.studyfile import Parameter, Range, Study, parse_study
from hpo.studyfile.trees import replaced

EDGE = 0.05  # of the range's width, in the logarithm for a log range

Side = Literal["low", "high"]


def edge_of(searched: Range, value: float) -> Side | None:
    """Return the edge of a range at which a value lies, if any."""
    low, high = float(searched.low), float(searched.high)
    if searched.step:  # the last value that steps from low can reach
        high = low + math.floor((high - low) / searched.step + 1e-9) * searched.step
    if searched.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    reach = EDGE * (high - low)
    if high - value <= reach:
        return "high"
    return "low" if value - low <= reach else None


def wider_bound(study: Study, parameter: Parameter, searched: Range, edge: Side) -> float | None:
    """Return a bound further out that a launch would accept, the furthest of a few; None where there is none."""
    for bound in _bounds(searched, edge, parameter.integer):
        wider = replace(searched, high=bound) if edge == "high" else replace(searched, low=bound)
        try:
            check_space(
                parse_study(replaced(study.resolved(), parameter.path, wider.tree()), study.source, study.folder)
            )
        except UsageError:
            continue
        return bound
    return None


def number(value: float) -> str:
    """Return a bound as a study file writes it, without the digits that nobody typed."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _bounds(searched: Range, edge: Side, integer: bool) -> list[float]:
    low, high = searched.low, searched.high
    bound, outwards = (high, 1) if edge == "high" else (low, -1)
    if searched.log:
        candidates = [bound * factor**outwards for factor in (10.0, 2.0)]
    else:
        step = searched.step or (1 if integer else 0)
        widths = [(high - low) * share for share in (1.0, 0.5, 0.1)]
        candidates = [bound + outwards * (math.ceil(width / step - 1e-9) * step if step else width) for width in widths]
    rounded = [round(value) if integer else float(f"{value:.6g}") for value in candidates]
    return [value for value in rounded if (value - bound) * outwards > 0]
