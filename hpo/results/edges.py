"""The edges of a searched range: whether a value lies at one, and how far a study file would let it be moved out.

Promises: a bound that is offered is one that a launch accepts, and with which the best trial could be trained. Of an
argument of the user's own module nothing is known but its range: one within 0 and 1 stays there, and none changes its
sign. Knows nothing of storages.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from hpo.errors import UsageError
from hpo.search.space import Values, check_space
from hpo.studyfile import Parameter, Range, Study, parse_study
from hpo.studyfile.keys import open_tables
from hpo.studyfile.trees import replaced

SHAPING = {("network", "kernel"), ("network", "padding"), ("network", "pool"), ("training", "shift")}
"""Settings of which the images say what is possible."""

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


def wider_bound(study: Study, parameter: Parameter, searched: Range, best: Values) -> tuple[Side, float] | None:
    """Return the edge at which the value of the best trial lies, and a bound beyond it, the furthest of a few.

    None where it lies at no edge, or where nothing beyond is possible.
    """
    edge = edge_of(searched, float(best[parameter.name]))
    if edge is None:
        return None
    for bound in _bounds(searched, edge, parameter.integer):
        wider = replace(searched, high=bound) if edge == "high" else replace(searched, low=bound)
        tree = replaced(study.resolved(), parameter.path, wider.tree())
        try:
            extended = parse_study(tree, study.source, study.folder)
            check_space(extended)
        except UsageError:
            continue
        if _is_possible(extended, parameter, searched, {**best, parameter.name: bound}):
            return edge, bound
    return None


def _is_possible(study: Study, parameter: Parameter, before: Range, values: Values) -> bool:
    """Return whether a trial with these values could be trained, as far as that depends on this parameter's."""
    key = parameter.setting[:2]
    if key in open_tables() and not _is_of_its_kind(before, values[parameter.name], parameter.integer):
        return False
    depends_on_images = key in SHAPING | open_tables() or (key[0] == "network" and study.search.limits.parameters)
    if not depends_on_images:
        return True
    from hpo.search.plan import can_train  # with torch, which what only reads studies does without

    return can_train(study, values)


def _is_of_its_kind(before: Range, value: float, integer: bool) -> bool:
    """Return whether a value is what an argument's range suggests: a share of one, or a number of the same sign."""
    if before.low >= 0 and before.high <= 1 and not integer and value >= 1:
        return False
    if before.low >= 0:
        return value > 0 or value == before.low
    return before.high > 0 or value < 0 or value == before.high


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
