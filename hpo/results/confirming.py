"""The study that confirms another: its best configurations and the baseline, each trained again under fresh seeds.

The best of a hundred noisy scores is partly luck; the same configuration under other seeds says how much. The
confirming study is an ordinary one, in the same storage, whose points are those configurations, so that it is launched,
watched, interrupted and shared as any other. What it confirms stands with it, as an attribute.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.errors import HpoError, UnknownStudyError
from hpo.results.naming import followed
from hpo.results.ranking import configurations
from hpo.search.launch import submit
from hpo.search.points import baseline
from hpo.search.records import RUN, not_of_hpo, stored_study
from hpo.search.space import Values, decode, holds, identity
from hpo.storage import IDENTITY, Storage, best_trials, load_study, summary
from hpo.storage.studies import MOST_TRIALS
from hpo.studyfile import Choices, Parameter, Study, parse_study
from hpo.studyfile.trees import replaced
from hpo.training.randomness import derive_seed

CONFIRMS = "hpo:confirms"
"""The attribute of a confirming study: which study, which of its configurations, how many seeds."""

SUFFIX = "-confirm"


@dataclass(frozen=True)
class Candidate:
    """A configuration to confirm: its parameters as Optuna stores them, and its trial and score in the search.

    The baseline has a trial only where the search has come upon it too.
    """

    label: str
    params: Values
    trial: int | None
    score: float | None
    baseline: bool


def confirming_study(storage: Storage, name: str, top: int, seeds: int) -> Study:
    """Put the study that confirms the `top` best configurations of a study into the storage, and return it.

    Where it is there already, it stays as it is. Raises HpoError where no trial has finished.
    """
    original = load_study(storage, name)
    study = stored_study(original)
    candidates = _candidates(storage, study, top)
    attrs = original.user_attrs
    tree = _tree(study, candidates, seeds, str(attrs[RUN]["precision"]))
    confirming = _named(storage, tree, study)
    submit(confirming, storage)
    record = {
        "study": name,
        "identity": attrs.get(IDENTITY),
        "seeds": seeds,
        "candidates": [asdict(candidate) for candidate in candidates],
    }
    storage.change_study(summary(storage, confirming.name).study_id, {CONFIRMS: record})
    return confirming


def _candidates(storage: Storage, study: Study, top: int) -> list[Candidate]:
    """Return the best configurations, each by the mean of its trials, and the baseline."""
    if not study.parameters:
        raise HpoError(f"study '{study.name}': searches nothing, so there is nothing to confirm")
    trials = _ranked(storage, study, top)
    if not trials:
        raise HpoError(
            f"study '{study.name}': no finished trial yet, so there is nothing to confirm; launch it to go on"
        )
    beaten = baseline(study)
    found = []
    for rank, each in enumerate(configurations(trials, study.search.minimized)[:top], start=1):
        params, first = dict(each.params), each.trials[0]
        found.append(Candidate(f"Best-{rank}", params, first.number, each.mean, params == beaten))
    if not any(candidate.baseline for candidate in found):
        found.append(Candidate("baseline", beaten, None, None, True))
    return found


def _ranked(storage: Storage, study: Study, top: int) -> list[FrozenTrial]:
    """Return the study's trials, best first: those of `top` configurations, or all where these may have others."""
    names, trials = {parameter.name for parameter in study.parameters}, list[FrozenTrial]()
    repeated = study.search.repeats > 1 or study.search.repeat
    for most in (MOST_TRIALS,) if repeated else (top, MOST_TRIALS):
        found = best_trials(storage, study.name, most)
        trials = [trial for trial in found if trial.params.keys() == names]  # other programs may have added theirs
        if len({identity(trial.params) for trial in trials}) >= top:
            break
    return trials


def _tree(study: Study, candidates: list[Candidate], seeds: int, precision: str) -> dict[str, Any]:
    """Return the confirming study's file but for its name: the same training, and nothing that is left to a sampler."""
    tree = study.resolved()
    for parameter in study.parameters:
        values = [decode(parameter, candidate.params[parameter.name]) for candidate in candidates]
        tree = replaced(tree, parameter.path, _holding(parameter, values))
    points = [{p.name: decode(p, each.params[p.name]) for p in study.parameters} for each in candidates]
    trials = len(points) * seeds
    search = {key: tree["search"][key] for key in ("metric", "score", "retries")}
    tree["search"] = {
        **search,
        "trials": trials,
        "sampler": "random",  # has nothing to choose: every trial is a point's
        "points": points,
        "repeats": seeds,
        "seed": derive_seed("confirm", study.search.seed),
        "population": trials,
    }
    tree["training"] |= {"keep": "none"}  # the weights of no run are better than another's
    if tree["training"]["precision"] == "auto":
        tree["training"]["precision"] = precision
    tree["description"] = f"The best of '{study.name}' and its baseline, each under {seeds} fresh seeds."
    del tree["baseline"]
    return tree


def _holding(parameter: Parameter, values: list[Any]) -> dict[str, Any]:
    """Return what is searched, wide enough for these values.

    A baseline may lie outside, or between two steps, and so may trials from before the study was extended.
    """
    searched = parameter.searched
    if isinstance(searched, Choices):
        further = [value for place, value in enumerate(values) if value not in (*searched.choices, *values[:place])]
        return {"choices": [*searched.choices, *further]}
    if searched.step is not None and not all(holds(parameter, value) for value in values):
        return {"choices": sorted({*values})}
    low, high = min([searched.low, *values]), max([searched.high, *values])
    return {**searched.tree(), "low": low, "high": high, "log": searched.log and low > 0}


def _named(storage: Storage, tree: dict[str, Any], original: Study) -> Study:
    """Return the study under the first name that is free, or that has this very study."""
    for number in itertools.count(1):
        suffix = SUFFIX if number == 1 else f"{SUFFIX}-{number}"
        tree["name"] = followed(original.name, suffix)
        study = parse_study(tree, f"study '{tree['name']}'", original.folder)
        try:
            stored = load_study(storage, study.name)
        except UnknownStudyError:
            return study
        try:
            if stored_study(stored) == study:
                return study
        except HpoError:  # not hpo's: its name is taken all the same
            continue
    raise not_of_hpo(original.name)  # never: a storage has an end
