"""Warn where a best value lies at an edge of its range, and suggest a wider range.

A bound that is offered is one that a launch accepts and with which the best trial could be trained. Of an argument of a
user-defined network only the range is known: a range within 0 and 1 stays there, and no range changes its sign. Knows
nothing of storages.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from typing import Literal

from optuna.trial import FrozenTrial

from hpo.errors import UsageError
from hpo.results.ranking import value_text
from hpo.search.space import Values, check_space
from hpo.studyfile import Parameter, Range, Study, parse_study
from hpo.studyfile.keys import open_tables
from hpo.studyfile.trees import replaced
from hpo.studyfile.writing import key_text

SHAPING = {
    ("network", "kernel"),
    ("network", "padding"),
    ("network", "pool"),
    ("training", "shift"),
    ("training", "cutout"),
}
"""Settings whose possible values depend on the shape of the data."""

EDGE = 0.05  # fraction of the range's width, of the logarithms for a log range

Side = Literal["low", "high"]

_DIGITS = 15  # decimal digits that a float keeps: a sum of decimals has no rounding error in them


def edge_of(searched: Range, value: float) -> Side | None:
    """Return the edge of a range at which a value lies; None where it lies at none."""
    low, high = float(searched.low), float(searched.high)
    if searched.step:  # the last value on the grid of steps
        high = low + math.floor((high - low) / searched.step + 1e-9) * searched.step
    if searched.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    reach = EDGE * (high - low)
    if high - value <= reach:
        return "high"
    return "low" if value - low <= reach else None


def wider_bound(study: Study, parameter: Parameter, searched: Range, best: Values) -> tuple[Side, float] | None:
    """Return the edge at which the value of the best trial lies and the widest possible bound beyond it.

    None where the value lies at no edge, or no wider bound is possible.
    """
    edge = edge_of(searched, float(best[parameter.name]))
    if edge is None:
        return None
    for bound in _bounds(searched, edge, parameter.integer):
        tree = replaced(study.resolved(), parameter.path, {**searched.tree(), edge: bound})
        try:
            extended = parse_study(tree, study.source, study.folder)
            check_space(extended)
        except UsageError:
            continue
        if _is_possible(extended, parameter, searched, {**best, parameter.name: bound}):
            return edge, bound
    return None


def _is_possible(study: Study, parameter: Parameter, before: Range, values: Values) -> bool:
    """Return whether a trial with these values could be trained; only this parameter is checked."""
    key = parameter.setting[:2]
    if key in open_tables() and not _fits_argument(before, values[parameter.name], parameter.integer):
        return False
    depends_on_shape = key in SHAPING | open_tables() or (key[0] == "network" and study.search.limits.parameters)
    if not depends_on_shape:
        return True
    from hpo.search.plan import can_train  # loads torch

    return can_train(study, values)


def _fits_argument(before: Range, value: float, integer: bool) -> bool:
    """Return whether a value is plausible for an argument: a fraction stays below 1, and the sign does not change."""
    if before.low >= 0 and before.high <= 1 and not integer and value >= 1:
        return False
    if before.low >= 0:
        return value > 0 or value == before.low
    return before.high > 0 or value < 0 or value == before.high


def edge_warnings(study: Study, best: Sequence[FrozenTrial]) -> list[str]:
    """Return a warning for each range at one edge of which all of the best trials lie, with the option that widens it.

    `best` is the best trial, or the trials on the Pareto front. There is no warning for an edge that cannot be moved: a
    dropout rate of 0, an integer of 1.
    """
    lines = []
    for parameter in study.parameters:
        if isinstance(parameter.searched, Range) and all(parameter.name in trial.params for trial in best):
            bounds = {wider_bound(study, parameter, parameter.searched, trial.params) for trial in best}
            wider = bounds.pop() if len(bounds) == 1 else None
            if wider is not None:
                value = value_text(best[0].params[parameter.name], best[0].distributions[parameter.name])
                lines.append(_warning(parameter, parameter.searched, value, *wider))
    return lines


def _warning(parameter: Parameter, searched: Range, value: str, edge: Side, wider: float) -> str:
    bound = searched.high if edge == "high" else searched.low
    change = shlex.quote(f"{key_text((*parameter.path, edge))}={bound_text(wider)}")
    return (
        f"the best {parameter.name} ({value}) lies at the {edge} edge of its range ({bound_text(bound)}): "
        f"to search beyond it, launch again with --set {change} --extend and more --trials"
    )


def bound_text(value: float) -> str:
    """Return the text of a bound in a study file."""
    return str(value) if isinstance(value, int) else f"{value:.{_DIGITS}g}"


def _bounds(searched: Range, edge: Side, integer: bool) -> list[float]:
    low, high = searched.low, searched.high
    bound, outwards = (high, 1) if edge == "high" else (low, -1)
    if searched.log:
        candidates = [bound * factor**outwards for factor in (10.0, 2.0)]
    else:
        step = searched.step or (1 if integer else 0)
        widths = [(high - low) * share for share in (1.0, 0.5, 0.1)]
        candidates = [bound + outwards * (math.ceil(width / step - 1e-9) * step if step else width) for width in widths]
    digits = _DIGITS if searched.step else 6  # the steps continue: values that the range had stay in it
    rounded = [round(value) if integer else float(f"{value:.{digits}g}") for value in candidates]
    return [value for value in rounded if (value - bound) * outwards > 0]
