"""What is said of a study that has no best trial: what became of its trials, the commonest reason, and what would help.

A trial is ranked when it has completed with finite values. Every command that needs such a trial asks here, so that all
say the same, and none advises a launch that would train nothing. Reads studies, and writes nothing.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError
from hpo.results.lookup import objective_of, said
from hpo.results.states import STATES
from hpo.search.study_records import trial_target
from hpo.storage import FAILURE_REASON, Storage, StudyState, StudySummary, TrialFields, state_of, summary
from hpo.text import hpo_command, printable

VARYING = re.compile(r"[-+]?\b[\d.]+(e[-+]?\d+)?\b")
"""The numbers in a reason: trials that failed alike tell their own."""


def no_best(storage: Storage, name: str, so: str = "") -> HpoError:
    """Return the error to raise where no trial of a study is ranked.

    `so` is what that comes to: "there is nothing to export".
    """
    study = summary(storage, name)
    became = what_became(storage, study)
    if any(state.is_finished() for state in study.states):
        what = f"no trial to rank: {became}"
    else:
        what = f"no finished trial yet ({became})" if became else "no finished trial yet"
    return HpoError(f"study {name!r}: {what}{', so ' if so else ''}{so}; {_advice(study)}")


def what_became(storage: Storage, study: StudySummary) -> str:
    """Return how many trials of a study are in which state, and why: `3 failed (ValueError: bad), 2 pruned`."""
    trials: dict[TrialState, list[FrozenTrial]] = {}
    for trial in storage.read_trials(study.study_id, -1, (), TrialFields(curves=False, system_attrs=None)):
        trials.setdefault(trial.state, []).append(trial)
    found = [(word, trials[state]) for state, word in STATES.items() if state in trials]
    return ", ".join(f"{len(ended)} {word}{_why(ended)}" for word, ended in found)


def _why(trials: Sequence[FrozenTrial]) -> str:
    """Return the commonest reason of trials in one state, and how many have it where not all do."""
    reasons = [reason for trial in trials if (reason := _reason(trial)) is not None]
    alike = Counter(VARYING.sub("", reason) for reason in reasons)
    if not alike:
        return ""
    ((kind, count),) = alike.most_common(1)
    reason = next(each for each in reasons if VARYING.sub("", each) == kind)
    return f" ({reason})" if count == len(trials) else f" ({count} of them: {reason})"


def _reason(trial: FrozenTrial) -> str | None:
    if trial.state == TrialState.COMPLETE:
        return None if all(map(math.isfinite, trial.values or ())) else "without a finite value"
    reason = trial.user_attrs.get(FAILURE_REASON)
    return None if reason is None else printable(str(reason))


def _advice(study: StudySummary) -> str:
    """Return what would bring the study a trial that can be ranked."""
    trials = trial_target(study.user_attrs)
    if trials is None:
        return "whoever made the study can give it more trials"
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
    """Return what to change, where most of the trials ended in this state."""
    attrs, own = study.user_attrs, objective_of(study.user_attrs) is not None
    if most == TrialState.COMPLETE and own:
        return "let its objective return finite numbers"
    prunes = {
        "let its objective prune less": own,
        "let search.limits admit more": said(attrs, "search", "limits", "parameters") is not None,
        "give --set search.pruner=none": said(attrs, "search", "pruner") != "none",
    }
    remedies = [remedy for remedy, helps in prunes.items() if helps]
    return " or ".join(remedies) if most == TrialState.PRUNED and remedies else "mend that"
