"""The error for a study without a completed trial: states of its trials, the most frequent reason, advice.

A trial is ranked when it has completed with finite values. The advice never is a launch that would train nothing. Reads
studies and changes nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.study_facts import STATES, file_value, objective_of
from hpo.search.study_records import trial_target
from hpo.storage import FAILURE_REASON, Storage, StudyState, StudySummary, TrialFields, state_of, summary
from hpo.text import hpo_command, printable

NUMBER = re.compile(r"[-+]?\b[\d.]+(e[-+]?\d+)?\b")
"""Reasons that differ only in their numbers count as the same."""


def no_best_trial(storage: Storage, name: str, consequence: str = "") -> HpoError:
    """Return the error for a study without a ranked trial; `consequence` is such as "there is nothing to export"."""
    study = summary(storage, name)
    outcomes = trial_outcomes(storage, study)
    if any(state.is_finished() for state in study.states):
        problem = f"no trial to rank: {outcomes}"
    else:
        problem = f"no finished trial yet ({outcomes})" if outcomes else "no finished trial yet"
    return HpoError(f"study {name!r}: {problem}{', so ' if consequence else ''}{consequence}; {_advice(study)}")


def trial_outcomes(storage: Storage, study: StudySummary) -> str:
    """Return the number of trials in each state, with the reason: `3 failed (ValueError: bad), 2 pruned`."""
    trials: dict[TrialState, list[FrozenTrial]] = {}
    for trial in storage.read_trials(study.study_id, -1, (), TrialFields(curves=False, system_attrs=None)):
        trials.setdefault(trial.state, []).append(trial)
    found = [(word, trials[state]) for state, word in STATES.items() if state in trials]
    return ", ".join(f"{len(ended)} {word}{_most_frequent_reason(ended)}" for word, ended in found)


def _most_frequent_reason(trials: Sequence[FrozenTrial]) -> str:
    """Return ` (REASON)`, with the number of trials that have it unless all do; "" where no trial has a reason."""
    reasons = [reason for trial in trials if (reason := _reason(trial)) is not None]
    alike = Counter(NUMBER.sub("", reason) for reason in reasons)
    if not alike:
        return ""
    ((kind, count),) = alike.most_common(1)
    reason = next(each for each in reasons if NUMBER.sub("", each) == kind)
    return f" ({reason})" if count == len(trials) else f" ({count} of them: {reason})"


def _reason(trial: FrozenTrial) -> str | None:
    if trial.state == TrialState.COMPLETE:
        return None if all(map(math.isfinite, trial.values or ())) else "without a finite value"
    reason = trial.user_attrs.get(FAILURE_REASON)
    return None if reason is None else printable(str(reason))


def _advice(study: StudySummary) -> str:
    """Return what to do so that the study gets a ranked trial."""
    trials = trial_target(study.user_attrs)
    if trials is None:
        return "add trials with the program that created the study"
    state = state_of(study.user_attrs)
    if state in (StudyState.PAUSED, StudyState.STOPPED):
        return f"it is {state.value}: go on with `{hpo_command('resume', study.name)}`"
    unfinished = sum(count for state, count in study.states.items() if not state.is_finished())
    if not study.states:
        return "launch it"
    if state == StudyState.OPEN and (unfinished or sum(study.states.values()) < trials):
        return "launch it to go on"
    most = max(study.states, key=lambda state: study.states[state])
    return f"it has ended, and a launch trains nothing more: {_remedy(study, most)}, and launch it under another --name"


def _remedy(study: StudySummary, most: TrialState) -> str:
    """Return the change of the study that helps where most of the trials are in state `most`."""
    attrs, has_objective = study.user_attrs, objective_of(study.user_attrs) is not None
    if most == TrialState.COMPLETE and has_objective:
        return "return finite numbers from its objective function"
    helps = {
        "prune less in its objective function": has_objective,
        "raise search.limits": file_value(attrs, "search", "limits", "parameters") is not None,
        "give --set search.pruner=none": file_value(attrs, "search", "pruner") not in ("auto", "none"),
    }
    remedies = [remedy for remedy, applies in helps.items() if applies]
    return " or ".join(remedies) if most == TrialState.PRUNED and remedies else "fix that"
