"""A study's search space as Optuna knows it, and as the finite set it sometimes is.

A range with a step holds the numbers that its decimals say (0.1, 0.2, 0.3, never 0.30000000000000004), so that equal
trials have equal parameters whoever chose them. Knows nothing of samplers or storages.
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

from hpo.studyfile import Choices, Config, Parameter, Range, Study
from hpo.studyfile.messages import dotted_key, format_value
from hpo.studyfile.searched import encode_choice
from hpo.studyfile.trees import equal_json

Values = dict[str, Any]
"""A trial's parameters as Optuna stores them: name -> value."""

MOST_STEPS = 10**7
"""Steps from 0 to a range's end that Optuna, which counts them with floats, can still tell apart."""

MOST_COUNTED = 10**15
"""Different trials beyond which nobody wants to know the number, nor Python to write it."""

LARGEST_INTEGER = 2**53
"""Up to here Optuna, which keeps every number as a float, keeps whole numbers exactly."""


def distributions(study: Study) -> dict[str, BaseDistribution]:
    """Return the study's search space: parameter name -> Optuna's distribution, conditional ones among them."""
    return {parameter.name: _distribution(parameter) for parameter in study.parameters}


def config_of(study: Study, values: Mapping[str, Any]) -> Config:
    """Return the settings of the trial with these stored values."""
    known = {parameter.name: parameter for parameter in study.parameters}
    return study.config({name: decode(known[name], value) for name, value in values.items() if name in known})


def decode(parameter: Parameter, stored: Any) -> Any:
    """Return a stored value as the study file means it: a list, where it is one of the choices or was one before."""
    for choice in parameter.searched.choices if isinstance(parameter.searched, Choices) else ():
        kept = encode_choice(choice)
        if type(kept) is type(stored) and kept == stored:
            return copy.deepcopy(choice)  # whoever changes a list changes no study
    if isinstance(stored, str) and stored.startswith("["):
        try:
            value = json.loads(stored)
        except (ValueError, RecursionError):
            return stored
        return value if encode_choice(value) == stored else stored
    return stored


def misread(before: Study, study: Study) -> str | None:
    """Return which choice of another study, or of an earlier file, this one would take for another; None for none.

    That of the text "[8]" where this one has the list, or has no such choice: it would be read as a list.
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
    """Return a choice as it is shown: a fraction without the digits that nobody typed."""
    return float(f"{choice:.6g}") if isinstance(choice, float) else choice


def check_space(study: Study) -> None:
    """Raise StudyFileError for a range that Optuna could not keep: its steps are too fine, its numbers too large."""
    for parameter in study.parameters:
        searched, key = parameter.searched, ".".join(map(str, parameter.path))
        if isinstance(searched, Choices):
            continue
        if parameter.integer:
            if searched.high > LARGEST_INTEGER:
                raise study.error(f"{key}.high", f"must be at most {LARGEST_INTEGER} (got {searched.high})")
        elif searched.step is not None:
            if searched.high / searched.step > MOST_STEPS:
                raise study.error(f"{key}.step", f"must be at least high / {MOST_STEPS:,} (got {searched.step:g})")
            if not _adds_up(searched, candidate(parameter, (count(parameter) or 1) - 1)):
                raise study.error(f"{key}.step", "does not add up: give low and step fewer decimals")


def groups(study: Study, values: Mapping[str, Any]) -> list[dict[str, BaseDistribution]]:
    """Return the parts of the space that the parameters of a trial come from, each sampled for itself.

    The first is what every trial has; its values, which have to be among `values`, decide which others there are.
    """
    parts: dict[str, dict[str, BaseDistribution]] = {repr(None): {}}
    for parameter in study.applicable_parameters(values):
        parts.setdefault(repr(parameter.when), {})[parameter.name] = _distribution(parameter)
    return list(parts.values())


def size(study: Study) -> float:
    """Return how many different trials the space holds: a whole number, or infinity."""
    if any(count(parameter) is None for parameter in study.parameters):
        return math.inf
    return math.prod(_combinations(study, each) for each in study.parameters if each.when is None)


def size_text(study: Study) -> str:
    """Return the size of the space in words."""
    combinations = size(study)
    if combinations == math.inf:  # a whole number of hundreds of digits is none that math.isinf takes
        return "infinitely many trials"
    if combinations > MOST_COUNTED:
        return f"more than {MOST_COUNTED:,} different trials"
    return f"{combinations} different trial{'s' if combinations > 1 else ''}"


def combination(study: Study, index: int) -> Values:
    """Return one of a finite space's trials by its place in their order, in which the last parameter runs fastest."""
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
    """Return how many combinations there are of an unconditional parameter and of what depends on it."""
    if not _is_decisive(study, parameter):
        return count(parameter) or 1
    return sum(_combinations_at(study, parameter, place) for place in range(count(parameter) or 1))


def _combinations_at(study: Study, parameter: Parameter, place: int) -> int:
    return math.prod(count(each) or 1 for each in _dependents(study, parameter, place))


def _place(study: Study, parameter: Parameter, index: int) -> tuple[int, int]:
    """Return the place of the value that a combination of these has, and its place among those that have it."""
    if not _is_decisive(study, parameter):
        return index, 0
    place = 0
    while index >= (held := _combinations_at(study, parameter, place)):
        place, index = place + 1, index - held
    return place, index


def _is_decisive(study: Study, parameter: Parameter) -> bool:
    return any(each.when is not None and each.when.parameter == parameter.name for each in study.parameters)


def _dependents(study: Study, parameter: Parameter, place: int) -> list[Parameter]:
    """Return the parameters that a trial has because this one has the value at that place."""
    conditional = [each for each in study.parameters if each.when is not None and each.when.parameter == parameter.name]
    return [each for each in conditional if each.when is not None and each.when.is_met(candidate(parameter, place))]


def count(parameter: Parameter) -> int | None:
    """Return how many values a parameter can take; None where there is no end of them."""
    searched = parameter.searched
    if isinstance(searched, Choices):
        return len(searched.choices)
    if parameter.integer or searched.step is not None:
        return int((_exact(searched.high) - _exact(searched.low)) // _exact(searched.step or 1)) + 1
    return None


def candidate(parameter: Parameter, index: int) -> Any:
    """Return one of the values that a parameter can take, in their order, as stored."""
    searched = parameter.searched
    if isinstance(searched, Choices):
        return encode_choice(searched.choices[index])
    value = _exact(searched.low) + index * _exact(searched.step or 1)
    return int(value) if parameter.integer else float(value)


def snapped(parameter: Parameter, value: Any) -> Any:
    """Return a value that lies in the space as the candidate that it stands for.

    Samplers add up steps as floats, and who gives 8.0 for a whole number, or 1 for a fraction, means 8 or 1.0.
    """
    searched = parameter.searched
    if isinstance(searched, Choices):
        return value
    if parameter.integer or searched.step is None:
        return int(value) if parameter.integer else float(value)
    return candidate(parameter, round((value - searched.low) / searched.step))


def belongs(study: Study, space: Mapping[str, BaseDistribution], values: Mapping[str, Any]) -> bool:
    """Return whether a trial's stored values are a trial's of the study, inside what it searches.

    `space` is the study's `distributions`, made once for all its trials.
    """
    return contains({each.name: space[each.name] for each in study.applicable_parameters(values)}, values)


def is_whole(study: Study, values: Mapping[str, Any]) -> bool:
    """Return whether a trial has a value for every parameter that it should have, and for no other."""
    return values.keys() == {parameter.name for parameter in study.applicable_parameters(values)}


def contains(space: Mapping[str, BaseDistribution], values: Mapping[str, Any]) -> bool:
    """Return whether a trial's stored values lie inside the space, every parameter of it."""
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
    """Return whether a stored value is one of those that a parameter can take."""
    return contains({parameter.name: _distribution(parameter)}, {parameter.name: stored})


def takes(parameter: Parameter, value: Any) -> bool:
    """Return whether a value, as a user gives it, is one of those that a parameter can take: 1 is not true, nor 1.0."""
    if isinstance(parameter.searched, Choices):
        return any(equal_json(value, choice) for choice in parameter.searched.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return holds(parameter, value)
    except (ValueError, OverflowError):  # Optuna's, of a number that is none, or too large for it
        return False


def identity(values: Mapping[str, Any]) -> str:
    """Return what trials with the same parameters share."""
    return json.dumps(dict(sorted(values.items())))


def settings(study: Study, values: Mapping[str, Any]) -> str:
    """Return what trials share that are trained alike, whatever they have for keys that their kind does not use."""
    return identity(study.used_values(values))


def _distribution(parameter: Parameter) -> BaseDistribution:
    searched = parameter.searched
    if isinstance(searched, Choices):
        return CategoricalDistribution([encode_choice(choice) for choice in searched.choices])
    places = count(parameter)
    # The last of its steps: Optuna warns of any other end.
    high: Any = searched.high if places is None else candidate(parameter, places - 1)
    if parameter.integer:
        return IntDistribution(int(searched.low), high, searched.log, int(searched.step or 1))
    return FloatDistribution(searched.low, high, searched.log, searched.step)


def _adds_up(searched: Range, last: float) -> bool:
    """Return whether the last of a range's steps, as a float, is one in decimals, too: Optuna would move it."""
    return (_exact(last) - _exact(searched.low)) % _exact(searched.step or 1) == 0


def _exact(number: float) -> Fraction:
    """Return the number that a study file's decimals say, not the binary one nearest to it."""
    return Fraction(str(number))
