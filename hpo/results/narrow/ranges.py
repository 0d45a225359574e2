"""Narrower ranges around a study's best trials, as one would choose them by hand.

Of what has completed, the best tenth decides, at least three and at most twenty: enough that one lucky trial does not,
and no more than one would look at. A configuration that was trained several times counts once, by its mean. Then, range
by range:

- A log range shrinks to the powers of ten around these values; where that changes nothing, to the half decades (1, 3,
  10, 30, ...) around them.
- Any other range shrinks to these values and a tenth of its width on either side, in whole steps where it has steps,
  else rounded outwards.
- Where the best lies at an edge of the range, that side is moved out instead, if that is possible (`edges.py`).

Choices stay as they are, and so do conditional ranges of which fewer than three of the best have a value; where they
have, the best of these counts. Promises: the best lies inside every proposed range, and not at an edge that was moved
in; a side is never moved out but where the best lies at it. Knows nothing of storages and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.edges import Side, bound_text, edge_of, wider_bound
from hpo.results.ranking import ranked_configurations
from hpo.search.space import Values, belongs, count, distributions, size, size_text
from hpo.studyfile import Parameter, Range, Study

SHARE, FEWEST, MOST = 0.1, 3, 20
"""How many of the configurations decide: this share of them, within these limits."""

NEEDED = 2 * FEWEST
"""Completed configurations without which the best few say nothing: they have to be better than some."""

MARGIN = 0.1  # of a linear range's width


@dataclass(frozen=True)
class Best:
    """The best configurations, best first, of how many, and the value that the last of them has reached."""

    params: list[Values]
    of: int
    threshold: float


@dataclass(frozen=True)
class Change:
    """What becomes of a parameter's range: `moved_out` is the edge at which the best value lies, if any."""

    parameter: Parameter
    old: Range
    new: Range
    best: float
    moved_out: Side | None

    def line(self) -> str:
        """Return `lr: 1e-06..0.01 -> 0.001..0.1 (widened: the best, 9.3e-03, lies at the upper edge)`."""
        why = ""
        if self.moved_out is not None:
            edge = "upper" if self.moved_out == "high" else "lower"
            best = f"{self.best:.1e}" if self.old.log and not self.parameter.integer else bound_text(self.best)
            why = f" (widened: the best, {best}, lies at the {edge} edge)"
        return f"{self.parameter.name}: {_shown(self.old)} -> {_shown(self.new)}{why}"


def best_few(study: Study, trials: Sequence[FrozenTrial]) -> Best:
    """Return the best configurations inside the study's space. Raises HpoError where too few have completed."""
    space = distributions(study)
    inside = [trial for trial in trials if trial.state == TrialState.COMPLETE and belongs(study, space, trial.params)]
    ranked = ranked_configurations(study, inside)
    if len(ranked) < NEEDED:
        advice = "launch it with more --trials and --extend"
        if size(study) < NEEDED:
            advice = f"its space holds {size_text(study)}, so try them all and take the best"
        raise HpoError(
            f"study '{study.name}': has {len(ranked)} different completed trials, and to narrow its ranges takes "
            f"{NEEDED}; {advice}"
        )
    few = ranked[: min(MOST, max(FEWEST, math.ceil(SHARE * len(ranked))))]
    return Best([dict(each.params) for each in few], len(ranked), few[-1].mean)


def changes(study: Study, few: Sequence[Values]) -> list[Change]:
    """Return what becomes of each range that changes. Raises HpoError where the study searches no range."""
    if not any(isinstance(parameter.searched, Range) for parameter in study.parameters):
        raise HpoError(f"study '{study.name}': searches no range, so there is nothing to narrow")
    found = []
    for parameter in study.parameters:
        old = parameter.searched
        if isinstance(old, Range):
            having = [params for params in few if parameter.name in params]
            if len(having) < min(FEWEST, len(few)):  # a conditional one, of which these say too little
                continue
            change = _change(study, parameter, old, having)
            if change.new != old:
                found.append(change)
    return found


def _change(study: Study, parameter: Parameter, old: Range, few: Sequence[Values]) -> Change:
    """Return what becomes of a range; `few` are the best that have a value in it, the best first."""
    values = [float(params[parameter.name]) for params in few]
    wider = wider_bound(study, parameter, old, few[0])
    moved_out, outer = None, old
    if wider is not None:
        edge, bound = moved_out, _ = wider
        outer = replace(old, high=bound) if edge == "high" else replace(old, low=bound)
    if old.log:
        new = _in_decades(outer, moved_out, values, (1,), parameter.integer)
        if new == outer:
            new = _in_decades(outer, moved_out, values, (1, 3), parameter.integer)
    else:
        new = _in_steps(parameter, old, values) if count(parameter) else _rounded(old, values)
        if moved_out is not None:
            new = replace(new, high=outer.high) if moved_out == "high" else replace(new, low=outer.low)
    return Change(parameter, old, new, values[0], moved_out)


def _in_decades(
    outer: Range, moved_out: Side | None, values: Sequence[float], digits: Sequence[int], integer: bool
) -> Range:
    """Return the range from mark to mark around the values, but so wide that the best lies at no mark's edge.

    A side that was moved out stays where it is.
    """
    exponents = range(math.floor(math.log10(outer.low)), math.ceil(math.log10(outer.high)) + 1)
    marks = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
    marks = [mark for mark in marks if outer.low < mark < outer.high and (mark.is_integer() or not integer)]
    lows = [outer.low, *(mark for mark in marks if mark <= min(values) and moved_out != "low")]  # the innermost last
    highs = [outer.high, *(mark for mark in reversed(marks) if mark >= max(values) and moved_out != "high")]
    while True:
        low, high = lows[-1], highs[-1]
        edge = edge_of(Range(low, high, log=True), values[0])
        if (edge == "low" or low >= high) and len(lows) > 1:
            lows.pop()
        elif (edge == "high" or low >= high) and len(highs) > 1:
            highs.pop()
        else:
            break
    return replace(outer, low=int(low) if integer else low, high=int(high) if integer else high)


def _rounded(old: Range, values: Sequence[float]) -> Range:
    """Return the range of the values and a margin, within the old one, rounded outwards to a digit of the margin."""
    margin = MARGIN * (old.high - old.low)
    unit = Decimal(1).scaleb(math.floor(math.log10(margin)))
    low = float(Decimal(str(min(values) - margin)).quantize(unit, ROUND_FLOOR))
    high = float(Decimal(str(max(values) + margin)).quantize(unit, ROUND_CEILING))
    return replace(old, low=max(old.low, low), high=min(old.high, high))


def _in_steps(parameter: Parameter, old: Range, values: Sequence[float]) -> Range:
    """Return the range of the values and a margin, from one of the old one's steps to another."""
    low, step = Fraction(str(old.low)), Fraction(str(old.step or 1))
    last = (count(parameter) or 1) - 1
    margin = max(1, math.floor(MARGIN * last))  # in steps
    first = max(0, round((Fraction(str(min(values))) - low) / step) - margin)
    final = min(last, round((Fraction(str(max(values))) - low) / step) + margin)
    kind = type(old.low)
    return replace(
        old,
        low=old.low if first == 0 else kind(low + first * step),
        high=old.high if final == last else kind(low + final * step),
    )


def _shown(searched: Range) -> str:
    return f"{bound_text(searched.low)}..{bound_text(searched.high)}"
