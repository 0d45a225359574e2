"""What a user does to a study of the queue: submit, pause, resume, stop, delete. Each returns a line.

The processes that work on the study need not be reached: they find out when they next ask the storage for something.
"""

from __future__ import annotations

import shlex

from optuna.trial import TrialState

from hpo.errors import HpoError
from hpo.search.launch import submit
from hpo.search.records import STUDY
from hpo.service.worker import wanted
from hpo.storage import Storage, StudyState, StudySummary, running_trials, set_state, state_of, summary
from hpo.studyfile import Study


def submitted(study: Study, storage: Storage, *, extend: bool, priority: int | None) -> str:
    """Put the study into the queue. Raises what `hpo.search.launch.submit` raises."""
    submit(study, storage, extend=extend, priority=priority)
    stored = summary(storage, study.name)
    state = state_of(stored.user_attrs)
    how = f", {state.value}" if state in (StudyState.PAUSED, StudyState.STOPPED) else ""
    return f"{study.name}: in the queue{how}, {_trials(_left(stored))} left"


def pause(storage: Storage, name: str) -> str:
    """Let nobody train the study; what runs ends at its next epoch, and goes back to the queue."""
    study = _not_ended(storage, name)
    back = set_state(storage, study.study_id, StudyState.PAUSED)
    return f"{name}: paused, {_trials(back)} sent back to the queue; go on with `hpo resume {shlex.quote(name)}`"


def stop(storage: Storage, name: str) -> str:
    """Let what runs be finished, and nothing new begin."""
    study = _not_ended(storage, name)
    set_state(storage, study.study_id, StudyState.STOPPED)
    running = len(running_trials(storage, study.study_id))
    return f"{name}: stopped, {_trials(running)} still running; go on with `hpo resume {shlex.quote(name)}`"


def resume(storage: Storage, name: str) -> str:
    """Let the study be worked on again, whatever closed it."""
    study = _of_hpo(storage, name)
    set_state(storage, study.study_id, StudyState.OPEN)
    return f"{name}: open, {_trials(_left(study))} left"


def delete(storage: Storage, name: str) -> str:
    """Delete the study with all its trials."""
    study = summary(storage, name)
    try:
        storage.delete_study(study.study_id)
    except KeyError as error:
        raise HpoError(f"{storage.shown}: study '{name}' was deleted by another process") from error
    return f"{name}: deleted, with {_trials(sum(study.states.values()))}"


def question(storage: Storage, name: str) -> str:
    """Return what to ask before a study is deleted."""
    study = summary(storage, name)
    running = study.states.get(TrialState.RUNNING, 0)
    at_work = f", {running} of them running" if running else ""
    return f"Delete study '{name}' with {_trials(sum(study.states.values()))}{at_work}?"


def _left(study: StudySummary) -> int:
    done = sum(count for state, count in study.states.items() if state.is_finished())
    return max(0, wanted(study.user_attrs) - done)


def _of_hpo(storage: Storage, name: str) -> StudySummary:
    study = summary(storage, name)
    if STUDY not in study.user_attrs:
        raise HpoError(f"study '{name}' was not made by hpo: nobody works on it through the queue")
    return study


def _not_ended(storage: Storage, name: str) -> StudySummary:
    study = _of_hpo(storage, name)
    if state_of(study.user_attrs) == StudyState.ENDED:
        raise HpoError(f"study '{name}' has ended: there is nothing to hold up")
    return study


def _trials(count: int) -> str:
    return f"{count} {'trial' if count == 1 else 'trials'}"
