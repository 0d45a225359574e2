"""Optuna's studies on hpo's storage: heartbeats, threads, copies, samplers, and the cache."""

from __future__ import annotations

import gc
import math
import pickle
import random
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from deadlines import deadline
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, fail_stale_trials
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_records import (
    COMPLETE,
    FAIL,
    LR,
    MAXIMIZE,
    MINIMIZE,
    PRUNED,
    RUNNING,
    WAITING,
    ids,
    row_counts,
    running,
    states,
    study_with_all_rows,
    texts,
)

from hpo.storage import Storage, TrialResult, load_study, open_storage

# --- Optuna's heartbeats ---


def age_heartbeats(storage: Storage, trial_ids: Sequence[int]) -> None:
    heartbeats = models.TrialHeartbeatModel.__table__
    with storage.engine.begin() as connection:
        now = connection.execute(sa.select(sa.func.now())).scalar_one().replace(tzinfo=None)
        old = sa.update(heartbeats).where(heartbeats.c.trial_id.in_(trial_ids))
        connection.execute(old.values(heartbeat=now.replace(year=now.year - 1, day=1)))


def test_heartbeats_are_recorded_and_grow_old(storage: Storage, study_id: int) -> None:
    assert storage.get_heartbeat_interval() is None
    assert storage.get_heartbeat_stale_trial_callback() is None
    assert not is_heartbeat_enabled(storage)
    silent, alive, done = (storage.create_new_trial(study_id) for _ in range(3))
    foreign = storage.create_new_trial(storage.create_new_study([MAXIMIZE], "mnist"))
    never = storage.create_new_trial(study_id)
    everyone = (silent, alive, done, foreign)
    for trial_id in everyone * 2:
        storage.record_heartbeat(trial_id)
    assert row_counts(storage)["trial_heartbeats"] == 4
    storage.heartbeat_interval = 60
    assert storage._get_stale_trial_ids(study_id) == []
    age_heartbeats(storage, everyone)
    storage.record_heartbeat(alive)
    storage.set_trial_state_values(done, FAIL)
    assert storage._get_stale_trial_ids(study_id) == [silent]
    assert storage.get_trial(never).state == RUNNING


def test_plain_optuna_fails_and_retries_a_trial_of_hpo_without_heartbeat(
    storage: Storage, other: Storage, study_id: int
) -> None:
    silent, alive = ids(storage.create_trials(study_id, [running(1e-4), running()]))
    for trial_id in (silent, alive):
        storage.record_heartbeat(trial_id)
    age_heartbeats(storage, [silent])
    with pytest.warns(ExperimentalWarning, match="RetryHeartbeatStaleTrialCallback"):
        repeat = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=1)
    other.heartbeat_interval, other.grace_period, other.heartbeat_stale_trial_callback = 60, 120, repeat
    study = load_study(other, "digits")
    assert states(study.trials) == [RUNNING, RUNNING]
    with pytest.warns(ExperimentalWarning, match="fail_stale_trials"):
        fail_stale_trials(study)
    assert states(study.trials) == [FAIL, RUNNING, WAITING]
    assert study.trials[2].params == {"lr": 1e-4}
    assert study.trials[2].system_attrs["retry_history"] == [0]
    assert storage.report(1, {silent: 0.5, alive: 0.5}) == {silent}
    assert storage.finish([TrialResult(silent, COMPLETE, (1.0,)), TrialResult(alive, COMPLETE, (0.5,))]) == {silent}
    assert states(study.trials) == [FAIL, COMPLETE, WAITING]


def test_a_requeued_and_claimed_trial_has_a_new_heartbeat(storage: Storage, other: Storage, study_id: int) -> None:
    (trial_id,) = ids(storage.create_trials(study_id, [running()]))
    storage.record_heartbeat(trial_id)
    age_heartbeats(storage, [trial_id])
    storage.requeue([trial_id])
    assert len(other.claim([trial_id], 1)) == 1
    other.heartbeat_interval = 60
    assert other._get_stale_trial_ids(study_id) == []


def test_optimize_with_heartbeats(storage: Storage, study_id: int) -> None:
    storage.heartbeat_interval = 60
    study = load_study(storage, "digits")
    beating: list[int] = []

    def objective(trial: optuna.Trial) -> float:
        beating.append(trial.number)
        return trial.suggest_float("lr", 0, 1)

    study.optimize(objective, n_trials=2)
    assert beating == [0, 1]
    assert row_counts(storage)["trial_heartbeats"] == 2


# --- Whole studies ---


def test_threads_that_optimize_share_the_work(storage: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    study.sampler = optuna.samplers.RandomSampler(seed=0)

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("lr", 1e-6, 1e-2, log=True)
        for step in range(3):
            trial.report(value * step, step)
        trial.set_user_attr("twice", 2 * value)
        if trial.number % 5 == 4:
            raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=20, n_jobs=4)
    trials = storage.get_all_trials(study_id)
    assert [trial.number for trial in trials] == list(range(20))
    assert texts(study.trials) == texts(trials)
    for trial in trials:
        assert trial.state == (PRUNED if trial.number % 5 == 4 else COMPLETE)
        assert trial.user_attrs == {"twice": 2 * trial.params["lr"]}
        assert trial.intermediate_values == {step: trial.params["lr"] * step for step in range(3)}


def test_threads_ask_tell_and_add_trials_to_one_study(storage: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    barrier = threading.Barrier(4)

    def work(thread: int) -> list[int]:
        barrier.wait(deadline())
        told = []
        for k in range(4):
            study.add_trial(create_trial(value=10.0 * thread + k, user_attrs={"added": True}))
            trial = study.ask({"lr": LR})
            trial.set_user_attr("thread", thread)
            study.tell(trial, trial.params["lr"])
            told.append(trial.number)
            created = storage.create_trials(study_id, [running(), running()])
            storage.finish([TrialResult(trial_id, COMPLETE, (0.5,)) for trial_id in ids(created)])
            assert study.trials[trial.number].state == COMPLETE
        storage.remove_session()
        return told

    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(work, range(4)))
    trials = study.trials
    assert states(trials) == [COMPLETE] * 64
    assert [trial.number for trial in trials] == list(range(64))
    assert sum("added" in trial.user_attrs for trial in trials) == 16
    for thread, numbers in enumerate(told):
        assert [trial.number for trial in trials if trial.user_attrs.get("thread") == thread] == numbers
    assert study.best_value == 33.0
    assert texts(trials) == texts(storage.get_all_trials(study_id))


def test_each_queued_trial_is_evaluated_once_by_one_thread(storage: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    for k in range(1, 5):
        study.enqueue_trial({"lr": k * 1e-3}, user_attrs={"k": k})
    study.enqueue_trial({"lr": 1e-3}, skip_if_exists=True)
    storage.create_trials(study_id, [running(k * 1e-3, state=WAITING, user_attrs={"k": k}) for k in range(5, 9)])
    assert states(study.trials) == [WAITING] * 8
    seen = []

    def objective(trial: optuna.Trial) -> float:
        seen.append((trial.number, trial.user_attrs["k"]))
        return trial.suggest_float("lr", 1e-6, 1e-2, log=True)

    study.optimize(objective, n_trials=8)
    assert seen == [(k, k + 1) for k in range(8)]
    assert [trial.value for trial in study.trials] == [(k + 1) * 1e-3 for k in range(8)]
    assert states(study.trials) == [COMPLETE] * 8


def test_tell_by_number_and_only_once(storage: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    storage.create_trials(study_id, [running(), running(state=WAITING)])
    study.tell(0, 0.5)
    study.tell(0, skip_if_finished=True)
    with pytest.raises(ValueError, match="Cannot tell a COMPLETE trial"):
        study.tell(0, 0.6)
    with pytest.raises(ValueError, match="Cannot tell a WAITING trial"):
        study.tell(1, 0.6)
    with pytest.raises(ValueError, match="has not been created"):
        study.tell(2, 0.6)
    assert (study.best_value, states(study.trials)) == (0.5, [COMPLETE, WAITING])


@pytest.mark.parametrize("to", ["same", "memory", "other"])
def test_a_study_is_copied_whole(storage: Storage, tmp_path: Any, to: str) -> None:
    study_id = study_with_all_rows(storage, "digits")
    storage.create_trials(study_id, [running(state=WAITING), create_trial(state=FAIL), create_trial(value=math.inf)])
    target: BaseStorage = {
        "same": lambda: storage,
        "memory": InMemoryStorage,
        "other": lambda: open_storage(f"sqlite:///{tmp_path}/other.db"),
    }[to]()
    optuna.copy_study(
        from_study_name="digits",
        from_storage=storage,
        to_storage=target,
        to_study_name="copy" if to == "same" else None,
    )
    if to == "same":
        with pytest.raises(DuplicatedStudyError):
            optuna.copy_study(from_study_name="digits", from_storage=storage, to_storage=storage)
    copied = optuna.load_study(study_name="copy" if to == "same" else None, storage=target)
    original = load_study(storage, "digits")
    assert copied.direction == original.direction
    assert copied.user_attrs == original.user_attrs
    assert copied._storage.get_study_system_attrs(copied._study_id) == {"x:y": 1}
    assert texts(with_no_id(copied.trials)) == texts(with_no_id(original.trials))
    if to == "other":
        target.close()


def with_no_id(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    for trial in trials:
        trial._trial_id = -1
    return list(trials)


def test_summaries_names_and_deletion_by_name(storage: Storage) -> None:
    study_with_all_rows(storage, "digits")
    storage.create_new_study([MINIMIZE, MAXIMIZE], "two")
    storage.create_study("empty", [MINIMIZE], {})
    digits, two, empty = optuna.get_all_study_summaries(storage)
    assert (digits.study_name, digits.direction, digits.n_trials) == ("digits", MAXIMIZE, 2)
    assert digits.best_trial == load_study(storage, "digits").best_trial
    assert digits.datetime_start == storage.get_all_trials(digits._study_id)[0].datetime_start
    assert digits.user_attrs == {"hpo:study": "{}"}
    assert (two.directions, two.n_trials, two.best_trial) == ([MINIMIZE, MAXIMIZE], 0, None)
    assert (empty.direction, empty.n_trials, empty.datetime_start) == (MINIMIZE, 0, None)
    assert optuna.get_all_study_names(storage) == ["digits", "two", "empty"]
    optuna.delete_study(study_name="two", storage=storage)
    with pytest.raises(KeyError):
        optuna.delete_study(study_name="two", storage=storage)
    assert optuna.get_all_study_names(storage) == ["digits", "empty"]
    again = optuna.create_study(storage=storage, study_name="digits", direction="maximize", load_if_exists=True)
    assert len(again.trials) == 2
    with pytest.raises(DuplicatedStudyError):
        optuna.create_study(storage=storage, study_name="digits")


def objective(trial: optuna.Trial) -> float | tuple[float, float]:
    k = trial.suggest_int("k", 1, 9, step=2)
    c = trial.suggest_categorical("c", ["a", "b", None])
    x = trial.suggest_float("x", -1, 1)
    y = trial.suggest_float("y", 1e-3, 1e1, log=True)
    if len(trial.study.directions) == 2:
        return x**2 + k, abs(y - 1)
    for step in range(1, 4):
        trial.report(x**2 + y / step + k, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x**2 + y + k + (c is None)


GRID = {"x": [-1.0, 0.5], "y": [0.1, 1.0], "k": [1, 3], "c": ["a", None]}
SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "tpe": lambda: optuna.samplers.TPESampler(seed=1, n_startup_trials=4),
    "cmaes": lambda: optuna.samplers.CmaEsSampler(seed=1, n_startup_trials=2, warn_independent_sampling=False),
    "qmc": lambda: optuna.samplers.QMCSampler(seed=1, warn_independent_sampling=False),
    "grid": lambda: optuna.samplers.GridSampler(GRID, seed=1),
    "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=1, population_size=3),
}


# QMCSampler and HyperbandPruner are experimental.
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_and_pruners_do_as_in_memory(file_storage: Storage) -> None:
    memory = InMemoryStorage()
    memory.create_new_trial(memory.create_new_study([MINIMIZE]))  # its ids start at 0, and some attributes contain ids
    for name, sampler in SAMPLERS.items():
        histories = []
        for kept in (memory, file_storage):
            study = optuna.create_study(
                storage=kept,
                study_name=name,
                directions=[MINIMIZE] * (2 if name == "nsga2" else 1),
                sampler=sampler(),
                pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=3, reduction_factor=3),
            )
            study.optimize(objective, n_trials=8)
            attrs = study._storage.get_study_system_attrs(study._study_id)
            histories.append((attrs, [timeless(trial) for trial in study.trials]))
        assert histories[0] == histories[1]


def timeless(trial: FrozenTrial) -> dict[str, Any]:
    return {name: value for name, value in vars(trial).items() if "datetime" not in name}


def test_a_study_is_pickled_with_its_storage(storage: Storage, study_id: int) -> None:
    storage.create_trials(study_id, [create_trial(value=0.5), running()])
    study = load_study(storage, "digits")
    before = texts(study.trials)
    restored = pickle.loads(pickle.dumps(study))
    assert texts(restored.trials) == before
    restored.tell(1, 0.75)
    assert study.best_value == restored.best_value == 0.75
    restored._storage._backend.close()


def test_a_storage_is_used_on_after_its_sessions_are_removed(storage: Storage, study_id: int) -> None:
    def work(_: int) -> int:
        storage.remove_session()
        trial_id = storage.create_new_trial(study_id)
        storage.remove_session()
        storage.set_trial_user_attr(trial_id, "k", 1)
        storage.remove_session()
        storage.remove_session()
        return storage.get_trial(trial_id).number

    with ThreadPoolExecutor(3) as pool:
        assert sorted(pool.map(work, range(9))) == list(range(9))
    assert [trial.user_attrs for trial in storage.get_all_trials(study_id)] == [{"k": 1}] * 9


@pytest.mark.filterwarnings("ignore:.*while still open:ResourceWarning")
def test_an_unreferenced_storage_is_garbage_collected(url: str) -> None:
    storage = open_storage(url)
    assert storage.get_all_studies() == []
    engine = weakref.ref(storage.engine)
    del storage
    gc.collect()
    left = engine()
    if left is not None:
        left.dispose()
    assert left is None


# --- Optuna's cache and writes that bypass it ---


def test_a_study_follows_a_trial_from_process_to_process(storage: Storage, other: Storage, study_id: int) -> None:
    study = load_study(storage, "digits")
    late, trial_id = ids(storage.create_trials(study_id, [running(), running()]))

    def seen() -> tuple[TrialState, dict[int, float]]:
        trial = study.trials[1]
        assert study._storage.get_trial(trial_id) == trial == storage.get_trial(trial_id)
        assert trial in study.get_trials(states=[trial.state])
        assert study._storage.get_n_trials(study_id, trial.state) >= 1
        return trial.state, trial.intermediate_values

    storage.report(1, {trial_id: 0.25})
    assert seen() == (RUNNING, {1: 0.25})
    storage.requeue([trial_id])
    assert seen() == (WAITING, {})
    assert ids(other.claim([trial_id], 1)) == [trial_id]
    assert seen() == (RUNNING, {})
    other.report(2, {trial_id: 0.5})
    assert seen() == (RUNNING, {2: 0.5})
    # A later trial that ended earlier does not hide this one.
    other.finish([TrialResult(i, COMPLETE, (0.1,)) for i in ids(other.create_trials(study_id, [running()]))])
    assert seen() == (RUNNING, {2: 0.5})
    assert storage.finish([TrialResult(trial_id, FAIL)]) == {trial_id}
    assert seen() == (RUNNING, {2: 0.5})
    other.finish([TrialResult(trial_id, COMPLETE, (0.5,), {"seed": 1}, {"x:y": 2})])
    assert seen() == (COMPLETE, {2: 0.5})
    assert study.best_trial == study.trials[1]
    assert study.best_trial.user_attrs == {"seed": 1}
    storage.requeue([late])
    asked = study.ask()
    assert (asked.number, asked.params) == (0, {"lr": 1e-3})
    study.tell(asked, 0.75)
    assert study.best_trial.number == 0


OPERATIONS = ["create", "queue", "add", "claim", "report", "finish", "requeue"] * 2 + [
    "ask",
    "tell",
    "enqueue",
    "look",
    "plain",
]


@pytest.fixture
def processes(storage: Storage, other: Storage) -> list[Storage]:
    """Return one storage as opened by two processes, for studies of any name."""
    return [storage, other]


def test_a_study_always_shows_what_is_stored(processes: list[Storage], times: int) -> None:
    """Two processes call anything in any order: existing studies show the same as one loaded now."""

    @settings(max_examples=5 * times)
    @given(seed=st.integers(0, 2**32 - 1), operations=st.lists(st.sampled_from(OPERATIONS), min_size=1, max_size=20))
    def shown(seed: int, operations: list[str]) -> None:
        rng = random.Random(seed)
        study_id = processes[0].create_new_study([MAXIMIZE])
        # The first reads after every operation, the second sometimes, the third at the end.
        name = processes[0].get_study_name_from_id(study_id)
        watchers = [load_study(processes[k % 2], name) for k in range(3)]
        for study in watchers:
            study.sampler = optuna.samplers.RandomSampler(seed=0)
        for operation in operations:
            some = [t for t in ids(processes[0].get_all_trials(study_id, deepcopy=False)) if rng.random() < 0.6]
            act(operation, rng.choice(processes), rng.choice(watchers[:2]), study_id, some)
            look_at(watchers[: 2 if operation == "look" else 1], processes[0], study_id)
        look_at(watchers, processes[0], study_id)

    shown()


def act(operation: str, storage: Storage, study: optuna.Study, study_id: int, some: list[int]) -> None:
    """Run one operation on trials, whether or not their state allows it."""
    running_ones = [i for i in some if storage.get_trial(i).state == RUNNING]
    match operation:
        case "create":
            storage.create_trials(study_id, [running(), running()])
        case "queue":
            storage.create_trials(study_id, [running(state=WAITING)])
        case "add":
            study.add_trials([create_trial(value=1.5), create_trial(state=FAIL)])
        case "claim":
            storage.claim(some, 2)
        case "report":
            storage.report(1, dict.fromkeys(some, float(len(some))))
        case "finish":
            endings = [(COMPLETE, (0.5,)), (PRUNED, (math.inf,)), (FAIL, ())]
            storage.finish([TrialResult(i, *endings[i % 3], {"seed": i}) for i in some])
        case "requeue":
            storage.requeue(some)
        case "ask":
            study.ask({"lr": LR})
        case "tell":
            for i in running_ones[:1]:
                study.tell(storage.get_trial(i).number, 2.5)
        case "enqueue":
            study.enqueue_trial({"lr": 1e-4})
        case "plain":
            for i in running_ones:
                storage.set_trial_intermediate_value(i, 2, -math.inf)
                storage.set_trial_user_attr(i, "k", 1)


def look_at(watchers: Sequence[optuna.Study], storage: Storage, study_id: int) -> None:
    stored = storage.get_all_trials(study_id)
    assert [trial.number for trial in stored] == list(range(len(stored)))
    for study in watchers:
        assert texts(study.trials) == texts(stored)
        assert texts([study._storage.get_trial(i) for i in ids(stored)]) == texts(stored)
        complete = [trial for trial in stored if trial.state == COMPLETE]
        assert texts(study.get_trials(states=[COMPLETE])) == texts(complete)
        if complete:
            assert study.best_value == max(trial.value for trial in complete)
