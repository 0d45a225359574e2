"""Trials that a user asks for by their values, `hpo launch --enqueue '{"lr": 0.01}'`: trained before any new ones.

What a user leaves open is the sampler's to choose. Such a trial is stored as one that waits, so that whoever works on
the study takes it first. Promises: what is asked for lies inside the search space; it is trained once, however often it
is asked for; and it counts among the trials that the study shall have. Stores nothing unless all of it can be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import UsageError, nearest
from hpo.search.history import History
from hpo.search.points import trial_seed
from hpo.search.space import Values, distributions, encode, holds, identity, snapped
from hpo.storage import Gate, Parts, Storage, study_names
from hpo.studyfile import Parameter, Range, Study
from hpo.studyfile.messages import key_shown, shown

OPTION = "--enqueue"

ENQUEUED = "hpo:enqueued"
"""The system attribute of a trial that a user asked for: the values that were given."""


def asked_for(study: Study, texts: Sequence[str], storage: Storage) -> list[Values]:
    """Return the values that a user asks for, as Optuna stores them. Raises UsageError where no trial can have them."""
    if texts and study.search.points and study.name not in study_names(storage):
        raise _after_points(len(study.search.points))
    if texts and study.search.repeats > 1:
        raise UsageError(f"{OPTION}: does not go with search.repeats, by which trials are numbered; use search.points")
    if len(texts) > study.search.trials:
        raise _too_many(study, 0, len(texts))
    return [_values(study, text) for text in texts]


def store_asked(
    study: Study, asked: Sequence[Values], before: Sequence[FrozenTrial], storage: Storage, gate: Gate
) -> None:
    """Store the trials that are asked for and are not there yet. `before` are those that the sampler knows besides.

    Raises UsageError where the study has no room for them, and StudyClosedError where it gives out no trials.
    """
    parts = Parts(study.search.pruner != "none", user_attrs=False, system_attrs=ENQUEUED)
    while True:
        trials = storage.read(gate.study_id, -1, (), parts)
        there = {identity(trial.system_attrs[ENQUEUED]) for trial in trials if ENQUEUED in trial.system_attrs}
        if not study.search.repeat:
            there |= {identity(trial.params) for trial in trials}
        new = [values for key, values in {identity(each): each for each in asked}.items() if key not in there]
        if not new:
            return
        ahead = len(study.search.points) - len(trials)
        if ahead > 0:
            raise _after_points(ahead)
        if len(trials) + len(new) > study.search.trials:
            raise _too_many(study, len(trials), len(new))
        history, space = History(study, trials, before), distributions(study)
        templates = []
        for given in new:
            number, values = history.ask_for(given)
            held = {name: space[name] for name in values}
            seed = {"seed": trial_seed(study, number)}
            templates.append(
                create_trial(
                    state=TrialState.WAITING,
                    params=values,
                    distributions=held,
                    user_attrs=seed,
                    system_attrs={ENQUEUED: given},
                )
            )
        if storage.create_trials(gate.study_id, templates, len(trials), gate):
            return


def _values(study: Study, text: str) -> Values:
    head = f"{OPTION} {shown(text)}"
    try:
        given: Any = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{head}: is not JSON ({error})") from error
    if not isinstance(given, dict) or not given:
        raise UsageError(f'{head}: must be a JSON object of values by parameter, such as {{"lr": 0.01}}')
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


def _value(parameter: Parameter, value: Any, head: str) -> Any:
    stored = encode(value)
    if isinstance(parameter.searched, Range) and not parameter.integer and type(value) is int:
        stored = float(value)
    try:
        fits = not isinstance(value, Mapping) and not (isinstance(parameter.searched, Range) and type(value) is bool)
        fits = fits and holds(parameter, stored)
    except (ValueError, TypeError):  # Optuna's, of a value of another type
        fits = False
    if not fits:
        raise UsageError(f"{head}: {parameter.name} cannot be {shown(value)}: {_range(parameter)}")
    return snapped(parameter, stored)


def _range(parameter: Parameter) -> str:
    searched = parameter.searched
    if not isinstance(searched, Range):
        return f"it is one of {', '.join(map(json.dumps, searched.choices))}"
    step = "" if searched.step is None else f" in steps of {shown(searched.step)}"
    whole = "a whole number " if parameter.integer else ""
    return f"it is {whole}from {shown(searched.low)} to {shown(searched.high)}{step}"


def _after_points(ahead: int) -> UsageError:
    return UsageError(f"{OPTION}: {ahead} of search.points are to be tried first; put this one among them, or wait")


def _too_many(study: Study, there: int, more: int) -> UsageError:
    need = there + more
    return UsageError(
        f"{OPTION}: study '{study.name}' has {there} of its {study.search.trials} trials, and these make {need}; "
        f"give --trials {need}" + (" --extend" if there else "")
    )
