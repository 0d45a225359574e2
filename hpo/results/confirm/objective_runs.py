"""The file of a study that confirms an objective study: the same function, with the configurations as points.

The search space of a function is known only while it runs. So the baseline has the values of `[baseline]`; the trial
itself gives every other parameter the middle of its range, or its first choice, when the function suggests it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.errors import HpoError, nearest
from hpo.search.space import Values, middle
from hpo.studyfile import ObjectiveStudy
from hpo.studyfile.messages import dotted_key
from hpo.training.seeds import derive_seed


def objective_tree(study: ObjectiveStudy, configurations: Sequence[Values], seeds: int) -> dict[str, Any]:
    """Return the confirming study's file without its name: the same function, with the configurations as points."""
    tree, points = study.resolved(), [dict(each) for each in configurations]
    tree.pop("baseline", None)
    search = {key: tree["search"][key] for key in ("direction", "retries", "trial_timeout") if key in tree["search"]}
    tree["search"] = {
        **search,
        "pruner": "none",
        "trials": len(points) * seeds,
        "sampler": "random",  # samples nothing: every trial is a point
        "points": points,
        "repeats": seeds,
        "seed": derive_seed("confirm", study.search.seed),
    }
    return tree | {"description": description(seeds)}


def description(seeds: int, splits: int | None = None) -> str:
    """Return the description of a confirming study."""
    fresh = f"{seeds} fresh seeds{'' if splits is None else f' on {splits} fresh splits'}"
    return f"The best configurations of a study, its baseline and first trial, each under {fresh}."


def objective_baseline(study: ObjectiveStudy, trials: Iterable[FrozenTrial]) -> Values:
    """Return the values of `[baseline]`. Raises HpoError for a name that no trial has."""
    base, known = dict(study.settings.baseline), {name for trial in trials for name in trial.params}
    for name in base:
        if name not in known:
            problem = f"{dotted_key(('baseline', name))}: no completed trial has this parameter{nearest(name, known)}"
            raise HpoError(f"study '{study.name}': {problem}; correct the study file and launch it with --extend")
    return base


def is_objective_baseline(base: Values, trial: FrozenTrial) -> bool:
    """Return whether a trial has the baseline's values: those of `base`, else the middle of each distribution."""
    if not base.keys() <= trial.params.keys():
        return False
    expected = {name: base[name] if name in base else middle(each) for name, each in trial.distributions.items()}
    return all(_equal(value, expected[name]) for name, value in trial.params.items())


def _equal(value: Any, other: Any) -> bool:
    """Return whether two values are the same parameter value: 1 and 1.0 are, 1 and true are not."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
