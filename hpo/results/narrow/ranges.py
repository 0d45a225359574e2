"""Narrower ranges around a study's best configurations.

The best tenth of the completed configurations is used, at least three (so that one lucky trial does not decide) and at
most twenty. A configuration that was trained several times counts once, with its mean score. With successive halving,
the configurations that were pruned at a rung follow the completed ones: those of a later rung before those of an
earlier one, and by their values there, which are of equal epochs. Then, for each range:

- A log range shrinks to the powers of ten around these values; where that changes nothing, to the half decades (1, 3,
  10, 30, ...) around them.
- Any other range shrinks to these values and a tenth of its width on either side, in whole steps where it has steps,
  else rounded outwards.
- Where the best value lies at an edge of the range, that side is widened instead, if possible (`edges.py`).

Choices stay as they are, and so do conditional ranges in which fewer than three of the best have a value. The best
value lies inside every proposed range, and never at an edge that was moved in; a side is widened only where the best
value lies at it. Knows nothing of storages and files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction
from statistics import fmean

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.edges import Side, bound_text, edge_of, wider_bound
from hpo.results.ranking import Configuration, by_configuration, ranked_configurations
from hpo.search.sampling.rungs import stored_values
from hpo.search.space import Values, belongs, count, distributions, size, size_text
from hpo.studyfile import Parameter, Range, Study

SHARE, FEWEST, MOST = 0.1, 3, 20
"""The fraction of the configurations that is used, and its limits."""

NEEDED = 2 * FEWEST
"""The number of ranked configurations from which ranges can be narrowed."""

MARGIN = 0.1  # fraction of a linear range's width


@dataclass(frozen=True)
class Best:
    """The best configurations, best first; the number of all ranked ones; the score of the last completed of the best.

    The last `pruned` of the best were pruned at a rung of successive halving.
    """

    params: list[Values]
    of: int
    threshold: float
    pruned: int = 0


@dataclass(frozen=True)
class Change:
    """A parameter's old and new range; `widened` is the edge at which the best value lies, if any."""

    parameter: Parameter
    old: Range
    new: Range
    best: float
    widened: Side | None

    def line(self) -> str:
        """Return `lr: 1e-06..0.01 -> 0.001..0.1 (widened: the best value, 9.3e-03, lies at the upper edge)`."""
        why = ""
        if self.widened is not None:
            edge = "upper" if self.widened == "high" else "lower"
            best = f"{self.best:{'.1e' if self.old.log and not self.parameter.integer else '.6g'}}"
            why = f" (widened: the best value, {best}, lies at the {edge} edge)"
        return f"{self.parameter.name}: {_range_text(self.old)} -> {_range_text(self.new)}{why}"


def best_configurations(study: Study, trials: Sequence[FrozenTrial]) -> Best:
    """Return the best configurations inside the search space. Raises HpoError where too few have completed."""
    space = distributions(study)
    inside = [trial for trial in trials if belongs(study, space, trial.params)]
    completed = ranked_configurations(study, [trial for trial in inside if trial.state == TrialState.COMPLETE])
    pruned = _pruned_configurations(study, inside) if completed else []
    ranked = completed + pruned
    if len(ranked) < NEEDED:
        advice = "launch it with more --trials and --extend"
        if size(study) < NEEDED:
            advice = f"its space holds {size_text(study)}, so try all of them and use the best"
        raise HpoError(
            f"study '{study.name}': has {len(ranked)} different "
            f"{f'configurations, {len(completed)} of them completed' if pruned else 'completed configurations'}, and "
            f"narrowing needs {NEEDED}; {advice}"
        )
    few = ranked[: min(MOST, max(FEWEST, math.ceil(SHARE * len(ranked))))]
    threshold = few[: len(completed)][-1].mean
    return Best([dict(each.params) for each in few], len(ranked), threshold, max(0, len(few) - len(completed)))


def _pruned_configurations(study: Study, trials: Sequence[FrozenTrial]) -> list[Configuration]:
    """Return the configurations without a completed trial that were pruned at a rung, the best first."""
    with_completed = by_configuration(study, [trial for trial in trials if trial.state == TrialState.COMPLETE])
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED and stored_values(trial)]
    sign, found = 1 if study.search.minimized else -1, []
    for text, same in by_configuration(study, pruned).items():
        values = [stored_values(trial) for trial in same]
        rung = min(map(max, values))
        mean = fmean(of_trial[rung][0] for of_trial in values)
        if text not in with_completed and math.isfinite(mean):
            found.append((-rung, sign * mean, Configuration(same[0].params, tuple(same), mean)))
    return [each for *_, each in sorted(found, key=lambda entry: entry[:2])]


def changes(study: Study, few: Sequence[Values]) -> list[Change]:
    """Return the changes of ranges. Raises HpoError where the study searches no range."""
    if not any(isinstance(parameter.searched, Range) for parameter in study.parameters):
        raise HpoError(f"study '{study.name}': searches no range, so there is nothing to narrow")
    found = []
    for parameter in study.parameters:
        old = parameter.searched
        if isinstance(old, Range):
            having = [params for params in few if parameter.name in params]
            if len(having) < min(FEWEST, len(few)):  # conditional, with too few values
                continue
            change = _change(study, parameter, old, having)
            if change.new != old:
                found.append(change)
    return found


def _change(study: Study, parameter: Parameter, old: Range, few: Sequence[Values]) -> Change:
    """Return the change of a range; `few` are the best configurations that have the parameter, best first."""
    values = [float(params[parameter.name]) for params in few]
    wider = wider_bound(study, parameter, old, few[0])
    widened, outer = None, old
    if wider is not None:
        edge, bound = widened, _ = wider
        outer = replace(old, high=bound) if edge == "high" else replace(old, low=bound)
    if old.log:
        new = _in_decades(outer, widened, values, (1,), parameter.integer)
        if new == outer:
            new = _in_decades(outer, widened, values, (1, 3), parameter.integer)
    else:
        new = _in_steps(parameter, old, values) if count(parameter) else _rounded(old, values)
        if widened is not None:
            new = replace(new, high=outer.high) if widened == "high" else replace(new, low=outer.low)
    return Change(parameter, old, new, values[0], widened)


def _in_decades(
    outer: Range, widened: Side | None, values: Sequence[float], digits: Sequence[int], integer: bool
) -> Range:
    """Return the range between two marks around the values, so wide that the best value does not lie at its edge.

    A widened side stays where it is.
    """
    exponents = range(math.floor(math.log10(outer.low)), math.ceil(math.log10(outer.high)) + 1)
    marks = [float(f"{digit}e{exponent}") for exponent in exponents for digit in digits]
    marks = [mark for mark in marks if outer.low < mark < outer.high and (mark.is_integer() or not integer)]
    lows = [outer.low, *(mark for mark in marks if mark <= min(values) and widened != "low")]  # the innermost last
    highs = [outer.high, *(mark for mark in reversed(marks) if mark >= max(values) and widened != "high")]
    while True:
        low, high = lows[-1], highs[-1]
        edge = edge_of(Range(low, high, log=True), values[0]) if low < high else None
        if (edge == "low" or low >= high) and len(lows) > 1:
            lows.pop()
        elif (edge == "high" or low >= high) and len(highs) > 1:
            highs.pop()
        else:
            break
    return replace(outer, low=int(low) if integer else low, high=int(high) if integer else high)


def _rounded(old: Range, values: Sequence[float]) -> Range:
    """Return the range of the values plus a margin, inside the old range, rounded outwards to a digit of the margin."""
    margin = MARGIN * (old.high - old.low)
    unit = Decimal(1).scaleb(math.floor(math.log10(margin)))
    low = float(Decimal(str(min(values) - margin)).quantize(unit, ROUND_FLOOR))
    high = float(Decimal(str(max(values) + margin)).quantize(unit, ROUND_CEILING))
    return replace(old, low=max(old.low, low), high=min(old.high, high))


def _in_steps(parameter: Parameter, old: Range, values: Sequence[float]) -> Range:
    """Return the range of the values plus a margin, both ends on steps of the old range."""
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


def _range_text(searched: Range) -> str:
    return f"{bound_text(searched.low)}..{bound_text(searched.high)}"
