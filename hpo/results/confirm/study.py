"""Create the study that `hpo confirm` trains: the best configurations, baseline and first trial under fresh seeds.

The best of many noisy scores is partly luck; scores under fresh seeds show how much. A confirming study is an ordinary
study in the same storage, so it can be launched, watched, interrupted and shared like any other. An attribute of it
names the study that it confirms. `network_runs` and `objective_runs` have what differs by kind of study.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError, StudyFileError, UsageError
from hpo.results.confirm.network_runs import network_tree
from hpo.results.confirm.objective_runs import is_objective_baseline, objective_baseline, objective_tree
from hpo.results.confirm.split_choice import OWN_VALIDATION, SplitChoice, choose_splits
from hpo.results.derived_names import with_suffix
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import by_configuration, ranked_configurations, score
from hpo.search.points import baseline
from hpo.search.space import Values, is_whole, settings
from hpo.search.study_records import CODE, DATA, RUN, any_stored_study, user_attrs_of
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
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study, parse_any_study

CONFIRMS = "hpo:confirms"
"""The attribute of a confirming study: the original study, the configurations, seeds, and the reason for its splits.

`identity` identifies the original study; `study` is its name at the last confirmation.
"""

SUFFIX = "-confirm"
BASELINE, FIRST = "baseline", "First"
"""The labels of the configurations that the best ones are compared with."""


@dataclass(frozen=True)
class Candidate:
    """A configuration to confirm: its parameters as Optuna stores them, and its trial and score in the search.

    The baseline has a trial only where it is one of the best configurations. `first`: it is that of the first trial,
    which has no score where it was pruned. Confirmations of earlier versions have no first trial.
    """

    label: str
    params: Values
    trial: int | None
    score: float | None
    baseline: bool
    first: bool = False

    @property
    def can_win(self) -> bool:
        """Whether it is one of the best configurations of the search, from which the winner is selected."""
        return self.label not in (BASELINE, FIRST)

    @property
    def title(self) -> str:
        """The label with the trial's number, `Best-3 (trial 40)`; `baseline` where no trial has it."""
        return self.label if self.trial is None else f"{self.label} (trial {self.trial})"


def create_confirming_study(storage: Storage, name: str, top: int, seeds: int, splits: int | None = None) -> AnyStudy:
    """Store and return a study that confirms the `top` best configurations of a study under so many seeds and splits.

    With `splits = 1`, all runs have the split of the study; without `splits`, `choose_splits` chooses.
    If it exists, even under another name, it is returned as it is, and no data are needed. A new one gets the first
    free name. Raises HpoError where no trial has completed, and where the data are not the study's.
    """
    original = load_study(storage, name)
    study, attrs = any_stored_study(original), user_attrs_of(original)
    candidates = _candidates(storage, study, original._study_id, top)
    choice = choose_splits(study, attrs.get(DATA, {}), seeds, splits)
    known = confirmations(storage, name)
    if splits is None and any((confirms_record(each) or {}).get("splits_why") == OWN_VALIDATION for each in known):
        choice = SplitChoice(None, OWN_VALIDATION)
    points = [candidate.params for candidate in candidates]
    record = {
        "study": name,
        "identity": identity(attrs, name),
        "seeds": seeds,
        "candidates": [asdict(candidate) for candidate in candidates],
    }

    def create(choice: SplitChoice) -> AnyStudy:
        if isinstance(study, ObjectiveStudy):
            tree = objective_tree(study, points, seeds)
        else:
            tree = network_tree(study, points, seeds, choice.splits, str(attrs[RUN]["precision"]))
        return _stored(storage, original, tree, record | {"splits_why": choice.why}, [each.name for each in known])

    try:
        return create(choice)
    except StudyFileError:
        if splits is not None or choice.splits is None:
            raise
        return create(SplitChoice(None, OWN_VALIDATION))


def _stored(
    storage: Storage, original: optuna.Study, tree: dict[str, Any], record: dict[str, Any], existing: Sequence[str]
) -> AnyStudy:
    """Return the confirming study of this file, stored with its record under an existing name or the first free one."""
    from hpo.search.driver import driver_of_stored  # imports torch, which reading a confirmation does not need
    from hpo.search.launch import submit

    study, attrs = any_stored_study(original), user_attrs_of(original)
    new = (confirming_name(study.name, number) for number in itertools.count(1))
    for name in itertools.chain(existing, new):
        confirming = parse_any_study(tree | {"name": name}, f"study '{name}'", study.folder)
        if name not in study_names(storage):
            driver = driver_of_stored(confirming, original, "cpu")
            try:
                submit(confirming, storage, driver=driver)
            except UsageError:
                if name not in study_names(storage):
                    raise
                continue  # another process has just given this name to another study
        if _is_confirmed_by(storage, confirming, record, attrs):
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


def _is_confirmed_by(
    storage: Storage, confirming: AnyStudy, record: dict[str, Any], original: Mapping[str, Any]
) -> bool:
    """Return whether the stored study of that name is the confirmation in `record`; store a missing or old record.

    `original` are the user attributes of the confirmed study.
    """
    try:
        stored = load_study(storage, confirming.name)
        if any_stored_study(stored) != confirming or not _are_same_runs(user_attrs_of(stored), original):
            return False
        before = storage.set_study_attr_if_absent(stored._study_id, CONFIRMS, record)
        if before.get("identity") != record["identity"]:
            return False
        if before != record:  # further trials have changed the scores of the same configurations
            storage.set_study_attrs(stored._study_id, {CONFIRMS: record}, identity=user_attrs_of(stored).get(IDENTITY))
    except (HpoError, KeyError):  # a study of another program, or one deleted meanwhile
        return False
    return True


def _are_same_runs(attrs: Mapping[str, Any], original: Mapping[str, Any]) -> bool:
    """Return whether two studies have the same data, or objective functions with the same code."""
    if DATA in original:
        return bool(attrs[DATA]["sha256"] == original[DATA]["sha256"])
    files, others = attrs[CODE]["files"], original[CODE]["files"]
    return all(others.get(file, content) == content for file, content in files.items())


def _candidates(storage: Storage, study: AnyStudy, study_id: int, top: int) -> list[Candidate]:
    """Return the best configurations, each with the mean score of its trials, the baseline and the first trial."""
    nothing = HpoError(f"study '{study.name}' searches no parameter, so there is nothing to confirm")
    if isinstance(study, Study) and not study.parameters:
        raise nothing
    trials = _ranked(storage, study, study_id, top)
    if not trials:
        raise no_best_trial(storage, study.name, "there is nothing to confirm")
    if not any(trial.params for trial in trials):
        raise nothing
    is_baseline: Callable[[FrozenTrial], bool]
    if isinstance(study, ObjectiveStudy):
        base = objective_baseline(study, trials)
        is_baseline = functools.partial(is_objective_baseline, base)
    else:
        base = baseline(study)
        is_baseline = functools.partial(_has_settings, study, settings(study, base))
    first = _first_trial(storage, study, study_id)
    known = None if first is None else settings(study, first.params)
    found = []
    for rank, each in enumerate(ranked_configurations(study, trials)[:top], start=1):
        best = each.trials[0]
        is_first = settings(study, best.params) == known
        found.append(Candidate(f"Best-{rank}", dict(each.params), best.number, each.mean, is_baseline(best), is_first))
    if not any(candidate.baseline for candidate in found):
        is_first = first is not None and is_baseline(first)
        found.append(Candidate(BASELINE, base, None, None, True, is_first))
    if first is not None and not any(candidate.first for candidate in found):
        same = by_configuration(study, trials).get(str(known), [first])
        completed = [trial for trial in same if trial.state == TrialState.COMPLETE]  # a pruned one has another score
        scores = [value for value in map(score, completed) if math.isfinite(value)]
        mean = statistics.fmean(scores) if scores else None
        found.append(Candidate(FIRST, dict(first.params), first.number, mean, False, True))
    return found


def _first_trial(storage: Storage, study: AnyStudy, study_id: int) -> FrozenTrial | None:
    """Return the first trial of the search that was completed or pruned; None where every such one is foreign."""
    for number in itertools.count():
        try:
            trial = storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study_id, number))
        except KeyError:
            return None
        is_own = is_whole(study, trial.params) if isinstance(study, Study) else bool(trial.params)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and is_own:
            return trial
    raise AssertionError("a study has an end")


def _has_settings(study: Study, known: str, trial: FrozenTrial) -> bool:
    return settings(study, trial.params) == known


def _ranked(storage: Storage, study: AnyStudy, study_id: int, top: int) -> list[FrozenTrial]:
    """Return the best trials of at least `top` configurations, or all trials where configurations may be repeated."""
    if isinstance(study, ObjectiveStudy):
        return best_trials(storage, study_id, MAX_TRIALS)
    trials = list[FrozenTrial]()
    repeated = study.search.repeats > 1 or study.search.repeat
    for most in (MAX_TRIALS,) if repeated else (top, MAX_TRIALS):
        found = best_trials(storage, study_id, most)
        trials = [trial for trial in found if is_whole(study, trial.params)]  # without trials of other programs
        if len({settings(study, trial.params) for trial in trials}) >= top:
            break
    return trials
