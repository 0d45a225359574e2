"""Objective studies: trials end as in Optuna, and are claimed, stopped and resumed like those of network studies."""

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
from hpo.search.points import trial_seed
from hpo.search.sampling.samplers import objective_sampler
from hpo.search.study_records import CHANGES
from hpo.storage import ATTEMPTS, Storage, StudyState, load_study, set_state, summary
from hpo.storage.sql.rows import SYSTEM_ATTRS
from hpo.training.seeds import member_seed


def stored_trials(storage: Storage) -> list[FrozenTrial]:
    return trials_of(storage, "own")


def launch_study(study: Any, storage: Storage, **options: Any) -> list[Event]:
    return search(study, storage, device="auto", **options)


def study_ended(events: list[Event]) -> StudyEnded:
    last = events[-1]
    assert isinstance(last, StudyEnded)
    return last


def test_trials_store_parameters_values_reports_and_attributes(tmp_path: Path, storage: Storage) -> None:
    events = launch_study(objective_study(tmp_path, trials=8, pruner="none"), storage)
    assert (study_ended(events).reason, study_ended(events).completed) == ("finished", 8)
    for trial in stored_trials(storage):
        x, shift = trial.params["x"], trial.params.get("shift", 0)
        assert trial.params.keys() == ({"x", "kind", "shift"} if trial.params["kind"] == "shifted" else {"x", "kind"})
        assert trial.value == x**2 + shift
        assert trial.intermediate_values == {step: x**2 + shift + 3 - step for step in range(3)}
        assert trial.user_attrs == {"seed": member_seed(0, trial.number) % 2**31, "shift": {"by": shift}}
    kinds = {trial.params["kind"] for trial in stored_trials(storage)}
    assert kinds == {"square", "shifted"}
    assert [event.epoch for event in events if isinstance(event, EpochEnded)] == [0, 1, 2] * 8


def test_optuna_reads_the_study_and_proposes_the_same_parameters(tmp_path: Path, storage: Storage) -> None:
    launch_study(objective_study(tmp_path, trials=14, pruner="none", direction="maximize"), storage)
    stored = optuna.load_study(study_name="own", storage=storage.location.full_url)
    assert stored.direction.name == "MAXIMIZE"
    assert stored.best_value == max(trial.value or 0.0 for trial in stored.trials)
    names: dict[str, Any] = {}
    exec((tmp_path / "objective.py").read_text(), names)
    repeated = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    for trial in stored.trials[:10]:  # random, each under its own seed; TPE learns from them
        repeated.add_trial(trial)
    for number in range(10, 14):
        repeated.sampler = objective_sampler("tpe", 0, number)
        repeated.optimize(names["objective"], n_trials=1)
    assert [trial.params for trial in repeated.trials] == [trial.params for trial in stored.trials]


POINTS = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    rate = trial.suggest_float("rate", 1e-4, 1e-2, log=True)
    layers = trial.suggest_int("layers", 1, 4)
    steps = trial.suggest_float("steps", 0, 1, step=0.25) if trial.suggest_categorical("kind", ["b", "a"]) == "b" else 0
    trial.set_user_attr("seen", trial.user_attrs["seed"])
    trial.set_user_attr("seed", 5)
    return x
"""


def test_points_come_first_and_a_sampler_chooses_the_rest(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, POINTS, points=[{"x": 0.25, "kind": "a"}, {"layers": 3, "odd": 1}])
    events = launch_study(study, storage)
    first, second, third, fourth = stored_trials(storage)
    assert (first.params["x"], first.params["kind"], second.params["layers"]) == (0.25, "a", 3)
    assert len({trial.params["rate"] for trial in (first, second, third, fourth)}) == 4
    assert [trial.user_attrs["seen"] for trial in stored_trials(storage)] == [trial_seed(study, n) for n in range(4)]
    assert fourth.user_attrs["seed"] == 5  # the function may store another one
    assert "trial 1: objective.py:objective did not suggest odd, which its point names" in [
        event.text for event in events if isinstance(event, Note)
    ]


def test_repeated_points_are_fixed_and_have_the_same_seeds(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, POINTS, trials=6, points=[{"x": 0.25}, {"kind": "a"}], repeats=3)
    launch_study(study, storage)
    trials = stored_trials(storage)
    middle = {"x": 0.5, "rate": pytest.approx(1e-3), "layers": 2, "kind": "b", "steps": 0.5}
    assert [trial.params for trial in trials[:3]] == [{**middle, "x": 0.25}] * 3
    assert [trial.params for trial in trials[3:]] == [
        {name: value for name, value in {**middle, "kind": "a"}.items() if name != "steps"}
    ] * 3
    seeds = [trial.user_attrs["seed"] for trial in trials]
    assert seeds[:3] == seeds[3:]
    assert len({*seeds}) == 3
    assert max(seeds) < 2**31
    with pytest.raises(UsageError, match=r"--enqueue: not possible with search\.repeats"):
        launch_study(study, storage, enqueue=['{"x": 0.1}'])
    changed = objective_study(tmp_path, POINTS, trials=6, points=[{"x": 0.5}, {"kind": "a"}], repeats=3)
    with pytest.raises(UsageError, match=r"search\.points: .*--extend can change description, baseline"):
        launch_study(changed, storage, extend=True)


def test_failures_of_one_repeated_point_do_not_end_the_search(tmp_path: Path, storage: Storage) -> None:
    code = "def objective(trial):\n    return 1 / trial.suggest_int('x', 0, 3)\n"
    points = [{"x": 0}, {"x": 1}]
    launch_study(objective_study(tmp_path, code, trials=8, points=points, repeats=4), storage)
    states = [trial.state for trial in stored_trials(storage)]
    assert states == [TrialState.FAIL] * 4 + [TrialState.COMPLETE] * 4


def test_bad_trials_are_pruned_and_store_their_last_report(tmp_path: Path, storage: Storage) -> None:
    launch_study(objective_study(tmp_path, trials=24, pruner="median"), storage)
    pruned = [trial for trial in stored_trials(storage) if trial.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]


def test_hyperband_stores_rungs_in_the_trials(tmp_path: Path, storage: Storage) -> None:
    code = PLAIN.replace("range(3)", "range(12)")
    launch_study(objective_study(tmp_path, code, trials=20, pruner="hyperband"), storage)
    assert any("completed_rung_0" in trial.system_attrs for trial in stored_trials(storage))
    assert any(trial.state == TrialState.PRUNED for trial in stored_trials(storage))


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
"""Last line of the objective function -> state, value and failure reason of the trial."""


def test_trials_end_in_the_same_state_as_in_optuna(tmp_path: Path, storage: Storage) -> None:
    lines = [f"    if trial.number == {number}:\n        {line}\n" for number, line in enumerate(ENDINGS)]
    code = "import optuna\ndef objective(trial):\n    trial.suggest_categorical('x', [1, 2])\n"
    launch_study(objective_study(tmp_path, code + "".join(lines), trials=len(ENDINGS)), storage)
    for trial, (line, (state, value, reason)) in zip(stored_trials(storage), ENDINGS.items(), strict=True):
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


def test_three_equal_failures_in_a_row_end_the_search_with_a_user_traceback(tmp_path: Path, storage: Storage) -> None:
    events: list[Event] = []
    study = objective_study(tmp_path, FAILS.format(line="raise ValueError(f'bad {x}')"), trials=9)
    with pytest.raises(
        TrainingError, match=r"objective\.py:objective failed alike in 3 trials in a row \(ValueError: bad 0"
    ):
        launch_study(study, storage, stop_at=lambda event: bool(events.append(event)))
    assert [trial.state for trial in stored_trials(storage)] == [TrialState.FAIL] * 3
    traceback = next(e.text for e in events if isinstance(e, Note) and e.text.startswith("Traceback"))
    assert "in helper" in traceback
    assert "hpo/" not in traceback
    assert "optuna/" not in traceback
    (attempt,) = stored_trials(storage)[0].system_attrs[ATTEMPTS]
    assert "return helper(x, trial.number)" in attempt["traceback"]


@pytest.mark.parametrize(
    ("trials", "advice"), [(4, "launch again to continue"), (3, "correct it and launch under another")]
)
def test_the_error_advises_another_launch_if_trials_remain(
    trials: int, advice: str, tmp_path: Path, storage: Storage
) -> None:
    study = objective_study(tmp_path, FAILS.format(line="raise ValueError('bad')"), trials=trials)
    with pytest.raises(TrainingError, match=advice):
        launch_study(study, storage)


NAN = {  # training diverged: no error of the code
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
def test_other_failures_do_not_end_the_search(line: str, direction: Any, tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, FAILS.format(line=line), trials=7, direction=direction)
    events = launch_study(study, storage)
    assert (study_ended(events).reason, study_ended(events).completed + study_ended(events).failed) == ("finished", 7)
    assert study_ended(events).failed


def test_a_failed_trial_is_retried_if_the_study_allows_retries(tmp_path: Path, storage: Storage) -> None:
    code = """
TRIED = set()
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number not in TRIED:
        TRIED.add(trial.number)
        raise RuntimeError("at first")
    return x
"""
    events = launch_study(objective_study(tmp_path, code, trials=2, retries=1), storage)
    assert (study_ended(events).completed, study_ended(events).failed) == (2, 0)
    for trial in stored_trials(storage):
        assert trial.value == trial.params["x"]
        assert [attempt["reason"] for attempt in trial.system_attrs[ATTEMPTS]] == [
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


def test_a_stop_requeues_the_trial_at_its_next_report_with_its_parameters(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, SLOW, trials=3)

    def in_the_second_trial(event: Event) -> bool:
        return isinstance(event, EpochEnded) and [t.state for t in stored_trials(storage)] == [
            TrialState.COMPLETE,
            TrialState.RUNNING,
        ]

    events = launch_study(study, storage, stop_at=in_the_second_trial)
    assert (study_ended(events).reason, study_ended(events).completed) == ("interrupted", 1)
    requeued = stored_trials(storage)[1]
    assert (requeued.state, requeued.intermediate_values) == (TrialState.WAITING, {})
    events = launch_study(study, storage)
    assert (study_ended(events).reason, study_ended(events).completed) == ("finished", 3)
    assert stored_trials(storage)[1].params == requeued.params
    assert stored_trials(storage)[1].value == requeued.params["x"]


def test_a_value_returned_after_a_stop_is_stored(tmp_path: Path, storage: Storage) -> None:
    code = "def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n"
    study = objective_study(tmp_path, code, trials=3)
    events = launch_study(study, storage, stop_at=lambda event: type(event).__name__ == "PopulationStarted")
    assert (study_ended(events).reason, study_ended(events).completed) == ("interrupted", 1)


def test_an_exception_after_a_stop_is_not_a_failure(tmp_path: Path, storage: Storage) -> None:
    code = SLOW.replace(
        "        REACHED.append",
        "        if trial.number == 0: raise RuntimeError('a child has died')\n        REACHED.append",
    )
    # Optuna's method does not check for a stop.
    code = code.replace("trial.report(x, step)", "optuna.Trial.report(trial, x, step)")
    study = objective_study(tmp_path, code, trials=1)
    events = launch_study(study, storage, stop_at=lambda event: isinstance(event, EpochEnded))
    assert (study_ended(events).reason, study_ended(events).failed) == ("interrupted", 0)
    assert stored_trials(storage)[0].state == TrialState.WAITING


def test_a_pause_requeues_the_trial_and_discards_later_reports(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, SLOW, trials=3)
    paused: list[int] = []

    def pause(event: Event) -> bool:
        if isinstance(event, EpochEnded) and not paused:
            paused.append(set_state(storage, summary(storage, "own").study_id, StudyState.PAUSED))
        return False

    events = launch_study(study, storage, stop_at=pause)
    assert paused == [1]
    assert study_ended(events).reason == "paused"
    (trial,) = stored_trials(storage)
    assert (trial.state, trial.intermediate_values) == (TrialState.WAITING, {})
    with pytest.raises(StudyClosedError, match="hpo resume own"):
        launch_study(study, storage)
    set_state(storage, summary(storage, "own").study_id, StudyState.OPEN)
    assert study_ended(launch_study(study, storage)).completed == 3


def test_a_trial_over_the_timeout_fails_at_its_next_report(tmp_path: Path, storage: Storage) -> None:
    code = SLOW.replace("for step", "import time\n    time.sleep(0.02)\n    for step")
    launch_study(objective_study(tmp_path, code, trials=2, trial_timeout=0.01), storage)
    for trial in stored_trials(storage):
        assert trial.state == TrialState.FAIL
        assert trial.user_attrs["reason"] == "took longer than search.trial_timeout (0.01 s)"


def test_the_function_can_stop_the_study(tmp_path: Path, storage: Storage) -> None:
    code = "def objective(trial):\n    if trial.number == 1: trial.study.stop()\n    return trial.number\n"
    events = launch_study(objective_study(tmp_path, code, trials=9), storage)
    assert (study_ended(events).reason, study_ended(events).completed) == ("stopped", 2)


def test_the_function_reads_the_current_study(tmp_path: Path, storage: Storage) -> None:
    code = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    if trial.number:
        assert trial.study.best_value == min(t.value for t in trial.study.trials if t.value is not None)
        assert trial.study.trials[0].user_attrs["first"] is True
    else:
        trial.set_user_attr("first", True)
    return x
"""
    study = objective_study(tmp_path, code, trials=2)
    assert study_ended(launch_study(study, storage)).completed == 2
    study = objective_study(tmp_path, code, trials=4)
    # Another search reads the trials from the storage.
    assert study_ended(launch_study(study, storage, extend=True)).completed == 4


def test_an_attribute_is_stored_with_the_value_that_was_set(tmp_path: Path, storage: Storage) -> None:
    code = """
def objective(trial):
    before = [other.user_attrs["seen"] for other in trial.study.trials[:-1]]
    assert before == [[0]] * len(before)
    seen = [0]
    trial.set_user_attr("seen", seen)
    seen.append(1)
    return 1.0
"""
    launch_study(objective_study(tmp_path, code, trials=3), storage)
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
    launch_study(objective_study(tmp_path, code, trials=1), storage)
    (trial,) = stored_trials(storage)
    assert trial.intermediate_values == {step: trial.params["x"] + step for step in range(20)}


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "qmc"])
def test_samplers_propose_distinct_points_and_store_no_pickle(sampler: str, tmp_path: Path, storage: Storage) -> None:
    code = """
def objective(trial):
    x, y = trial.suggest_float("x", -5, 5), trial.suggest_float("y", -5, 5)
    return x**2 + y**2
"""
    study = objective_study(tmp_path, code, trials=13, sampler=sampler)
    assert study_ended(launch_study(study, storage)).completed == 13
    trials = stored_trials(storage)
    assert len({json.dumps(trial.params) for trial in trials}) == 13
    with storage.engine.connect() as connection:
        keys = set(connection.execute(SYSTEM_ATTRS.select().with_only_columns(SYSTEM_ATTRS.c.key)).scalars())
    assert keys == {"hpo:worker"}


def test_points_enqueued_with_optuna_are_tried_first(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, trials=1, pruner="none")
    launch_study(study, storage)
    optuna.load_study(study_name="own", storage=storage.location.full_url).enqueue_trial({"x": 0.5, "kind": "square"})
    launch_study(objective_study(tmp_path, trials=3, pruner="none"), storage, extend=True)
    assert stored_trials(storage)[1].params == {"x": 0.5, "kind": "square"}
    assert len(stored_trials(storage)) == 3


def test_changed_code_and_changed_study_files_are_refused(tmp_path: Path, storage: Storage) -> None:
    launch_study(objective_study(tmp_path, trials=1), storage)
    with pytest.raises(UsageError, match=r"search.trials: 1 -> 2.*--extend"):
        launch_study(objective_study(tmp_path, trials=2), storage)
    with pytest.raises(UsageError, match=r"search\.direction.*would not be comparable"):
        launch_study(objective_study(tmp_path, trials=1, direction="maximize"), storage, extend=True)
    with pytest.raises(CodeError, match=r"objective\.py in .* has changed since the study was created"):
        launch_study(objective_study(tmp_path, PLAIN + "# later\n", trials=1), storage)


def test_accepted_code_changes_are_stored_with_the_study(tmp_path: Path, storage: Storage) -> None:
    launch_study(objective_study(tmp_path, trials=1), storage)
    changed = objective_study(tmp_path, PLAIN + "# later\n", trials=2)
    launch_study(changed, storage, extend=True, changed_code=True)
    assert len(stored_trials(storage)) == 2
    change = load_study(storage, "own").user_attrs[CHANGES][-1]
    assert change["changed"] == ["search.trials: 1 -> 2", "objective.py: other contents"]
    launch_study(changed, storage)  # the changed code is the stored code now


def test_an_invalid_objective_is_refused_before_anything_is_stored(tmp_path: Path, storage: Storage) -> None:
    with pytest.raises(UsageError, match=r"own.toml: objective: must name a function of a trial \(got int\)"):
        launch_study(objective_study(tmp_path, "objective = 3\n"), storage)
    with pytest.raises(UsageError, match=r"objective.py:objective is a class; .* `objective = objective\(\)`"):
        launch_study(objective_study(tmp_path, "class objective:\n    def __call__(self, trial): ...\n"), storage)
    with pytest.raises(CodeError, match=r"objective.py has no 'objective' \(did you mean 'objectiv'\?\)"):
        launch_study(objective_study(tmp_path, "def objectiv(trial): ...\n"), storage)
    with pytest.raises(CodeError, match=r"objective\.py cannot be imported: ZeroDivisionError"):
        launch_study(objective_study(tmp_path, "1 / 0\n"), storage)
    assert storage.get_all_studies() == []


def test_two_searches_share_the_trials(tmp_path: Path, storage: Storage) -> None:
    study = objective_study(tmp_path, SLOW, trials=12, sampler="qmc")
    storages = storage, reconnect(storage)
    threads = [threading.Thread(target=launch_study, args=(study, each)) for each in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = stored_trials(storage)
    assert [trial.number for trial in trials] == list(range(12))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert len({trial.params["x"] for trial in trials}) == 12
    assert load_study(storage, "own").user_attrs["hpo:state"] == "ended"


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "qmc"])
def test_processes_that_start_together_propose_different_values(sampler: str) -> None:
    proposed = []
    for number in range(2):  # neither has the trial of the other
        study = optuna.create_study(sampler=objective_sampler(sampler, 0, number))
        proposed.append(study.ask().suggest_float("x", 0, 1))
    assert proposed[0] != proposed[1]


def reconnect(storage: Storage) -> Storage:
    return type(storage)(storage.location)
