"""Optuna's contract for storages: Optuna's own test cases, and further promises of its documentation.

The classes run the cases that Optuna ships for its own storages, all of them: none had to be left out. The functions
are about what those cases leave open: threads, other processes' storages, who owns what was read, and what is deleted.
"""

from __future__ import annotations

import copy as copying
import gc
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from blank_storages import Blank
from deadlines import deadline
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, _CachedStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState, create_trial
from optuna_records import (
    COMPLETE,
    FAIL,
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

# How long the test checks that a thread waits for another.
WATCHED_S = 0.5
REUSED = "SQLite gives the id of a deleted row to the next one, in plain Optuna's storage too"


@pytest.fixture(scope="module")
def emptied(blank: Blank) -> Iterator[Storage]:
    """One storage for Optuna's many short cases, emptied before each."""
    with blank() as url:
        storage = open_storage(url)
        yield storage
        storage.close()


class OptunaCases(StorageTestCase):
    @pytest.fixture
    def storage(self, emptied: Storage) -> Iterator[BaseStorage]:
        yield emptied
        with emptied.engine.begin() as connection:
            for table in reversed(models.BaseModel.metadata.sorted_tables):
                if table.name != "version_info":
                    connection.execute(sa.delete(table))

    @pytest.mark.slow
    def test_get_all_studies(self, storage: BaseStorage) -> None:
        super().test_get_all_studies(storage)  # thousands of statements

    @pytest.mark.filterwarnings("ignore:.*while still open:ResourceWarning")
    def test_pickle_storage(self, storage: BaseStorage) -> None:
        super().test_pickle_storage(storage)
        gc.collect()  # the case does not close its copy of the storage


class TestStorage(OptunaCases):
    """The storage itself."""


@pytest.mark.slow
class TestCachedStorage(OptunaCases):
    """The storage behind the cache that Optuna uses in every study."""

    @pytest.fixture
    def storage(self, storage: Storage) -> _CachedStorage:
        return _CachedStorage(storage)


# --- Unknown ids, taken names, finished trials ---

OF_A_STUDY: dict[str, Callable[[BaseStorage, int], object]] = {
    "delete_study": lambda s, i: s.delete_study(i),
    "set_study_user_attr": lambda s, i: s.set_study_user_attr(i, "k", 1),
    "set_study_system_attr": lambda s, i: s.set_study_system_attr(i, "k", 1),
    "get_study_name_from_id": lambda s, i: s.get_study_name_from_id(i),
    "get_study_directions": lambda s, i: s.get_study_directions(i),
    "get_study_user_attrs": lambda s, i: s.get_study_user_attrs(i),
    "get_study_system_attrs": lambda s, i: s.get_study_system_attrs(i),
    "create_new_trial": lambda s, i: s.create_new_trial(i),
    "create_new_trial_from_a_template": lambda s, i: s.create_new_trial(i, running()),
    "get_trial_id_from_study_id_trial_number": lambda s, i: s.get_trial_id_from_study_id_trial_number(i, 0),
    "get_all_trials": lambda s, i: s.get_all_trials(i),
    "get_all_trials_in_states": lambda s, i: s.get_all_trials(i, deepcopy=False, states=[COMPLETE]),
    "get_n_trials": lambda s, i: s.get_n_trials(i),
    "get_n_trials_in_states": lambda s, i: s.get_n_trials(i, (COMPLETE, FAIL)),
    "get_best_trial": lambda s, i: s.get_best_trial(i),
}
CHANGES: dict[str, Callable[[BaseStorage, int], object]] = {
    "set_trial_param": lambda s, i: s.set_trial_param(i, "units", 1.0, IntDistribution(1, 9)),
    "set_trial_state_values": lambda s, i: s.set_trial_state_values(i, COMPLETE, [9.0]),
    "set_trial_state_values_running": lambda s, i: s.set_trial_state_values(i, RUNNING),
    "set_trial_state_values_waiting": lambda s, i: s.set_trial_state_values(i, WAITING),
    "set_trial_intermediate_value": lambda s, i: s.set_trial_intermediate_value(i, 9, 9.0),
    "set_trial_user_attr": lambda s, i: s.set_trial_user_attr(i, "k", 9),
    "set_trial_system_attr": lambda s, i: s.set_trial_system_attr(i, "k", 9),
}
OF_A_TRIAL: dict[str, Callable[[BaseStorage, int], object]] = CHANGES | {
    "get_trial": lambda s, i: s.get_trial(i),
    "get_trial_number_from_id": lambda s, i: s.get_trial_number_from_id(i),
    "get_trial_param": lambda s, i: s.get_trial_param(i, "lr"),
    "get_trial_params": lambda s, i: s.get_trial_params(i),
    "get_trial_user_attrs": lambda s, i: s.get_trial_user_attrs(i),
    "get_trial_system_attrs": lambda s, i: s.get_trial_system_attrs(i),
}


@pytest.mark.parametrize("cached", [False, True], ids=["storage", "cached"])
def test_an_unknown_id_is_a_key_error_and_changes_nothing(storage: Storage, study_id: int, cached: bool) -> None:
    (trial_id,) = ids(storage.create_trials(study_id, [running()]))
    before = row_counts(storage), texts(storage.get_all_trials(study_id))
    asked = _CachedStorage(storage) if cached else storage
    for unknown in (study_id + 1, 0, -1):
        for name, call in OF_A_STUDY.items():
            with pytest.raises(KeyError):
                pytest.fail(f"{name}({unknown}): {call(asked, unknown)!r}")
    for unknown in (trial_id + 1, 0, -1):
        for name, call in OF_A_TRIAL.items():
            with pytest.raises(KeyError):
                pytest.fail(f"{name}({unknown}): {call(asked, unknown)!r}")
    for number in (1, -1):
        with pytest.raises(KeyError):
            asked.get_trial_id_from_study_id_trial_number(study_id, number)
    with pytest.raises(KeyError):
        asked.get_study_id_from_name("mnist")
    with pytest.raises(KeyError):
        asked.get_trial_param(trial_id, "momentum")
    assert (row_counts(storage), texts(storage.get_all_trials(study_id))) == before


@pytest.mark.parametrize("make", ["create_new_study", "create_study"])
def test_of_threads_that_create_a_study_one_gets_the_name(storage: Storage, make: str) -> None:
    threads = 4
    barrier = threading.Barrier(threads)

    def study(_: int) -> int | None:
        barrier.wait(deadline())
        try:
            if make == "create_study":
                return storage.create_study("digits", [MAXIMIZE], {"x": 1})
            return storage.create_new_study([MAXIMIZE], "digits")
        except DuplicatedStudyError:
            return None
        finally:
            storage.remove_session()

    with ThreadPoolExecutor(threads) as pool:
        (made,) = [study_id for study_id in pool.map(study, range(threads)) if study_id is not None]
    (found,) = storage.get_all_studies()
    assert (found._study_id, found.study_name, found.directions) == (made, "digits", [MAXIMIZE])
    with pytest.raises(DuplicatedStudyError):
        storage.create_new_study([MINIMIZE], "digits")
    assert storage.get_study_directions(made) == [MAXIMIZE]


@pytest.mark.parametrize("state", [COMPLETE, PRUNED, FAIL])
def test_a_finished_trial_cannot_change(storage: Storage, study_id: int, state: TrialState) -> None:
    by_us, by_optuna = ids(storage.create_trials(study_id, [running(), running()]))
    value = None if state == FAIL else 0.5
    storage.report(1, {by_us: 0.5, by_optuna: 0.5})
    storage.finish([TrialResult(by_us, state, () if value is None else (value,))])
    storage.set_trial_state_values(by_optuna, state, None if value is None else [value])
    added = storage.create_new_trial(study_id, running(state=state, value=value))
    before = texts(storage.get_all_trials(study_id))
    for asked in (storage, _CachedStorage(storage)):
        asked.get_all_trials(study_id)
        for trial_id in (by_us, by_optuna, added):
            for name, call in CHANGES.items():
                with pytest.raises(UpdateFinishedTrialError):
                    pytest.fail(f"{name}: {call(asked, trial_id)!r}")
    assert storage.report(2, {by_us: 0.1, by_optuna: 0.1, added: 0.1}) == {by_us, by_optuna, added}
    assert storage.finish([TrialResult(by_optuna, FAIL)]) == {by_optuna}
    assert storage.requeue([by_us, by_optuna, added]) == {by_us, by_optuna, added}
    assert texts(storage.get_all_trials(study_id)) == before


def test_a_claim_returns_whether_it_succeeded(storage: Storage, study_id: int) -> None:
    queued, trained = ids(storage.create_trials(study_id, [running(state=WAITING), running()]))
    started = storage.get_trial(trained).datetime_start
    assert storage.set_trial_state_values(queued, RUNNING)
    assert not storage.set_trial_state_values(queued, RUNNING)
    assert not storage.set_trial_state_values(trained, RUNNING)
    assert storage.get_trial(queued).datetime_start is not None
    assert storage.get_trial(trained).datetime_start == started
    # A trial that Optuna claimed cannot be finished by hpo.
    assert storage.finish([TrialResult(queued, FAIL)]) == {queued}
    assert storage.set_trial_state_values(queued, COMPLETE, [0.5])
    assert storage.set_trial_state_values(trained, RUNNING, [0.1]) is False
    assert storage.set_trial_state_values(trained, COMPLETE, [0.9])
    assert [trial.value for trial in storage.get_all_trials(study_id)] == [0.5, 0.9]


@contextmanager
def held_before(storage: Storage, beginning: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Stop the first thread before it sends such a statement. The events: it has stopped; it may continue."""
    there, go = threading.Event(), threading.Event()

    def stop(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(beginning) and not there.is_set():
            there.set()
            assert go.wait(deadline())

    sa.event.listen(storage.engine, "before_cursor_execute", stop)
    try:
        yield there, go
    finally:
        go.set()
        sa.event.remove(storage.engine, "before_cursor_execute", stop)


def together(storage: Storage, other: Storage, beginning: str, call: Callable[[Storage], Any]) -> tuple[Any, Any]:
    """Run the call in one process, stopped before a statement, and meanwhile in another."""

    def run(one: Storage) -> Any:
        try:
            return call(one)
        except UpdateFinishedTrialError:
            return False
        finally:
            one.remove_session()

    with held_before(storage, beginning) as (there, go), ThreadPoolExecutor(2) as pool:
        first: Future[Any] = pool.submit(run, storage)
        assert there.wait(deadline())
        began = threading.Event()
        sa.event.listen(other.engine, "before_cursor_execute", lambda *_: began.set())
        second: Future[Any] = pool.submit(run, other)
        assert began.wait(deadline())
        with suppress(FutureTimeoutError):
            second.result(WATCHED_S)
        go.set()
        return first.result(deadline()), second.result(deadline())


def test_a_waiting_trial_is_claimed_by_one_of_two_processes(storage: Storage, other: Storage, study_id: int) -> None:
    (queued,) = ids(storage.create_trials(study_id, [running(state=WAITING)]))
    assert sorted(together(storage, other, "UPDATE trials", lambda s: s.set_trial_state_values(queued, RUNNING))) == [
        False,
        True,
    ]


def test_a_trial_is_not_claimed_both_by_hpo_and_plain_optuna(storage: Storage, other: Storage, study_id: int) -> None:
    (queued,) = ids(storage.create_trials(study_id, [running(state=WAITING)]))

    def take(one: Storage) -> bool:
        if one is other:
            return bool(one.claim([queued], 1))
        return one.set_trial_state_values(queued, RUNNING)

    assert sorted(together(storage, other, "UPDATE trials", take)) == [False, True]


def test_a_trial_is_finished_by_one_of_two_processes(storage: Storage, other: Storage, study_id: int) -> None:
    (trained,) = ids(storage.create_trials(study_id, [running()]))

    def finish(one: Storage) -> bool:
        if one is storage:
            return one.set_trial_state_values(trained, FAIL)
        return one.set_trial_state_values(trained, COMPLETE, [0.75])

    won = together(storage, other, "UPDATE trials", finish)
    assert sorted(won) == [False, True]
    trial = storage.get_trial(trained)
    assert (trial.state, trial.value) == ((FAIL, None) if won[0] else (COMPLETE, 0.75))


def test_trials_become_visible_in_the_order_of_their_ids(storage: Storage, other: Storage, study_id: int) -> None:
    # A cache that has read up to an id never reads smaller ones again.
    study = load_study(other, "digits")
    seen = []

    def create(one: Storage) -> list[int]:
        if one is other:
            seen.append(len(study.trials))
            created = ids(one.create_trials(study_id, [create_trial(value=2.0), running()]))
            seen.append(len(study.trials))
            return created
        return [one.create_new_trial(study_id, running(user_attrs={"slow": True}))]

    (first, second) = together(storage, other, "INSERT INTO trial_user_attributes", create)
    assert first == [min(first + second)]
    assert seen in ([0, 3], [1, 3])  # the first, if this thread was late
    assert ids(study.trials) == first + second
    assert [trial.number for trial in study.trials] == [0, 1, 2]


# --- Trials that were read do not change ---


def test_trials_that_were_read_do_not_change_with_later_writes(storage: Storage, study_id: int) -> None:
    (first, second) = ids(storage.create_trials(study_id, [running(user_attrs={"tags": ["a"]}), running()]))
    study = load_study(storage, "digits")
    cached = study._storage
    cached.get_all_trials(study_id)
    read = [
        *(storage.get_all_trials(study_id, deepcopy=deep) for deep in (True, False)),
        *(cached.get_all_trials(study_id, deepcopy=deep) for deep in (True, False)),
        [storage.get_trial(first), cached.get_trial(first)],
        storage.get_all_trials(study_id, states=(RUNNING,)),
    ]
    copies = copying.deepcopy(read)
    attrs = storage.get_study_user_attrs(study_id)
    storage.report(1, {first: 0.5, second: math.nan})
    storage.set_trial_user_attr(first, "tags", ["b"])
    storage.set_trial_param(first, "units", 1.0, IntDistribution(1, 9))
    storage.set_study_user_attr(study_id, "x", 1)
    storage.requeue([second])
    storage.finish([TrialResult(first, COMPLETE, (0.5,), {"seed": 1}, {"x:y": 1})])
    cached.get_all_trials(study_id)
    storage.delete_study(study_id)
    assert read == copies
    assert attrs == {}


def test_changes_of_copies_do_not_affect_the_storage(storage: Storage, study_id: int) -> None:
    choices = CategoricalDistribution(("relu", "tanh"))
    template = create_trial(
        value=0.5,
        params={"activation": "relu"},
        distributions={"activation": choices},
        user_attrs={"tags": ["a"]},
        system_attrs={"x:y": {"z": [1]}},
        intermediate_values={1: 0.5},
    )
    storage.create_trials(study_id, [template])
    study = load_study(storage, "digits")
    before = texts(study.trials)
    for trial in (*study.trials, *storage.get_all_trials(study_id), study.best_trial):
        trial.user_attrs["tags"].append("b")
        trial.system_attrs["x:y"]["z"] = 2
        trial.distributions["activation"].choices = ("gelu",)
        trial.params.clear()
        trial.intermediate_values[2] = 0.6
        trial.values = [0.7]
    assert texts(study.trials) == texts(storage.get_all_trials(study_id)) == before


def test_a_created_trial_shares_no_mutable_state_with_its_template(storage: Storage, study_id: int) -> None:
    template = create_trial(value=0.5, user_attrs={"tags": ["a"]}, system_attrs={"x:y": {"z": [1]}})
    first, second = storage.create_trials(study_id, [template, template])
    before = texts([template, second])
    first.user_attrs["tags"].append("b")
    first.system_attrs["x:y"]["z"].append(2)
    first.values[0] = 0.7
    assert texts([template, second]) == before


def test_trials_are_read_by_id_and_by_state(storage: Storage, study_id: int) -> None:
    foreign = storage.create_new_study([MINIMIZE], "mnist")
    made = []
    for state in (WAITING, COMPLETE, RUNNING, FAIL, PRUNED, COMPLETE, WAITING):
        value = {"value": 0.5} if state == COMPLETE else {}
        storage.create_new_trial(foreign, running(state=state, **value))
        made += ids(storage.create_trials(study_id, [running(state=state, **value)]))
    cached = load_study(storage, "digits")._storage
    for asked in (storage, cached):
        assert ids(asked.get_all_trials(study_id)) == made
        for wanted in ([COMPLETE], (WAITING, RUNNING), {FAIL, PRUNED}, frozenset(TrialState), [], Only(FAIL)):
            found = asked.get_all_trials(study_id, deepcopy=False, states=wanted)
            assert all(state in wanted for state in states(found))
            assert ids(found) == sorted(ids(found))
            assert len(found) == sum(trial.state in wanted for trial in storage.get_all_trials(study_id))
        assert asked.get_n_trials(study_id) == 7
        assert asked.get_n_trials(study_id, COMPLETE) == 2
        assert asked.get_n_trials(study_id, (WAITING, FAIL)) == 3
        assert asked.get_n_trials(study_id, ()) == 0
        assert [asked.get_trial_id_from_study_id_trial_number(study_id, number) for number in range(7)] == made
        assert [asked.get_trial_number_from_id(trial_id) for trial_id in made] == list(range(7))


class Only:
    """A container with no more than the contract requires: no length and no order."""

    def __init__(self, member: TrialState) -> None:
        self.member = member

    def __contains__(self, state: object) -> bool:
        return state == self.member


@pytest.mark.parametrize(("direction", "best"), [(MAXIMIZE, 3), (MINIMIZE, 2)])
def test_the_best_trial_is_a_complete_one(storage: Storage, direction: StudyDirection, best: int) -> None:
    study_id = storage.create_new_study([direction], "digits")
    cached = load_study(storage, "digits")._storage
    trial_ids = ids(storage.create_trials(study_id, [running() for _ in range(7)]))
    for asked in (storage, cached):
        with pytest.raises(ValueError, match=r"."):
            asked.get_best_trial(study_id)
    values = [(COMPLETE, 0.5), (PRUNED, math.inf), (COMPLETE, 0.25), (COMPLETE, 0.75), (PRUNED, -1.0), (FAIL, 2.0)]
    storage.finish([TrialResult(i, state, (value,)) for i, (state, value) in zip(trial_ids, values, strict=False)])
    storage.report(1, {trial_ids[6]: 9.0})
    for asked in (storage, cached):
        assert asked.get_best_trial(study_id) == storage.get_trial(trial_ids[best])
    storage.finish([TrialResult(trial_ids[6], COMPLETE, (math.inf if direction == MAXIMIZE else -math.inf,))])
    for asked in (storage, cached):
        assert asked.get_best_trial(study_id)._trial_id == trial_ids[6]


# --- Deleted studies ---


def test_a_deleted_study_leaves_nothing_and_deletes_nothing_else(storage: Storage) -> None:
    kept = study_with_all_rows(storage, "kept")
    before, counts = texts(storage.get_all_trials(kept)), row_counts(storage)
    assert set(counts) == {table.name for table in models.BaseModel.metadata.sorted_tables}
    gone = study_with_all_rows(storage, "gone")
    trial_ids = ids(storage.get_all_trials(gone))
    cached = load_study(storage, "gone")._storage
    cached.get_all_trials(gone)
    cached.delete_study(gone)
    assert row_counts(storage) == counts
    assert texts(storage.get_all_trials(kept)) == before
    assert storage.get_study_user_attrs(kept) == {"hpo:study": "{}"}
    for asked in (storage, cached):
        for name, call in OF_A_STUDY.items():
            with pytest.raises(KeyError):
                pytest.fail(f"{name}: {call(asked, gone)!r}")
        for name, call in OF_A_TRIAL.items():
            with pytest.raises(KeyError):
                pytest.fail(f"{name}: {call(asked, trial_ids[0])!r}")
        with pytest.raises(KeyError):
            asked.get_study_id_from_name("gone")
    assert storage.report(2, dict.fromkeys(trial_ids, 0.5)) == set(trial_ids)
    assert storage.finish([TrialResult(trial_id, FAIL) for trial_id in trial_ids]) == set(trial_ids)
    assert row_counts(storage) == counts
    storage.create_study("gone", [MAXIMIZE], {})


@pytest.fixture
def without_reused_ids(request: pytest.FixtureRequest, storage: Storage) -> None:
    if storage.engine.dialect.name == "sqlite":
        request.applymarker(pytest.mark.xfail(reason=REUSED))


@pytest.mark.usefixtures("without_reused_ids")
def test_ids_of_deleted_studies_and_trials_are_not_reused(storage: Storage) -> None:
    studies, trials = set(), []
    for _ in range(3):
        study_id = storage.create_new_study([MAXIMIZE], "digits")
        studies.add(study_id)
        trials += ids(storage.create_trials(study_id, [running(), running()]))
        storage.delete_study(study_id)
    assert len(studies) == 3
    assert len(set(trials)) == 6


@pytest.mark.usefixtures("without_reused_ids")
def test_a_cached_deleted_study_does_not_show_the_next_one(storage: Storage, other: Storage) -> None:
    old = storage.create_new_study([MAXIMIZE], "digits")
    storage.create_trials(old, [create_trial(value=0.5)])
    study = load_study(storage, "digits")
    assert study.best_value == 0.5
    optuna.delete_study(study_name="digits", storage=other)
    new = other.create_new_study([MAXIMIZE], "digits")
    other.create_trials(new, [create_trial(value=0.25)])
    with pytest.raises(KeyError):
        pytest.fail(repr(study.trials))


def test_a_claim_on_a_deleted_trial_changes_no_later_one(storage: Storage, other: Storage, study_id: int) -> None:
    claimed = ids(storage.create_trials(study_id, [running()]))
    other.delete_study(study_id)
    new = other.create_new_study([MAXIMIZE], "digits")
    other.create_trials(new, [running()])
    before = texts(other.get_all_trials(new))
    assert storage.report(1, dict.fromkeys(claimed, 0.5)) == set(claimed)
    assert storage.requeue(claimed) == set(claimed)
    assert storage.finish([TrialResult(trial_id, FAIL) for trial_id in claimed]) == set(claimed)
    assert texts(other.get_all_trials(new)) == before
