"""Create the study that `hpo confirm` trains: the best configurations and the baseline under fresh seeds.

The best of many noisy scores is partly luck; scores under fresh seeds show how much. A confirming study is an ordinary
study in the same storage, so it can be launched, watched, interrupted and shared like any other. An attribute of it
names the study that it confirms.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial

from hpo.errors import HpoError, UsageError
from hpo.results.derived_names import with_suffix
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import ranked_configurations
from hpo.search.comparability import same_data
from hpo.search.points import baseline
from hpo.search.space import Values, decode, holds, is_whole, settings
from hpo.search.study_records import DATA, RUN, stored_study, user_attrs_of
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
"""The attribute of a confirming study: the original study, the configurations, and the number of seeds.

`identity` identifies the original study; `study` is its name at the last confirmation.
"""

SUFFIX = "-confirm"


@dataclass(frozen=True)
class Candidate:
    """A configuration to confirm: its parameters as Optuna stores them, and its trial and score in the search.

    The baseline has a trial only where the search has tried it.
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


def create_confirming_study(storage: Storage, name: str, top: int, seeds: int) -> Study:
    """Store and return a study that confirms the `top` best configurations of a study under so many seeds.

    If it exists, even under another name, it is returned as it is, and no data are needed. A new one gets the first
    free name. Raises HpoError where no trial has completed, and where the data are not the study's.
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
    existing = (each.name for each in confirmations(storage, name))
    for candidate in itertools.chain(existing, (confirming_name(name, number) for number in itertools.count(1))):
        tree["name"] = candidate
        confirming = parse_study(tree, f"study '{tree['name']}'", study.folder)
        if confirming.name not in study_names(storage):
            driver = driver_of_stored(confirming, original, "cpu")
            try:
                submit(confirming, storage, driver=driver)
            except UsageError:
                if confirming.name not in study_names(storage):
                    raise
                continue  # another process has just given this name to another study
        if _is_confirmed_by(storage, confirming, record, attrs[DATA]):
            return confirming
    raise AssertionError("some name is free")


def confirming_name(name: str, number: int) -> str:
    """Return the name of the `number`-th confirmation of a study, from 1 on."""
    return with_suffix(name, SUFFIX if number == 1 else f"{SUFFIX}-{number}")


def confirmations(storage: Storage, name: str) -> list[StudySummary]:
    """Return the studies that confirm the study of that name, oldest first."""
    original = summary(storage, name)
    known = identity(original.user_attrs, name)
    return [each for each in summaries(storage) if (confirms_record(each) or {}).get("identity") == known]


def confirms_record(study: StudySummary) -> dict[str, Any] | None:
    """Return the record of what a study confirms; None for one that confirms nothing."""
    record: Any = study.user_attrs.get(CONFIRMS)
    return record if isinstance(record, dict) else None


def original_name(storage: Storage, record: dict[str, Any]) -> str:
    """Return the present name of a confirmed study, or its last known name where it has been deleted."""
    known = (each.name for each in summaries(storage) if identity(each.user_attrs, each.name) == record["identity"])
    return next(known, record["study"])


def _is_confirmed_by(storage: Storage, confirming: Study, record: dict[str, Any], data: dict[str, Any]) -> bool:
    """Return whether the stored study of that name is the confirmation in `record`; store a missing or old record."""
    try:
        stored = load_study(storage, confirming.name)
        if stored_study(stored) != confirming or not same_data(user_attrs_of(stored)[DATA], data):
            return False
        before = storage.set_study_attr_if_absent(stored._study_id, CONFIRMS, record)
        if before.get("identity") != record["identity"]:
            return False
        if before != record:  # further trials have changed the scores of the same configurations
            storage.set_study_attrs(stored._study_id, {CONFIRMS: record}, identity=user_attrs_of(stored).get(IDENTITY))
    except (HpoError, KeyError):  # a study of another program, or one deleted meanwhile
        return False
    return True


def _candidates(storage: Storage, study: Study, study_id: int, top: int) -> list[Candidate]:
    """Return the best configurations, each with the mean score of its trials, and the baseline."""
    if not study.parameters:
        raise HpoError(f"study '{study.name}' searches no parameter, so there is nothing to confirm")
    trials = _ranked(storage, study, study_id, top)
    if not trials:
        raise no_best_trial(storage, study.name, "there is nothing to confirm")
    base = baseline(study)
    found = []
    for rank, each in enumerate(ranked_configurations(study, trials)[:top], start=1):
        params, is_baseline = dict(each.params), settings(study, each.params) == settings(study, base)
        found.append(Candidate(f"Best-{rank}", params, each.trials[0].number, each.mean, is_baseline))
    if not any(candidate.baseline for candidate in found):
        found.append(Candidate("baseline", base, None, None, True))
    return found


def _ranked(storage: Storage, study: Study, study_id: int, top: int) -> list[FrozenTrial]:
    """Return the best trials of at least `top` configurations, or all trials where configurations are repeated."""
    trials = list[FrozenTrial]()
    repeated = study.search.repeats > 1 or study.search.repeat
    for most in (MAX_TRIALS,) if repeated else (top, MAX_TRIALS):
        found = best_trials(storage, study_id, most)
        trials = [trial for trial in found if is_whole(study, trial.params)]  # without trials of other programs
        if len({settings(study, trial.params) for trial in trials}) >= top:
            break
    return trials


def _tree(study: Study, candidates: list[Candidate], seeds: int, precision: str) -> dict[str, Any]:
    """Return the confirming study's file without its name: the same training, with the configurations as points."""
    tree = study.resolved()
    for parameter in study.parameters:
        given = [candidate.params for candidate in candidates if parameter.name in candidate.params]
        values = [decode(parameter, params[parameter.name]) for params in given]
        tree = replaced(tree, parameter.path, _widened(parameter, values))
    points = [
        {p.name: decode(p, each.params[p.name]) for p in study.parameters if p.name in each.params}
        for each in candidates
    ]
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
    tree["description"] = f"The best configurations of a study and its baseline, each under {seeds} fresh seeds."
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
