"""The search space of a study, as Optuna's distributions and, where it is finite, as numbered configurations.

A range with a step contains the numbers that its decimals say (0.1, 0.2, 0.3, never 0.30000000000000004), so that equal
trials have equal parameters, however they were sampled.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from hpo.studyfile import AnyStudy, Choices, Config, Parameter, Range, Study
from hpo.studyfile.messages import dotted_key, format_value
from hpo.studyfile.searched import encode_choice
from hpo.studyfile.trees import equal_json

Values = dict[str, Any]
"""A trial's parameters as Optuna stores them: name -> value."""

MAX_STEPS = 10**7
"""The maximum number of steps from 0 to a range's end: Optuna counts them with floats."""

MAX_COUNT = 10**15
"""The largest number of different trials that is written out."""

MAX_INTEGER = 2**53
"""The largest integer that Optuna, which stores every number as a float, stores exactly."""


def distributions(study: Study) -> dict[str, BaseDistribution]:
    """Return the study's search space: parameter name -> Optuna's distribution, conditional ones among them."""
    return {parameter.name: _distribution(parameter) for parameter in study.parameters}


def config_of(study: Study, values: Mapping[str, Any]) -> Config:
    """Return the settings of the trial with these stored values."""
    known = {parameter.name: parameter for parameter in study.parameters}
    return study.config({name: decode(known[name], value) for name, value in values.items() if name in known})


def decode(parameter: Parameter, stored: Any) -> Any:
    """Return the study file's value of a stored value: a list where a choice is, or was, a list."""
    for choice in parameter.searched.choices if isinstance(parameter.searched, Choices) else ():
        encoded = encode_choice(choice)
        if type(encoded) is type(stored) and encoded == stored:
            return copy.deepcopy(choice)  # a caller that changes the list must not change the study
    if isinstance(stored, str) and stored.startswith("["):
        try:
            value = json.loads(stored)
        except (ValueError, RecursionError):
            return stored
        return value if encode_choice(value) == stored else stored
    return stored


def misread(before: Study, study: Study) -> str | None:
    """Return an error text for a choice of another study that this study would decode differently, or None.

    The text "[8]" is such a choice where this study has the list [8], or has no such choice: it is decoded as a list.
    """
    known = {parameter.name: parameter for parameter in study.parameters}
    for parameter in before.parameters:
        now = known.get(parameter.name)
        for choice in parameter.searched.choices if isinstance(parameter.searched, Choices) else ():
            if now is not None and not equal_json(read_as := decode(now, encode_choice(choice)), choice):
                taken = f"would be taken for {format_value(read_as)}"
                return f"{dotted_key(now.path)}: the choice {format_value(choice)} of trials {taken}"
    return None


def few_digits(choice: Any) -> Any:
    """Return a choice for display: a float without rounding digits."""
    return float(f"{choice:.6g}") if isinstance(choice, float) else choice


def check_space(study: Study) -> None:
    """Raise StudyFileError for a range that Optuna cannot store: steps too fine, or numbers too large."""
    for parameter in study.parameters:
        searched, key = parameter.searched, ".".join(map(str, parameter.path))
        if isinstance(searched, Choices):
            continue
        if parameter.integer:
            if searched.high > MAX_INTEGER:
                raise study.error(f"{key}.high", f"must be at most {MAX_INTEGER} (got {searched.high})")
        elif searched.step is not None:
            if searched.high / searched.step > MAX_STEPS:
                raise study.error(f"{key}.step", f"must be at least high / {MAX_STEPS:,} (got {searched.step:g})")
            if not _adds_up(searched, candidate(parameter, (count(parameter) or 1) - 1)):
                raise study.error(f"{key}.step", "does not add up: give low and step fewer decimals")


def groups(study: Study, values: Mapping[str, Any]) -> list[dict[str, BaseDistribution]]:
    """Return the groups of parameters that a trial has, each sampled separately.

    The first group is that of every trial; its values, which must be in `values`, decide which other groups there are.
    """
    parts: dict[str, dict[str, BaseDistribution]] = {repr(None): {}}
    for parameter in study.applicable_parameters(values):
        parts.setdefault(repr(parameter.when), {})[parameter.name] = _distribution(parameter)
    return list(parts.values())


def size(study: Study) -> float:
    """Return the number of different trials: a whole number, or infinity."""
    if any(count(parameter) is None for parameter in study.parameters):
        return math.inf
    return math.prod(_combinations(study, each) for each in study.parameters if each.when is None)


def size_text(study: Study) -> str:
    """Return the number of different trials in words."""
    combinations = size(study)
    if combinations == math.inf:  # math.isinf cannot convert a whole number of hundreds of digits
        return "infinitely many trials"
    if combinations > MAX_COUNT:
        return f"more than {MAX_COUNT:,} different trials"
    return f"{combinations} different trial{'s' if combinations > 1 else ''}"


def combination(study: Study, index: int) -> Values:
    """Return a finite space's configuration by its index; the last parameter varies fastest."""
    values: Values = {}
    for parameter in reversed([each for each in study.parameters if each.when is None]):
        index, rest = divmod(index, _combinations(study, parameter))
        place, rest = _place(study, parameter, rest)
        values[parameter.name] = candidate(parameter, place)
        for dependent in reversed(_dependents(study, parameter, place)):
            rest, at = divmod(rest, count(dependent) or 1)
            values[dependent.name] = candidate(dependent, at)
    return {parameter.name: values[parameter.name] for parameter in study.applicable_parameters(values)}


def _combinations(study: Study, parameter: Parameter) -> int:
    """Return the number of combinations of an unconditional parameter and its conditional ones."""
    if not _is_decisive(study, parameter):
        return count(parameter) or 1
    return sum(_combinations_at(study, parameter, place) for place in range(count(parameter) or 1))


def _combinations_at(study: Study, parameter: Parameter, place: int) -> int:
    return math.prod(count(each) or 1 for each in _dependents(study, parameter, place))


def _place(study: Study, parameter: Parameter, index: int) -> tuple[int, int]:
    """Return the index of the parameter's value in a combination, and the combination's index among those with it."""
    if not _is_decisive(study, parameter):
        return index, 0
    place = 0
    while index >= (size_at := _combinations_at(study, parameter, place)):
        place, index = place + 1, index - size_at
    return place, index


def _is_decisive(study: Study, parameter: Parameter) -> bool:
    return any(each.when is not None and each.when.parameter == parameter.name for each in study.parameters)


def _dependents(study: Study, parameter: Parameter, place: int) -> list[Parameter]:
    """Return the conditional parameters of the value with that index."""
    conditional = [each for each in study.parameters if each.when is not None and each.when.parameter == parameter.name]
    return [each for each in conditional if each.when is not None and each.when.is_met(candidate(parameter, place))]


def count(parameter: Parameter) -> int | None:
    """Return the number of values of a parameter; None where it is infinite."""
    searched = parameter.searched
    if isinstance(searched, Choices):
        return len(searched.choices)
    if parameter.integer or searched.step is not None:
        return int((_exact(searched.high) - _exact(searched.low)) // _exact(searched.step or 1)) + 1
    return None


def candidate(parameter: Parameter, index: int) -> Any:
    """Return the stored form of a parameter's value with that index."""
    searched = parameter.searched
    if isinstance(searched, Choices):
        return encode_choice(searched.choices[index])
    value = _exact(searched.low) + index * _exact(searched.step or 1)
    return int(value) if parameter.integer else float(value)


def middle(distribution: BaseDistribution) -> Any:
    """Return the middle of a distribution on its scale, or its first choice."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high, step = distribution.low, distribution.high, distribution.step
    number = int if isinstance(distribution, IntDistribution) else float
    if distribution.log:
        found = min(max(math.sqrt(low) * math.sqrt(high), low), high)
        return round(found) if number is int else found
    if step is None:
        return low + (high - low) / 2
    steps = (_exact(high) - _exact(low)) // _exact(step)
    return number(_exact(low) + steps // 2 * _exact(step))


def snapped(parameter: Parameter, value: Any) -> Any:
    """Return a value inside the search space with its exact type and decimals.

    Samplers add up steps as floats, and users give 8.0 for an integer or 1 for a float.
    """
    searched = parameter.searched
    if isinstance(searched, Choices):
        return value
    if parameter.integer or searched.step is None:
        return int(value) if parameter.integer else float(value)
    return candidate(parameter, round((value - searched.low) / searched.step))


def belongs(study: Study, space: Mapping[str, BaseDistribution], values: Mapping[str, Any]) -> bool:
    """Return whether a trial's stored values lie inside the study's search space.

    `space` is `distributions(study)`, computed once for all trials.
    """
    return contains({each.name: space[each.name] for each in study.applicable_parameters(values)}, values)


def is_whole(study: Study, values: Mapping[str, Any]) -> bool:
    """Return whether a trial has exactly the parameters that its values call for."""
    return values.keys() == {parameter.name for parameter in study.applicable_parameters(values)}


def contains(space: Mapping[str, BaseDistribution], values: Mapping[str, Any]) -> bool:
    """Return whether stored values are inside the distributions, with a value for each of them."""
    if values.keys() != space.keys():
        return False
    for name, distribution in space.items():
        value = values[name]
        if isinstance(distribution, CategoricalDistribution):
            if not any(type(value) is type(choice) and value == choice for choice in distribution.choices):
                return False
        elif isinstance(value, str | bool) or not distribution._contains(distribution.to_internal_repr(value)):
            return False
    return True


def holds(parameter: Parameter, stored: Any) -> bool:
    """Return whether a stored value is a valid value of the parameter."""
    return contains({parameter.name: _distribution(parameter)}, {parameter.name: stored})


def takes(parameter: Parameter, value: Any) -> bool:
    """Return whether a user's value is a valid value of the parameter; 1 is neither true nor 1.0."""
    if isinstance(parameter.searched, Choices):
        return any(equal_json(value, choice) for choice in parameter.searched.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return holds(parameter, value)
    except (ValueError, OverflowError):  # Optuna's, for NaN or a number too large
        return False


def identity(values: Mapping[str, Any]) -> str:
    """Return a text that trials with the same parameters share."""
    return json.dumps(dict(sorted(values.items())))


def settings(study: AnyStudy, values: Mapping[str, Any]) -> str:
    """Return a text that trials with the same settings share: keys that their kind does not use are ignored."""
    return identity(study.used_values(values))


def _distribution(parameter: Parameter) -> BaseDistribution:
    searched = parameter.searched
    if isinstance(searched, Choices):
        return CategoricalDistribution([encode_choice(choice) for choice in searched.choices])
    places = count(parameter)
    # The last step: Optuna warns of any other end.
    high: Any = searched.high if places is None else candidate(parameter, places - 1)
    if parameter.integer:
        return IntDistribution(int(searched.low), high, searched.log, int(searched.step or 1))
    return FloatDistribution(searched.low, high, searched.log, searched.step)


def _adds_up(searched: Range, last: float) -> bool:
    """Return whether the last step, as a float, is a multiple of the step in decimals: Optuna would move it."""
    return (_exact(last) - _exact(searched.low)) % _exact(searched.step or 1) == 0


def _exact(number: float) -> Fraction:
    """Return the decimal number of the study file, not the nearest binary one."""
    return Fraction(str(number))
