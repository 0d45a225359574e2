"""Enqueued trials, `hpo launch --enqueue '{"lr": 0.01}'`: configurations that a user names, trained before new ones.

Parameters that the user leaves open are sampled. An enqueued trial is stored as WAITING, so that the next worker of the
study claims it. Promises: its values lie inside the search space, as far as that is known before an objective function
runs; it is trained once, however often it is enqueued; it counts towards `search.trials`; either all trials of one call
are stored or none.

Optuna's `study.enqueue_trial` stores only the given values (`fixed_params`), which the trial returns from its `suggest`
calls. Trials of an objective study are stored in the same way. Trials that another program has enqueued in a network
study get their parameters when a worker claims them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import UsageError, nearest
from hpo.search.points import FIXED, trial_seed
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.space import Values, distributions, identity, snapped, takes
from hpo.storage import ClaimConditions, Storage, TrialFields, study_names
from hpo.studyfile import AnyStudy, ObjectiveStudy, Parameter, Range, Study
from hpo.studyfile.messages import format_key, format_value
from hpo.studyfile.searched import encode_choice
from hpo.untrusted_files import parse_json

OPTION = "--enqueue"

ENQUEUED = "hpo:enqueued"
"""The system attribute of an enqueued trial: the values that the user gave."""

TrialMaker = Callable[[Sequence[Values], Sequence[FrozenTrial]], list[FrozenTrial]]
"""Makes waiting trials of enqueued values, to follow the study's stored trials."""


def network_values(study: Study, texts: Sequence[str], storage: Storage) -> list[Values]:
    """Return the enqueued values of a network study, as Optuna stores them; raise UsageError for invalid ones."""
    _check_enqueueing(study, texts, storage)
    return [checked(study, _parsed(text), _option(text)) for text in texts]


def objective_values(study: ObjectiveStudy, texts: Sequence[str], storage: Storage) -> list[Values]:
    """Return the enqueued values of an objective study; raise UsageError for text that is no JSON object."""
    _check_enqueueing(study, texts, storage)
    return [_parsed(text) for text in texts]


def network_trials(
    study: Study, given: Sequence[Values], trials: Sequence[FrozenTrial], before: Sequence[FrozenTrial]
) -> list[FrozenTrial]:
    """Return waiting trials with all their parameters: the given ones, and sampled ones for those left open.

    `trials` are those of the study, `before` those of `search.start_from`. Raises UsageError while points are left.
    """
    _check_points_ended(study, trials)
    history = SamplerHistory(study, trials, before)
    space, waiting = distributions(study), []
    for each in given:
        number, values = history.ask_for(each)
        waiting.append(
            create_trial(
                state=TrialState.WAITING,
                params=values,
                distributions={name: space[name] for name in values},
                user_attrs={"seed": trial_seed(study, number)},
                system_attrs={ENQUEUED: each},
            )
        )
    return waiting


def objective_trials(
    study: ObjectiveStudy, given: Sequence[Values], trials: Sequence[FrozenTrial]
) -> list[FrozenTrial]:
    """Return waiting trials as Optuna's `enqueue_trial` stores them. Raises UsageError while points are left."""
    _check_points_ended(study, trials)
    return [create_trial(state=TrialState.WAITING, system_attrs={FIXED: each}) for each in given]


def store_enqueued(
    study: AnyStudy,
    given: Sequence[Values],
    make_trials: TrialMaker,
    storage: Storage,
    conditions: ClaimConditions,
    *,
    key: str,
    repeats: bool,
) -> None:
    """Store the enqueued trials that the study does not have yet, all of them or none.

    `key` is the attribute of enqueued values; a trial with the same parameters counts as stored unless `repeats`.
    Raises UsageError where `search.trials` leaves no room for them, and StudyClosedError unless the study is open.
    """
    parts = TrialFields(study.search.pruner != "none", user_attrs=False, system_attrs=key)
    # The loop ends: each retry means that another process has stored trials, and the study has room for a few only.
    while True:
        trials = storage.read_trials(conditions.study_id, -1, (), parts)
        there = {identity(trial.system_attrs[key]) for trial in trials if key in trial.system_attrs}
        if not repeats:
            there |= {identity(trial.params) for trial in trials}
        new = [values for name, values in {identity(each): each for each in given}.items() if name not in there]
        if not new:
            return
        if len(trials) + len(new) > study.search.trials:
            raise _too_many(study, len(trials), len(new))
        if storage.create_trials(conditions.study_id, make_trials(new, trials), len(trials), conditions):
            return


def checked(study: Study, given: Mapping[str, Any], head: str) -> Values:
    """Return values as Optuna stores them; raise UsageError, which begins with `head`, for values outside the space."""
    known = {parameter.name: parameter for parameter in study.parameters}
    for name in given:
        if name not in known:
            near = nearest(name, known) or f"; searched are {', '.join(known) or 'none'}"
            raise UsageError(f"{head}: {format_key(name)} is not searched{near}")
    values = {name: _value(known[name], value, head) for name, value in given.items()}
    for name in values:
        when = known[name].when
        if when is not None and not (when.parameter in values and when.is_met(values[when.parameter])):
            raise UsageError(f"{head}: {name} is searched only where {when.text()}; add that value")
    return {parameter.name: values[parameter.name] for parameter in study.parameters if parameter.name in values}


def _option(text: str) -> str:
    return f"{OPTION} {format_value(text)}"


def _parsed(text: str) -> Values:
    """Parse the user's JSON object."""
    try:
        given = parse_json(text)
    except ValueError as error:
        raise UsageError(f"{_option(text)}: {error}") from error
    if not isinstance(given, dict) or not given:
        raise UsageError(f'{_option(text)}: must be a JSON object of values by parameter, such as {{"lr": 0.01}}')
    return given


def _value(parameter: Parameter, value: Any, head: str) -> Any:
    if not takes(parameter, value):
        raise UsageError(f"{head}: {parameter.name} cannot be {format_value(value)}: {_range(parameter)}")
    return snapped(parameter, encode_choice(value))


def _range(parameter: Parameter) -> str:
    searched = parameter.searched
    if not isinstance(searched, Range):
        return f"it is one of {', '.join(map(json.dumps, searched.choices))}"
    step = "" if searched.step is None else f" in steps of {format_value(searched.step)}"
    whole = "a whole number " if parameter.integer else ""
    return f"it is {whole}from {format_value(searched.low)} to {format_value(searched.high)}{step}"


def _check_enqueueing(study: AnyStudy, texts: Sequence[str], storage: Storage) -> None:
    """Raise UsageError where trials cannot be enqueued: beyond `search.trials`, before points, or among repeats."""
    if len(texts) > study.search.trials:
        raise _too_many(study, 0, len(texts))
    if texts and study.search.points and study.name not in study_names(storage):
        raise _after_points(len(study.search.points))
    if texts and study.search.repeats > 1:
        raise UsageError(f"{OPTION}: not possible with search.repeats, which numbers the trials; use search.points")


def _check_points_ended(study: AnyStudy, trials: Sequence[FrozenTrial]) -> None:
    if (ahead := len(study.search.points) - len(trials)) > 0:
        raise _after_points(ahead)


def _after_points(ahead: int) -> UsageError:
    advice = "add this configuration to search.points, or enqueue it later"
    return UsageError(f"{OPTION}: {ahead} of search.points have to run first: {advice}")


def _too_many(study: AnyStudy, there: int, more: int) -> UsageError:
    need = there + more
    return UsageError(
        f"{OPTION}: study '{study.name}' has {there} of its {study.search.trials} trials, and these make {need}; "
        f"give --trials {need}" + (" --extend" if there else "")
    )
