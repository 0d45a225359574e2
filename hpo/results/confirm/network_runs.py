"""The file of a study that confirms a network study: the same training, with the configurations as points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpo.results.confirm.objective_runs import description
from hpo.search.space import Values, decode, holds
from hpo.studyfile import Choices, Parameter, Study
from hpo.studyfile.trees import equal_json, replaced
from hpo.training.seeds import derive_seed


def network_tree(
    study: Study, configurations: Sequence[Values], seeds: int, splits: int | None, precision: str
) -> dict[str, Any]:
    """Return the confirming study's file without its name: the same training, with the configurations as points.

    With `splits`, the runs are spread over so many splits, none of which is the study's own. `precision` replaces
    "auto".
    """
    tree = study.resolved()
    for parameter in study.parameters:
        values = [decode(parameter, each[parameter.name]) for each in configurations if parameter.name in each]
        tree = replaced(tree, parameter.path, _widened(parameter, values))
    points = [{p.name: decode(p, each[p.name]) for p in study.parameters if p.name in each} for each in configurations]
    trials = len(points) * seeds
    search = {key: tree["search"][key] for key in ("metric", "direction", "score", "retries") if key in tree["search"]}
    tree["search"] = {
        **search,
        "pruner": "none",
        "trials": trials,
        "sampler": "random",  # samples nothing: every trial is a point
        "points": points,
        "repeats": seeds,
        "seed": derive_seed("confirm", study.search.seed),
        "population": trials,
    }
    tree["training"] |= {"keep": "none"}  # no run's weights are better than another's
    if tree["training"]["precision"] == "auto":
        tree["training"]["precision"] = precision
    tree["description"] = description(seeds, splits)
    if splits is not None:
        tree["data"] |= {"split_seed": study.data.split_seed + (study.data.splits or 1), "splits": splits}
    del tree["baseline"]
    return tree


def _widened(parameter: Parameter, values: list[Any]) -> dict[str, Any]:
    """Return a search range or choices that contain these values.

    A baseline, or a trial from before the study was extended, may be outside the study's own, or between two steps.
    """
    searched = parameter.searched
    if isinstance(searched, Choices):
        choices = list(searched.choices)
        for value in values:
            if not any(equal_json(value, choice) for choice in choices):
                choices.append(value)
        return {"choices": choices}
    if searched.step is not None and not all(holds(parameter, value) for value in values):
        return {"choices": sorted({*values})}
    low, high = min([searched.low, *values]), max([searched.high, *values])
    return {**searched.tree(), "low": low, "high": high, "log": searched.log and low > 0}
