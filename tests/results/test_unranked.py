"""What is said of studies without a best trial: what became of their trials, and advice that helps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from stored_studies import OWN, tree, trial

from hpo.results.no_best_trial import no_best_trial
from hpo.storage import Storage, StudyState, set_state

Store = Callable[..., optuna.Study]
ENDED = "it has ended, and a launch trains nothing more: "
FUNCTION = "objective function"
ANEW = ", and launch it under another --name"


def failed(*reasons: str) -> list[FrozenTrial]:
    made = [trial(state=TrialState.FAIL) for _ in reasons]
    for each, reason in zip(made, reasons, strict=True):
        each.user_attrs = {"reason": reason} if reason else {}
    return made


def pruned(count: int) -> list[FrozenTrial]:
    return [trial(0.5, state=TrialState.PRUNED) for _ in range(count)]


UNPRUNED = tree(search={"trials": 4, "pruner": "none", "limits": {"parameters": 9}})
CASES: dict[str, tuple[Any, Sequence[FrozenTrial], str]] = {
    "nothing yet": (tree(), [], "no finished trial yet; launch it"),
    "under way": (
        tree(),
        [trial(state=TrialState.RUNNING), trial(state=TrialState.WAITING)],
        "no finished trial yet (1 running, 1 waiting); launch it to go on",
    ),
    "trials are left": (tree(), failed("bad"), "no trial to rank: 1 failed (bad); launch it to go on"),
    "reasons that differ in their numbers": (
        OWN,
        failed("out of memory", "KeyError: -0.5 (x.py, line 5)", "KeyError: 1e-05 (x.py, line 5)", ""),
        f"no trial to rank: 4 failed (2 of them: KeyError: -0.5 (x.py, line 5)); {ENDED}fix that{ANEW}",
    ),
    "a reason that moves the cursor": (
        OWN,
        failed(*["a\x1b[2Jb"] * 4),
        f"no trial to rank: 4 failed (a\\x1b[2Jb); {ENDED}fix that{ANEW}",
    ),
    "pruned by a pruner": (
        tree(search={"trials": 4, "pruner": "median"}),
        [*pruned(3), *failed("bad")],
        f"no trial to rank: 3 pruned, 1 failed (bad); {ENDED}give --set search.pruner=none{ANEW}",
    ),
    "left out by a limit": (
        UNPRUNED,
        pruned(4),
        f"no trial to rank: 4 pruned; {ENDED}raise search.limits{ANEW}",
    ),
    "pruned by an objective": (
        OWN,
        pruned(4),
        f"no trial to rank: 4 pruned; {ENDED}prune less in its {FUNCTION} or give --set search.pruner=none{ANEW}",
    ),
    "infinite": (
        OWN,
        [trial(float("inf"))] * 4,
        "no trial to rank: 4 complete (without a finite value); "
        f"{ENDED}return finite numbers from its {FUNCTION}{ANEW}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_became_of_the_trials_and_what_would_help(case: str, stored: Store, storage: Storage) -> None:
    written, trials, said = CASES[case]
    stored([]).set_user_attr("hpo:study", json.dumps(written))
    optuna.load_study(study_name="digits", storage=storage).add_trials(trials)
    assert str(no_best_trial(storage, "digits")) == f"study 'digits': {said}"


def test_a_study_that_was_stopped_is_to_be_resumed(stored: Store, storage: Storage) -> None:
    study = stored(failed("bad"))
    set_state(storage, study._study_id, StudyState.STOPPED, "enough")
    said = (
        "no trial to rank: 1 failed (bad), so there is nothing to export; it is stopped: go on with `hpo resume digits`"
    )
    assert str(no_best_trial(storage, "digits", "there is nothing to export")) == f"study 'digits': {said}"


def test_a_study_of_another_program_is_not_to_be_launched(storage: Storage) -> None:
    optuna.create_study(storage=storage, study_name="theirs").add_trials(failed("bad"))
    assert str(no_best_trial(storage, "theirs")).endswith(
        "1 failed (bad); add trials with the program that created the study"
    )
