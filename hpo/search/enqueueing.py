"""Trials that a user asks for by their values, `hpo launch --enqueue '{"lr": 0.01}'`: trained before any new ones.

What a user leaves open is the sampler's to choose. Such a trial is stored as one that waits, so that whoever works on
the study takes it first. Promises: what is asked for lies inside the search space, as far as that is known before the
user's own objective runs; it is trained once, however often it is asked for; and it counts among the trials that the
study shall have. Stores nothing unless all of it can be.

Optuna's `study.enqueue_trial` stores no parameters but what it was asked for (`fixed_params`), which its trial hands
out as the objective suggests them. Those of an objective are stored like that. Those that others have put into a study
of hpo's networks get their parameters when they are taken up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import UsageError, nearest
from hpo.search.points import trial_seed
from hpo.search.sampling.sampler_history import History
from hpo.search.space import Values, distributions, identity, snapped, takes
from hpo.storage import ClaimConditions, Parts, Storage, study_names
from hpo.studyfile import AnyStudy, ObjectiveStudy, Parameter, Range, Study
from hpo.studyfile.messages import key_shown, shown
from hpo.studyfile.searched import encode
from hpo.untrusted_files import parse_json

OPTION = "--enqueue"

ENQUEUED = "hpo:enqueued"
"""The system attribute of a trial that a user asked for: the values that were given."""

FIXED = "fixed_params"
"""The same as Optuna has it, in which its trials look for what they were asked for."""


def asked_for(study: AnyStudy, texts: Sequence[str], storage: Storage) -> list[Values]:
    """Return the values that a user asks for, as Optuna stores them. Raises UsageError where no trial can have them."""
    if len(texts) > study.search.trials:
        raise _too_many(study, 0, len(texts))
    if isinstance(study, ObjectiveStudy):
        return [_given(text) for text in texts]
    if texts and study.search.points and study.name not in study_names(storage):
        raise _after_points(len(study.search.points))
    if texts and study.search.repeats > 1:
        raise UsageError(f"{OPTION}: does not go with search.repeats, by which trials are numbered; use search.points")
    return [checked(study, _given(text), _head(text)) for text in texts]


def store_asked(
    study: AnyStudy,
    asked: Sequence[Values],
    before: Sequence[FrozenTrial],
    storage: Storage,
    conditions: ClaimConditions,
) -> None:
    """Store the trials that are asked for and are not there yet. `before` are those that the sampler knows besides.

    Raises UsageError where the study has no room for them, and StudyClosedError where it gives out no trials.
    """
    # It ends: whoever was faster has stored further trials, and the study has room for so many only.
    key = FIXED if isinstance(study, ObjectiveStudy) else ENQUEUED
    parts = Parts(study.search.pruner != "none", user_attrs=False, system_attrs=key)
    while True:
        trials = storage.read(conditions.study_id, -1, (), parts)
        there = {identity(trial.system_attrs[key]) for trial in trials if key in trial.system_attrs}
        if isinstance(study, ObjectiveStudy) or not study.search.repeat:
            there |= {identity(trial.params) for trial in trials}
        new = [values for key, values in {identity(each): each for each in asked}.items() if key not in there]
        if not new:
            return
        if len(trials) + len(new) > study.search.trials:
            raise _too_many(study, len(trials), len(new))
        if isinstance(study, ObjectiveStudy):
            templates = [create_trial(state=TrialState.WAITING, system_attrs={FIXED: given}) for given in new]
        else:
            ahead = len(study.search.points) - len(trials)
            if ahead > 0:
                raise _after_points(ahead)
            templates = _templates(study, new, History(study, trials, before))
        if storage.create_trials(conditions.study_id, templates, len(trials), conditions):
            return


def _templates(study: Study, new: Sequence[Values], history: History) -> list[FrozenTrial]:
    """Return trials that wait to be trained, with all their parameters."""
    space, templates = distributions(study), []
    for given in new:
        number, values = history.ask_for(given)
        templates.append(
            create_trial(
                state=TrialState.WAITING,
                params=values,
                distributions={name: space[name] for name in values},
                user_attrs={"seed": trial_seed(study, number)},
                system_attrs={ENQUEUED: given},
            )
        )
    return templates


def checked(study: Study, given: Mapping[str, Any], head: str) -> Values:
    """Return values as Optuna stores them; raise UsageError, which begins with `head`, where no trial can have them."""
    known = {parameter.name: parameter for parameter in study.parameters}
    for name in given:
        if name not in known:
            near = nearest(name, known) or f"; searched are {', '.join(known) or 'none'}"
            raise UsageError(f"{head}: {key_shown(name)} is not searched{near}")
    values = {name: _value(known[name], value, head) for name, value in given.items()}
    for name in values:
        when = known[name].when
        if when is not None and not (when.parameter in values and when.holds(values[when.parameter])):
            raise UsageError(f"{head}: {name} is searched only where {when.words()}; give that as well")
    return {parameter.name: values[parameter.name] for parameter in study.parameters if parameter.name in values}


def _head(text: str) -> str:
    return f"{OPTION} {shown(text)}"


def _given(text: str) -> Values:
    """Return what a user has written, an object of JSON."""
    try:
        given = parse_json(text)
    except ValueError as error:
        raise UsageError(f"{_head(text)}: {error}") from error
    if not isinstance(given, dict) or not given:
        raise UsageError(f'{_head(text)}: must be a JSON object of values by parameter, such as {{"lr": 0.01}}')
    return given


def _value(parameter: Parameter, value: Any, head: str) -> Any:
    if not takes(parameter, value):
        raise UsageError(f"{head}: {parameter.name} cannot be {shown(value)}: {_range(parameter)}")
    return snapped(parameter, encode(value))


def _range(parameter: Parameter) -> str:
    searched = parameter.searched
    if not isinstance(searched, Range):
        return f"it is one of {', '.join(map(json.dumps, searched.choices))}"
    step = "" if searched.step is None else f" in steps of {shown(searched.step)}"
    whole = "a whole number " if parameter.integer else ""
    return f"it is {whole}from {shown(searched.low)} to {shown(searched.high)}{step}"


def _after_points(ahead: int) -> UsageError:
    return UsageError(f"{OPTION}: {ahead} of search.points are to be tried first; put this one among them, or wait")


def _too_many(study: AnyStudy, there: int, more: int) -> UsageError:
    need = there + more
    return UsageError(
        f"{OPTION}: study '{study.name}' has {there} of its {study.search.trials} trials, and these make {need}; "
        f"give --trials {need}" + (" --extend" if there else "")
    )
