"""Single configurations of a study file: `search.points`, the baseline, and the numbering of repeats.

With `repeats = r`, trial t trains configuration t // r for the (t % r)-th time. The n-th repeat of every configuration
has the same seed and the same split, so that configurations can be compared pair by pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpo.search.space import Values, candidate, count, identity, snapped, takes
from hpo.studyfile import AnyStudy, Choices, ObjectiveStudy, Parameter, Study
from hpo.studyfile.messages import format_value
from hpo.studyfile.searched import encode_choice
from hpo.studyfile.trees import value_at
from hpo.training.seeds import member_seed

SEED = "seed"
"""The user attribute of a trial with its seed."""

FIXED = "fixed_params"
"""The system attribute with fixed values of a trial, which Optuna's `enqueue_trial` writes."""

FUNCTION_SEEDS = 2**31
"""The number of seeds for objective functions: all libraries, with 32-bit seeds too, accept them."""


def trial_seed(study: AnyStudy, number: int) -> int:
    """Return the seed of a trial: of its initial weights and dropout masks, or for its objective function."""
    seed, repeats = study.search.seed, study.search.repeats
    found = member_seed(seed, number) if repeats == 1 else member_seed(seed, 0, number % repeats)
    return found % FUNCTION_SEEDS if isinstance(study, ObjectiveStudy) else found


def trial_split(study: Study, number: int) -> int:
    """Return the index of a trial's split: with `data.splits`, the n-th repeat of every configuration has the same."""
    return number % study.search.repeats % (study.data.splits or 1)


def points(study: Study) -> list[Values]:
    """Return the configurations of `search.points`, as Optuna stores them."""
    known = {parameter.name: parameter for parameter in study.parameters}
    return [
        {name: snapped(known[name], value) for name, value in _stored(study, point).items()}
        for point in study.search.points
    ]


def check_points(study: Study) -> None:
    """Raise StudyFileError for a point outside the search space, or one given twice."""
    known, seen = {parameter.name: parameter for parameter in study.parameters}, dict[str, int]()
    for index, point in enumerate(study.search.points):
        for name, value in _completed(study, point).items():
            if not takes(known[name], value):
                chosen = isinstance(known[name].searched, Choices)
                problem = "is none of the choices" if chosen else "lies outside the range"
                raise study.error(f"search.points.{index}.{name}", f"{problem} (got {format_value(point[name])})")
    for index, values in enumerate(points(study)):
        first = seen.setdefault(identity(values), index)
        if first != index:
            raise study.error(f"search.points.{index}", f"is the same as search.points.{first}")


def baseline(study: Study) -> Values:
    """Return the configuration that tuning has to beat, as Optuna stores it.

    Values come from `[baseline]`, else the middle of a range on its scale, or the first choice.
    """
    given = {p.name: study.first_settings.baseline.get(p.name, _middle(p)) for p in study.parameters}
    return _stored(study, {parameter.name: given[parameter.name] for parameter in study.applicable_parameters(given)})


def _stored(study: Study, point: Mapping[str, Any]) -> Values:
    return {name: encode_choice(value) for name, value in _completed(study, point).items()}


def _completed(study: Study, point: Mapping[str, Any]) -> Values:
    """Return a point with the types of its keys (1 as 1.0), and unused keys included."""
    tree = study.config(point, with_unused=True).model_dump()
    return {each.name: value_at(tree, each.setting) for each in study.parameters if each.name in point}


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
