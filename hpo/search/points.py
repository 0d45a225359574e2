"""What a study file says of single trials: the points it tries first, its baseline, and how repeats are numbered.

With `repeats = r`, trial t trains configuration t // r for the (t % r)-th time. Equal repeats have equal seeds whatever
their configuration, so that configurations can be compared pair by pair. Knows nothing of samplers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpo.search.space import Values, candidate, contains, count, distributions, encode, identity
from hpo.studyfile import Choices, Parameter, Study
from hpo.studyfile.trees import value_at
from hpo.training.seeds import member_seed


def trial_seed(study: Study, number: int) -> int:
    """Return the seed of a trial's initial weights and dropout masks."""
    seed, repeats = study.search.seed, study.search.repeats
    return member_seed(seed, number) if repeats == 1 else member_seed(seed, 0, number % repeats)


def points(study: Study) -> list[Values]:
    """Return the configurations that the study tries first, as Optuna stores them."""
    return [_stored(study, point) for point in study.search.points]


def check_points(study: Study) -> None:
    """Raise StudyFileError for a point that lies outside the space or is there twice."""
    space, seen = distributions(study), dict[str, int]()
    for index, (point, values) in enumerate(zip(study.search.points, points(study), strict=True)):
        for name, value in values.items():
            if not contains({name: space[name]}, {name: value}):
                raise study.error(f"search.points.{index}.{name}", f"lies outside the range (got {point[name]})")
        first = seen.setdefault(identity(values), index)
        if first != index:
            raise study.error(f"search.points.{index}", f"is the same as search.points.{first}")


def baseline(study: Study) -> Values:
    """Return the configuration that tuning has to beat, as Optuna stores it.

    It is what `[baseline]` says; where that is silent, the middle of a range, on its scale, or the first choice.
    """
    given = {p.name: study.first.baseline.get(p.name, _middle(p)) for p in study.parameters}
    return _stored(study, {parameter.name: given[parameter.name] for parameter in study.applying(given)})


def _stored(study: Study, point: Mapping[str, Any]) -> Values:
    # As the models understand it, 1 as 1.0 where the key holds fractions; keys that this kind does not use among them.
    tree = study.config(point, whole=True).model_dump()
    return {each.name: encode(value_at(tree, each.setting)) for each in study.parameters if each.name in point}


def _middle(parameter: Parameter) -> Any:
    searched = parameter.searched
    if isinstance(searched, Choices):
        return searched.choices[0]
    low, high = float(searched.low), float(searched.high)
    middle = math.sqrt(low) * math.sqrt(high) if searched.log else low + (high - low) / 2
    if parameter.integer and searched.log:
        return round(middle)
    places = count(parameter)
    return middle if places is None else candidate(parameter, (places - 1) // 2)
