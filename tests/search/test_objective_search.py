"""The user's own objective: its trials end as Optuna would end them, and are claimed and resumed like others."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from objectives import PLAIN, objective_study
from optuna.trial import FrozenTrial, TrialState
from tiny import search, trials_of

from hpo.errors import CodeError, StudyClosedError, TrainingError, UsageError
from hpo.search.events import EpochEnded, Event, Note, StudyEnded
from hpo.search.sampling.samplers import objective_sampler
from hpo.search.study_records import CHANGES
from hpo.storage import ATTEMPTS, Storage, StudyState, load_study, set_state, summary
from hpo.storage.rows import SYSTEM_ATTRS


def own_trials(storage: Storage) -> list[FrozenTrial]:
    return trials_of(storage, "own")


def launched(study: Any, storage: Storage, **options: Any) -> list[Event]:
    return search(study, storage, device="auto", **options)


def ended(events: list[Event]) -> StudyEnded:
    last = events[-1]
    assert isinstance(last, StudyEnded)
    return last


def test_a_study_ends_with_its_trials_as_the_function_made_them(tmp_path: Path, storage: Storage) -> None:
    events = launched(objective_study(tmp_path, trials=8, pruner="none"), storage)
    assert (ended(events).reason, ended(events).completed) == ("finished", 8)
    for trial in own_trials(storage):
        x, shift = trial.params["x"], trial.params.get("shift", 0)
        assert trial.params.keys() == ({"x", "kind", "shift"} if trial.params["kind"] == "shifted" else {"x", "kind"})
        assert trial.value == x**2 + shift
        assert trial.intermediate_values == {step: x**2 + shift + 3 - step for step in range(3)}
        assert trial.user_attrs == {"shift": {"by": shift}}
    kinds = {trial.params["kind"] for trial in own_trials(storage)}
    assert kinds == {"square", "shifted"}
    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == [0, 1, 2] * 8


def test_plain_optuna_reads_the_same_and_its_own_search_would_have_proposed_the_same(
    tmp_path: Path, storage: Storage
) -> None:
    launched(objective_study(tmp_path, trials=14, pruner="none", direction="maximize"), storage)
    ours = optuna.load_study(study_name="own", storage=storage.location.full_url)
    assert ours.direction.name == "MAXIMIZE"
    assert ours.best_value == max(trial.value or 0.0 for trial in ours.trials)
    names: dict[str, Any] = {}
    exec((tmp_path / "objective.py").read_text(), names)
    again = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    for trial in ours.trials[:10]:  # the samplers of the first are of the trials' own seeds; from here on TPE learns
        again.add_trial(trial)
    for number in range(10, 14):
        again.sampler = objective_sampler("tpe", 0, number)
        again.optimize(names["objective"], n_trials=1)
    assert [trial.params for trial in again.trials] == [trial.params for trial in ours.trials]


def test_bad_trials_are_pruned_and_keep_their_last_report(tmp_path: Path, storage: Storage) -> None:
    launched(objective_study(tmp_path, trials=24, pruner="median"), storage)
    pruned = [trial for trial in own_trials(storage) if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]


def test_hyperband_keeps_what_it_has_to_know_of_a_trial(tmp_path: Path, storage: Storage) -> None:
    code = PLAIN.replace("range(3)", "range(12)")
    launched(objective_study(tmp_path, code, trials=20, pruner="hyperband"), storage)
    assert any("completed_rung_0" in trial.system_attrs for trial in own_trials(storage))
    assert any(trial.state == TrialState.PRUNED for trial in own_trials(storage))


ENDINGS = {
    "return None": (TrialState.FAIL, None, "returned no value: The value None could not be cast to float"),
    "return float('nan')": (TrialState.FAIL, None, "returned no value: The value nan is not acceptable"),
    "return float('inf')": (TrialState.COMPLETE, math.inf, None),
    "return 1.0, 2.0": (
        TrialState.FAIL,
        None,
        "returned no value: The number of the values 2 did not match the number of the objectives 1",
    ),
    "return (1.5,)": (TrialState.COMPLETE, 1.5, None),
    "return '2.5'": (TrialState.FAIL, None, "returned no value: "),
    "return 10**400": (TrialState.FAIL, None, "returned no value: int too large"),
    "import torch; return torch.tensor([1.0, 2.0])": (TrialState.FAIL, None, "returned no value: "),
    "return 3": (TrialState.COMPLETE, 3.0, None),
    "raise ValueError('of a kind')": (
        TrialState.FAIL,
        None,
        "ValueError: of a kind (objective.py, line {line}, in objective)",
    ),
    "raise optuna.TrialPruned()": (TrialState.PRUNED, None, None),
    "import sys; sys.exit(3)": (TrialState.FAIL, None, "called sys.exit(3)"),
    "import sys; sys.exit()": (TrialState.FAIL, None, "called sys.exit()"),
    "trial.report(0.5, 'x')": (TrialState.FAIL, None, "TypeError: The `step` argument is of type"),
    "trial.report(0.5, 7); raise optuna.TrialPruned()": (TrialState.PRUNED, 0.5, None),
    "trial.report(float('nan'), 1); raise optuna.TrialPruned()": (TrialState.PRUNED, None, None),
    "trial.suggest_float('x', 0, 2)": (TrialState.FAIL, None, "ValueError"),
    "trial.suggest_categorical('y', [True, 1])": (
        TrialState.FAIL,
        None,
        "ValueError: 'y': choices True and 1 are stored as one; give one of them",
    ),
}
"""The function's last line -> the state, the value and the reason of the trial."""


def test_a_trial_ends_as_optuna_would_end_it(tmp_path: Path, storage: Storage) -> None:
    lines = [f"    if trial.number == {number}:\n        {line}\n" for number, line in enumerate(ENDINGS)]
    code = "import optuna\ndef objective(trial):\n    trial.suggest_categorical('x', [1, 2])\n"
    launched(objective_study(tmp_path, code + "".join(lines), trials=len(ENDINGS)), storage)
    for trial, (line, (state, value, reason)) in zip(own_trials(storage), ENDINGS.items(), strict=True):
        attrs = trial.user_attrs
        assert (trial.state, trial.value) == (state, value), line
        assert trial.params["x"] in (1, 2)
        if reason is None:
            assert "reason" not in attrs, line
        else:
            assert attrs["reason"].startswith(reason.format(line=2 * trial.number + 5)), line


FAILS = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    return helper(x, trial.number)

def helper(x, number):
    {line}
"""


def test_three_failures_of_one_kind_in_a_row_end_the_search_with_the_users_own_lines(
    tmp_path: Path, storage: Storage
) -> None:
    events: list[Event] = []
    study = objective_study(tmp_path, FAILS.format(line="raise ValueError(f'bad {x}')"), trials=9)
    with pytest.raises(
        TrainingError, match=r"objective\.py:objective failed alike in 3 trials in a row \(ValueError: bad 0"
    ):
        launched(study, storage, stop_at=lambda event: bool(events.append(event)))
    assert [trial.state for trial in own_trials(storage)] == [TrialState.FAIL] * 3
    traceback = next(e.text for e in events if isinstance(e, Note) and e.text.startswith("Traceback"))
    assert "in helper" in traceback
    assert "hpo/" not in traceback
    assert "optuna/" not in traceback
    (kept,) = own_trials(storage)[0].system_attrs[ATTEMPTS]
    assert "return helper(x, trial.number)" in kept["traceback"]


@pytest.mark.parametrize(
    ("trials", "advice"), [(4, "launch again to continue"), (3, "correct it and launch under another")]
)
def test_a_launch_is_advised_where_it_would_train_something(
    trials: int, advice: str, tmp_path: Path, storage: Storage
) -> None:
    study = objective_study(tmp_path, FAILS.format(line="raise ValueError('bad')"), trials=trials)
    with pytest.raises(TrainingError, match=advice):
        launched(study, storage)


NAN = {  # says nothing of the code
    "float('nan')": "minimize",
    "__import__('numpy').float32('nan')": "minimize",
    "__import__('torch').tensor(float('nan'))": "minimize",
    "(1.0, float('nan'))": ["minimize", "minimize"],
}


@pytest.mark.parametrize(
    ("line", "direction"),
    [
        ("raise [ValueError, KeyError][number % 2]('bad')", "minimize"),  # of two kinds, in turn
        ("return number / 0 if number % 3 else 1.0", "minimize"),  # never three in a row
        *((f"return {value}", direction) for value, direction in NAN.items()),
    ],
)
def test_other_failures_do_not_end_it(line: str, direction: Any, tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, FAILS.format(line=line), trials=7, direction=direction)
    events = launched(study, storage)
    assert (ended(events).reason, ended(events).completed + ended(events).failed) == ("finished", 7)
    assert ended(events).failed


def test_a_failure_is_tried_again_where_the_study_says_so(tmp_path: Path, storage: Storage) -> None:
    code = """
SEEN = set()
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number not in SEEN:
        SEEN.add(trial.number)
        raise RuntimeError("at first")
    return x
"""
    events = launched(objective_study(tmp_path, code, trials=2, retries=1), storage)
    assert (ended(events).completed, ended(events).failed) == (2, 0)
    for trial in own_trials(storage):
        assert trial.value == trial.params["x"]
        assert [each["reason"] for each in trial.system_attrs[ATTEMPTS]] == [
            "RuntimeError: at first (objective.py, line 7, in objective)"
        ]


SLOW = """
import optuna
REACHED = []
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    for step in range(4):
        try:
            trial.report(x, step)
        except Exception:
            raise AssertionError("not for except Exception")
        REACHED.append((trial.number, step))
    return x
"""


def test_a_stop_sends_the_trial_back_at_its_next_report_and_the_next_launch_goes_on_with_its_parameters(
    tmp_path: Path, storage: Storage
) -> None:
    study = objective_study(tmp_path, SLOW, trials=3)

    def in_the_second_trial(event: Event) -> bool:
        return isinstance(event, EpochEnded) and [t.state for t in own_trials(storage)] == [
            TrialState.COMPLETE,
            TrialState.RUNNING,
        ]

    events = launched(study, storage, stop_at=in_the_second_trial)
    assert (ended(events).reason, ended(events).completed) == ("interrupted", 1)
    waits = own_trials(storage)[1]
    assert (waits.state, waits.intermediate_values) == (TrialState.WAITING, {})
    events = launched(study, storage)
    assert (ended(events).reason, ended(events).completed) == ("finished", 3)
    assert own_trials(storage)[1].params == waits.params
    assert own_trials(storage)[1].value == waits.params["x"]


def test_a_value_that_comes_after_a_stop_is_kept(tmp_path: Path, storage: Storage) -> None:
    code = "def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n"
    study = objective_study(tmp_path, code, trials=3)
    events = launched(study, storage, stop_at=lambda event: type(event).__name__ == "PopulationStarted")
    assert (ended(events).reason, ended(events).completed) == ("interrupted", 1)


def test_what_a_stopped_function_raises_is_no_failure(tmp_path: Path, storage: Storage) -> None:
    code = SLOW.replace(
        "        REACHED.append",
        "        if trial.number == 0: raise RuntimeError('a child has died')\n        REACHED.append",
    )
    code = code.replace(
        "trial.report(x, step)", "optuna.Trial.report(trial, x, step)"
    )  # which does not look for a stop
    study = objective_study(tmp_path, code, trials=1)
    events = launched(study, storage, stop_at=lambda event: isinstance(event, EpochEnded))
    assert (ended(events).reason, ended(events).failed) == ("interrupted", 0)
    assert own_trials(storage)[0].state == TrialState.WAITING


def test_a_pause_takes_the_trial_back_and_what_its_function_does_later_is_dropped(
    tmp_path: Path, storage: Storage
) -> None:
    study = objective_study(tmp_path, SLOW, trials=3)
    paused: list[int] = []

    def pause(event: Event) -> bool:
        if isinstance(event, EpochEnded) and not paused:
            paused.append(set_state(storage, summary(storage, "own").study_id, StudyState.PAUSED))
        return False

    events = launched(study, storage, stop_at=pause)
    assert paused == [1]
    assert ended(events).reason == "paused"
    (trial,) = own_trials(storage)
    assert (trial.state, trial.intermediate_values) == (TrialState.WAITING, {})
    with pytest.raises(StudyClosedError, match="hpo resume own"):
        launched(study, storage)
    set_state(storage, summary(storage, "own").study_id, StudyState.OPEN)
    assert ended(launched(study, storage)).completed == 3


def test_a_trial_that_takes_too_long_fails_at_its_next_report(tmp_path: Path, storage: Storage) -> None:
    code = SLOW.replace("for step", "import time\n    time.sleep(0.02)\n    for step")
    launched(objective_study(tmp_path, code, trials=2, trial_timeout=0.01), storage)
    for trial in own_trials(storage):
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["reason"] == "took longer than search.trial_timeout (0.01 s)"


def test_the_function_can_stop_the_study(tmp_path: Path, storage: Storage) -> None:
    code = "def objective(trial):\n    if trial.number == 1: trial.study.stop()\n    return trial.number\n"
    events = launched(objective_study(tmp_path, code, trials=9), storage)
    assert (ended(events).reason, ended(events).completed) == ("stopped", 2)


def test_the_function_sees_the_study_as_it_is(tmp_path: Path, storage: Storage) -> None:
    code = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number:
        assert trial.study.best_value == min(t.value for t in trial.study.trials if t.value is not None)
        assert trial.study.trials[0].user_attrs == {"first": True}
    else:
        trial.set_user_attr("first", True)
    return x
"""
    study = objective_study(tmp_path, code, trials=2)
    assert ended(launched(study, storage)).completed == 2
    study = objective_study(tmp_path, code, trials=4)
    assert ended(launched(study, storage, extend=True)).completed == 4  # from the storage, in another search


def test_an_attribute_is_kept_as_it_was_when_it_was_set(tmp_path: Path, storage: Storage) -> None:
    code = """
def objective(trial):
    before = [each.user_attrs["seen"] for each in trial.study.trials[:-1]]
    assert before == [[0]] * len(before)
    seen = [0]
    trial.set_user_attr("seen", seen)
    seen.append(1)
    return 1.0
"""
    launched(objective_study(tmp_path, code, trials=3), storage)
    trials = trials_of(storage, "own")
    assert [(trial.state, trial.user_attrs["seen"]) for trial in trials] == [(TrialState.COMPLETE, [0])] * 3


def test_threads_of_the_function_may_report(tmp_path: Path, storage: Storage) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda step: trial.report(x + step, step), range(20)))
    return x
"""
    launched(objective_study(tmp_path, code, trials=1), storage)
    (trial,) = own_trials(storage)
    assert trial.intermediate_values == {step: trial.params["x"] + step for step in range(20)}


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "qmc"])
def test_samplers_propose_and_leave_no_pickle(sampler: str, tmp_path: Path, storage: Storage) -> None:
    code = """
def objective(trial):
    x, y = trial.suggest_float("x", -5, 5), trial.suggest_float("y", -5, 5)
    return x**2 + y**2
"""
    study = objective_study(tmp_path, code, trials=13, sampler=sampler)
    assert ended(launched(study, storage)).completed == 13
    trials = own_trials(storage)
    assert len({json.dumps(trial.params) for trial in trials}) == 13
    with storage.engine.connect() as connection:
        keys = set(connection.execute(SYSTEM_ATTRS.select().with_only_columns(SYSTEM_ATTRS.c.key)).scalars())
    assert keys == {"hpo:worker"}


def test_points_that_optuna_was_given_come_first(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, trials=1, pruner="none")
    launched(study, storage)
    optuna.load_study(study_name="own", storage=storage.location.full_url).enqueue_trial({"x": 0.5, "kind": "square"})
    launched(objective_study(tmp_path, trials=3, pruner="none"), storage, extend=True)
    assert own_trials(storage)[1].params == {"x": 0.5, "kind": "square"}
    assert len(own_trials(storage)) == 3


def test_other_code_is_refused_and_a_change_of_the_file_needs_to_be_allowed(tmp_path: Path, storage: Storage) -> None:
    launched(objective_study(tmp_path, trials=1), storage)
    with pytest.raises(UsageError, match=r"search.trials: 1 -> 2.*--extend"):
        launched(objective_study(tmp_path, trials=2), storage)
    with pytest.raises(UsageError, match=r"search\.direction.*would not be comparable"):
        launched(objective_study(tmp_path, trials=1, direction="maximize"), storage, extend=True)
    with pytest.raises(CodeError, match=r"objective\.py in .* has changed since the study was created"):
        launched(objective_study(tmp_path, PLAIN + "# later\n", trials=1), storage)


def test_code_that_may_have_changed_is_kept_with_the_study(tmp_path: Path, storage: Storage) -> None:
    launched(objective_study(tmp_path, trials=1), storage)
    changed = objective_study(tmp_path, PLAIN + "# later\n", trials=2)
    launched(changed, storage, extend=True, changed_code=True)
    assert len(own_trials(storage)) == 2
    change = load_study(storage, "own").user_attrs[CHANGES][-1]
    assert change["changed"] == ["search.trials: 1 -> 2", "objective.py: other contents"]
    launched(changed, storage)  # it is the study's code now


def test_what_is_no_function_is_refused_before_anything_is_stored(tmp_path: Path, storage: Storage) -> None:
    with pytest.raises(UsageError, match=r"own.toml: objective: must name a function of a trial \(got int\)"):
        launched(objective_study(tmp_path, "objective = 3\n"), storage)
    with pytest.raises(UsageError, match=r"objective.py:objective is a class; .* `objective = objective\(\)`"):
        launched(objective_study(tmp_path, "class objective:\n    def __call__(self, trial): ...\n"), storage)
    with pytest.raises(CodeError, match=r"objective.py has no 'objective' \(did you mean 'objectiv'\?\)"):
        launched(objective_study(tmp_path, "def objectiv(trial): ...\n"), storage)
    with pytest.raises(CodeError, match=r"objective\.py cannot be imported: ZeroDivisionError"):
        launched(objective_study(tmp_path, "1 / 0\n"), storage)
    assert storage.get_all_studies() == []


def test_two_searches_share_the_trials(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, SLOW, trials=12, sampler="qmc")
    threads = [threading.Thread(target=launched, args=(study, each)) for each in (storage, other(storage))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = own_trials(storage)
    assert [trial.number for trial in trials] == list(range(12))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({trial.params["x"] for trial in trials}) == 12
    assert load_study(storage, "own").user_attrs["hpo:state"] == "ended"


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "qmc"])
def test_processes_that_begin_together_begin_elsewhere(sampler: str) -> None:
    taken = []
    for number in range(2):  # neither knows of the other's trial
        study = optuna.create_study(sampler=objective_sampler(sampler, 0, number))
        taken.append(study.ask().suggest_float("x", 0, 1))
    assert taken[0] != taken[1]


def other(storage: Storage) -> Storage:
    return type(storage)(storage.location)
