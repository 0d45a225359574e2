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

from hpo.errors import HpoError, UsageError
from hpo.results.naming import followed
from hpo.results.ranking import configurations
from hpo.results.unranked import no_best
from hpo.search.comparability import same_data
from hpo.search.points import baseline
from hpo.search.space import Values, decode, holds, is_whole, settings
from hpo.search.study_records import DATA, RUN, foreign_study_error, stored_study, user_attrs_of
from hpo.storage import (
    IDENTITY,
    Storage,
    StudySummary,
    best_trials,
    identity,
    load_study,
    study_names,
    summaries,
    summary,
)
from hpo.storage.studies import MAX_TRIALS
from hpo.studyfile import Choices, Parameter, Study, parse_study
from hpo.studyfile.trees import equal_json, replaced
from hpo.training.seeds import derive_seed

CONFIRMS = "hpo:confirms"
"""The attribute of a confirming study: which study, which of its configurations, how many seeds.

The study is known by its `identity`; `study` is what it was called when it was last confirmed.
"""

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

    @property
    def title(self) -> str:
        """The label with the trial's number, `Best-3 (trial 40)`; `baseline` where no trial has it."""
        return self.label if self.trial is None else f"{self.label} (trial {self.trial})"


def confirming_study(storage: Storage, name: str, top: int, seeds: int) -> Study:
    """Put the study that confirms the `top` best configurations of a study into the storage, and return it.

    Where it is there already, it stays as it is, whatever either is called by now, and no images are needed. A new one
    has the first name that no other study has. Raises HpoError where no trial has finished, or the images are not the
    study's.
    """
    from hpo.search.driver import driver_of_stored  # imports torch, which reading a confirmation does not need
    from hpo.search.launch import submit

    original = load_study(storage, name)
    study, attrs = stored_study(original), user_attrs_of(original)
    candidates = _candidates(storage, study, original._study_id, top)
    tree = _tree(study, candidates, seeds, str(attrs[RUN]["precision"]))
    record = {
        "study": name,
        "identity": identity(attrs, name),
        "seeds": seeds,
        "candidates": [asdict(candidate) for candidate in candidates],
    }
    there = [each.name for each in confirmations(storage, name)]
    for called in itertools.chain(there, (confirming_name(name, number) for number in itertools.count(1))):
        tree["name"] = called
        confirming = parse_study(tree, f"study '{tree['name']}'", study.folder)
        if confirming.name not in study_names(storage):
            driver = driver_of_stored(confirming, original, "cpu")
            try:
                submit(confirming, storage, driver=driver)
            except UsageError:
                if confirming.name not in study_names(storage):
                    raise
                continue  # another process was faster to give this name, to another study
        if _is_the_one(storage, confirming, record, attrs[DATA]):
            return confirming
    raise foreign_study_error(name)  # never: a storage has an end


def confirming_name(name: str, number: int) -> str:
    """Return what the `number`-th study that confirms the one of that name is called, from 1 on."""
    return followed(name, SUFFIX if number == 1 else f"{SUFFIX}-{number}")


def confirmations(storage: Storage, name: str) -> list[StudySummary]:
    """Return the studies that confirm the study of that name, oldest first."""
    original = summary(storage, name)
    known = identity(original.user_attrs, name)
    return [each for each in summaries(storage) if (record_of(each) or {}).get("identity") == known]


def record_of(study: StudySummary) -> dict[str, Any] | None:
    """Return what a study keeps of what it confirms; None for one that confirms nothing."""
    record: Any = study.user_attrs.get(CONFIRMS)
    return record if isinstance(record, dict) else None


def original_name(storage: Storage, record: dict[str, Any]) -> str:
    """Return what the study of that record is called now; what it was called last, where it has been deleted."""
    known = (each.name for each in summaries(storage) if identity(each.user_attrs, each.name) == record["identity"])
    return next(known, record["study"])


def _is_the_one(storage: Storage, confirming: Study, record: dict[str, Any], images: dict[str, Any]) -> bool:
    """Return whether the stored study of that name is this one, with this record, which it gets if it has none."""
    try:
        stored = load_study(storage, confirming.name)
        if stored_study(stored) != confirming or not same_data(user_attrs_of(stored)[DATA], images):
            return False
        before = storage.set_study_attr_if_absent(stored._study_id, CONFIRMS, record)
        if before.get("identity") != record["identity"]:
            return False
        if before != record:  # the search has found more of the same
            storage.set_study_attrs(stored._study_id, {CONFIRMS: record}, identity=user_attrs_of(stored).get(IDENTITY))
    except (HpoError, KeyError):  # of another program, or deleted meanwhile
        return False
    return True


def _candidates(storage: Storage, study: Study, study_id: int, top: int) -> list[Candidate]:
    """Return the best configurations, each by the mean of its trials, and the baseline."""
    if not study.parameters:
        raise HpoError(f"study '{study.name}': searches nothing, so there is nothing to confirm")
    trials = _ranked(storage, study, study_id, top)
    if not trials:
        raise no_best(storage, study.name, "there is nothing to confirm")
    beaten = baseline(study)
    found = []
    for rank, each in enumerate(configurations(study, trials)[:top], start=1):
        params, is_baseline = dict(each.params), settings(study, each.params) == settings(study, beaten)
        found.append(Candidate(f"Best-{rank}", params, each.trials[0].number, each.mean, is_baseline))
    if not any(candidate.baseline for candidate in found):
        found.append(Candidate("baseline", beaten, None, None, True))
    return found


def _ranked(storage: Storage, study: Study, study_id: int, top: int) -> list[FrozenTrial]:
    """Return the study's trials, best first: those of `top` configurations, or all where these may have others."""
    trials = list[FrozenTrial]()
    repeated = study.search.repeats > 1 or study.search.repeat
    for most in (MAX_TRIALS,) if repeated else (top, MAX_TRIALS):
        found = best_trials(storage, study_id, most)
        trials = [trial for trial in found if is_whole(study, trial.params)]  # other programs may have added theirs
        if len({settings(study, trial.params) for trial in trials}) >= top:
            break
    return trials


def _tree(study: Study, candidates: list[Candidate], seeds: int, precision: str) -> dict[str, Any]:
    """Return the confirming study's file but for its name: the same training, and nothing that is left to a sampler."""
    tree = study.resolved()
    for parameter in study.parameters:
        given = [candidate.params for candidate in candidates if parameter.name in candidate.params]
        values = [decode(parameter, params[parameter.name]) for params in given]
        tree = replaced(tree, parameter.path, _holding(parameter, values))
    points = [
        {p.name: decode(p, each.params[p.name]) for p in study.parameters if p.name in each.params}
        for each in candidates
    ]
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
    tree["description"] = f"The best of the study that this confirms and its baseline, each under {seeds} fresh seeds."
    del tree["baseline"]
    return tree


def _holding(parameter: Parameter, values: list[Any]) -> dict[str, Any]:
    """Return what is searched, wide enough for these values.

    A baseline may lie outside, or between two steps, and so may trials from before the study was extended.
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
