"""A study's search space as Optuna knows it, and as the finite set it sometimes is.

Knows nothing of samplers or storages.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hpo.studyfile import Choices, Config, Parameter, Study

Values = dict[str, Any]
"""A trial's parameters as Optuna stores them: name -> value."""


def distributions(study: Study) -> dict[str, BaseDistribution]:
    """Return the study's search space: parameter name -> Optuna's distribution."""
    return {parameter.name: _distribution(parameter) for parameter in study.parameters}


def config_of(study: Study, values: Mapping[str, Any]) -> Config:
    """Return the settings of the trial with these stored values."""
    known = {parameter.name: parameter for parameter in study.parameters}
    return study.config({name: decode(known[name], value) for name, value in values.items() if name in known})


def decode(parameter: Parameter, stored: Any) -> Any:
    """Return a stored value as the study file means it: Optuna stores a list as its JSON text."""
    if isinstance(parameter.searched, Choices):
        for choice in parameter.searched.choices:
            if encode(choice) == stored and isinstance(stored, bool) == isinstance(encode(choice), bool):
                return choice
        return json.loads(stored) if isinstance(stored, str) and stored.startswith("[") else stored
    return stored


def encode(choice: Any) -> Any:
    """Return a choice as Optuna can store it."""
    return json.dumps(choice) if isinstance(choice, list) else choice


def size(study: Study) -> float:
    """Return how many different trials the space holds: a whole number, or infinity."""
    return math.prod(len(values) if values is not None else math.inf for values in map(candidates, study.parameters))


def combinations(study: Study) -> Iterator[Values]:
    """Yield every combination of a finite space, the last parameter running fastest."""
    names = [parameter.name for parameter in study.parameters]
    values = [candidates(parameter) or () for parameter in study.parameters]
    return (dict(zip(names, each, strict=True)) for each in itertools.product(*values))


def candidates(parameter: Parameter) -> range | list[Any] | None:
    """Return the values that a parameter can take, in order, as stored; None where there is no end of them."""
    searched = parameter.searched
    if isinstance(searched, Choices):
        return [encode(choice) for choice in searched.choices]
    if parameter.integer:
        return range(int(searched.low), int(searched.high) + 1, int(searched.step or 1))
    if searched.step is None:
        return None
    low, step = Decimal(str(searched.low)), Decimal(str(searched.step))
    count = int((Decimal(str(searched.high)) - low) // step) + 1
    return [float(low + step * index) for index in range(count)]


def contains(space: Mapping[str, BaseDistribution], values: Mapping[str, Any]) -> bool:
    """Return whether a trial's stored values lie inside the space, every parameter of it."""
    if values.keys() != space.keys():
        return False
    for name, distribution in space.items():
        value = values[name]
        if isinstance(distribution, CategoricalDistribution):
            if not any(type(value) is type(choice) and value == choice for choice in distribution.choices):
                return False
        elif isinstance(value, str) or not distribution._contains(distribution.to_internal_repr(value)):
            return False
    return True


def identity(values: Mapping[str, Any]) -> str:
    """Return what trials with the same parameters share."""
    return json.dumps(dict(sorted(values.items())))


def _distribution(parameter: Parameter) -> BaseDistribution:
    searched = parameter.searched
    if isinstance(searched, Choices):
        return CategoricalDistribution([encode(choice) for choice in searched.choices])
    if parameter.integer:
        low, high, step = int(searched.low), int(searched.high), int(searched.step or 1)
        return IntDistribution(low, low + (high - low) // step * step, searched.log, step)
    values = candidates(parameter)
    return FloatDistribution(searched.low, values[-1] if values else searched.high, searched.log, searched.step)
