"""Deletion of a study: nothing of it is left, nothing else is deleted, and late calls change nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from deadlines import deadline
from optuna.storages import _CachedStorage
from optuna.storages._rdb import models
from optuna_records import (
    COMPLETE,
    FAIL,
    MAXIMIZE,
    RUNNING,
    WAITING,
    ids,
    plain,
    row_counts,
    running,
    states,
    study_with_all_rows,
    texts,
)

from hpo.errors import StudyClosedError
from hpo.storage import (
    ClaimConditions,
    Storage,
    StudyState,
    TrialResult,
    check_open,
    count_unfinished,
    end_study,
    load_study,
    requeue_orphaned,
    running_trials,
    set_state,
    study_names,
)
from hpo.storage.connections import write

# How long the test checks that a thread waits for another.
WATCHED_S = 0.5
# Enough repetitions for each order of two transactions to occur.
ROUNDS = 10

Way = Callable[[Storage, str], None]
WAYS: dict[str, Way] = {
    "storage": lambda storage, name: storage.delete_study(storage.get_study_id_from_name(name)),
    "cached": lambda storage, name: _CachedStorage(storage).delete_study(storage.get_study_id_from_name(name)),
    "optuna": lambda storage, name: optuna.delete_study(study_name=name, storage=storage),
}


@pytest.fixture(params=WAYS)
def delete(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def everything(storage: Storage) -> dict[str, list[str]]:
    """Return every row of Optuna's tables, as text."""
    with storage.engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table))))
            for table in models.BaseModel.metadata.sorted_tables
        }


def test_a_deleted_study_leaves_no_rows_and_others_are_not_changed(
    delete: Way, storage: Storage, other: Storage
) -> None:
    study_with_all_rows(storage, "before")
    before_it = everything(storage)
    doomed = study_with_all_rows(storage, "doomed")
    set_state(storage, doomed, StudyState.STOPPED, "enough")
    with_it = everything(storage)
    assert [name for name in with_it if with_it[name] == before_it[name]] == ["version_info"], "each table has some"
    delete(other, "doomed")
    assert everything(storage) == before_it
    later = study_with_all_rows(storage, "later")
    delete(other, "before")
    assert study_names(storage) == ["later"]
    assert states(storage.get_all_trials(later)) == [COMPLETE, RUNNING]


def test_all_tables_are_empty_after_the_only_study_is_deleted(delete: Way, storage: Storage) -> None:
    study_with_all_rows(storage, "digits")
    assert len(row_counts(storage)) == len(models.BaseModel.metadata.sorted_tables)
    delete(storage, "digits")
    assert row_counts(storage).keys() == {"version_info"}


def test_a_study_of_plain_optuna_with_several_objectives_is_deleted(delete: Way, storage: Storage) -> None:
    study = optuna.create_study(storage=storage, study_name="plain", directions=["minimize", "maximize"])
    study.enqueue_trial({"x": 1})
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), trial.suggest_int("n", 1, 3)), n_trials=3)
    asked = study.ask()
    asked.report(0.5, 1) if len(study.directions) == 1 else storage.set_trial_intermediate_value(
        asked._trial_id, 1, 0.5
    )
    delete(storage, "plain")
    assert row_counts(storage).keys() == {"version_info"}


def test_deleting_an_unknown_study_is_a_key_error(delete: Way, storage: Storage) -> None:
    kept = study_with_all_rows(storage, "kept")
    before = everything(storage)
    with pytest.raises(KeyError):
        delete(storage, "never there")
    with pytest.raises(KeyError):
        storage.delete_study(kept + 1000)
    assert everything(storage) == before


def test_deleting_a_study_twice_is_a_key_error(storage: Storage, other: Storage) -> None:
    study_id = study_with_all_rows(storage, "digits")
    other.delete_study(study_id)
    for each in (storage, other):
        with pytest.raises(KeyError):
            each.delete_study(study_id)


def test_a_failed_deletion_deletes_nothing(file_storage: Storage) -> None:
    study_id = study_with_all_rows(file_storage, "digits")
    before = everything(file_storage)
    with file_storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER kept BEFORE DELETE ON studies BEGIN SELECT RAISE(ABORT, 'it stays'); END"
        )
    with pytest.raises(Exception, match="it stays"):
        file_storage.delete_study(study_id)
    assert everything(file_storage) == before


def test_the_name_of_a_deleted_study_is_free(delete: Way, storage: Storage, other: Storage) -> None:
    study_with_all_rows(storage, "digits")
    delete(other, "digits")
    study_id = study_with_all_rows(storage, "digits")
    assert texts(load_study(other, "digits").trials) == texts(storage.get_all_trials(study_id))
    assert len(load_study(other, "digits").trials) == 2


def test_more_trials_than_a_query_takes_as_parameters_are_deleted(storage: Storage) -> None:
    with storage.engine.begin() as connection:
        insert = sa.insert(models.StudyModel).values(study_name="digits").returning(models.StudyModel.study_id)
        study_id = connection.execute(insert).scalar_one()
        connection.execute(sa.insert(models.TrialModel).values(number=0, study_id=study_id, state=WAITING))
        many = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 33000)"
        connection.exec_driver_sql(
            f"INSERT INTO trials (number, study_id, state) {many} SELECT n, study_id, state FROM numbers, trials"
        )
    storage.delete_study(study_id)
    assert row_counts(storage).keys() == {"version_info"}


def is_deleted(act: Callable[[], object]) -> bool:
    """Return whether the call raises that the study was deleted."""
    with pytest.raises(StudyClosedError) as caught:
        act()
    return caught.value.how == "deleted"


LATE: dict[str, Callable[[Storage, ClaimConditions, list[int]], Any]] = {
    "report": lambda s, conditions, found: s.report(2, dict.fromkeys(found, 0.5)) == set(found),
    "finish": lambda s, conditions, found: s.finish([TrialResult(i, FAIL) for i in found]) == set(found),
    "requeue": lambda s, conditions, found: s.requeue(found, {i: {"late": 1} for i in found}) == set(found),
    "beat": lambda s, conditions, found: s.refresh_heartbeats() is None,
    "claim": lambda s, conditions, found: s.claim(found, 9) == [],
    "end": lambda s, conditions, found: is_deleted(lambda: end_study(s, conditions, "finished")),
    "pause": lambda s, conditions, found: set_state(s, conditions.study_id, StudyState.PAUSED) == 0,
    "look": lambda s, conditions, found: (
        (running_trials(s, conditions.study_id), count_unfinished(s, conditions.study_id)) == ([], 0)
    ),
}


@pytest.mark.parametrize("late", LATE)
def test_a_late_worker_changes_nothing_after_the_deletion(late: str, storage: Storage, other: Storage) -> None:
    conditions = ClaimConditions(storage.create_study("digits", [MAXIMIZE], {}), "digits", {})
    held = ids(storage.create_trials(conditions.study_id, [running(), running()], 0, conditions))
    storage.report(1, dict.fromkeys(held, 0.25))
    lost = running_trials(storage)
    other.delete_study(conditions.study_id)
    # On SQLite another study gets the ids of the deleted one, and its trials those of the deleted ones.
    heir = other.create_study("heir", [MAXIMIZE], {})
    (theirs,) = ids(other.create_trials(heir, [running()]))
    if conditions.study_id != heir:
        before = everything(storage)
        assert LATE[late](storage, conditions, held)
        assert everything(storage) == before
    elif late in ("report", "finish", "requeue", "beat"):
        before = everything(storage)
        assert LATE[late](storage, conditions, held)
        assert everything(storage) == before
        assert requeue_orphaned(storage, lost) == (set(), set())
        assert everything(storage) == before
    assert other.report(1, {theirs: 0.5}) == set()


@pytest.mark.parametrize(
    "late",
    [
        lambda s, study_id: s.set_study_attrs(study_id, {"late": 1}),
        lambda s, study_id: s.set_study_attr_if_absent(study_id, "late", 1),
        lambda s, study_id: s.create_trials(study_id, [running()]),
        lambda s, study_id: s.read_trials(study_id, -1, (), None),
    ],
    ids=["set_study_attrs", "set_study_attr_if_absent", "create_trials", "read_trials"],
)
def test_a_call_for_a_deleted_study_is_a_key_error_or_finds_nothing(
    late: Callable[[Storage, int], object], storage: Storage, other: Storage
) -> None:
    """As Optuna's own calls, and not an error of the database."""
    study_id = study_with_all_rows(storage, "digits")
    other.delete_study(study_id)
    before = everything(storage)
    try:
        found = late(storage, study_id)
    except (KeyError, StudyClosedError):
        found = []
    assert found == []
    assert everything(storage) == before


def test_a_call_during_the_deletion_waits_and_finds_no_study(storage: Storage, other: Storage) -> None:
    conditions = ClaimConditions(storage.create_study("digits", [MAXIMIZE], {"file": "1"}), "digits", {"file": "1"})
    held = ids(storage.create_trials(conditions.study_id, [running()], 0, conditions))
    with ThreadPoolExecutor(1) as pool:
        with write(storage.engine) as connection:
            conditions.check(connection)
            deleted = pool.submit(other.delete_study, conditions.study_id)
            with pytest.raises(FutureTimeoutError):
                deleted.result(WATCHED_S)
        deleted.result(deadline())
    with pytest.raises(StudyClosedError, match="study 'digits' was deleted") as caught:
        check_open(storage, conditions)
    assert caught.value.how == "deleted"
    assert storage.report(1, dict.fromkeys(held, 0.5)) == set(held)


def test_concurrent_calls_leave_nothing_of_a_deleted_study(
    storage: Storage, other: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[BaseException] = []

    def attempt(barrier: threading.Barrier, call: Callable[[], object]) -> None:
        barrier.wait(deadline())
        try:
            call()
        except StudyClosedError:
            return
        except Exception as error:  # noqa: BLE001 - reported by the test
            errors.append(error)

    for round_ in range(ROUNDS):
        conditions = ClaimConditions(
            storage.create_study(f"digits {round_}", [MAXIMIZE], {"file": "1"}), "digits", {"file": "1"}
        )
        waiting = ids(storage.create_trials(conditions.study_id, [running(state=WAITING)] * 8))
        held = ids(storage.create_trials(conditions.study_id, [running() for _ in range(8)]))
        calls: list[Callable[[], object]] = [
            lambda conditions=conditions: other.delete_study(conditions.study_id),
            lambda conditions=conditions, waiting=waiting: storage.claim(waiting, 4, conditions),
            lambda conditions=conditions: storage.create_trials(conditions.study_id, [running()], None, conditions),
            lambda held=held: storage.report(1, dict.fromkeys(held[::-1], 0.5)),
            lambda held=held: storage.finish([TrialResult(i, COMPLETE, (0.5,)) for i in held[::-2]]),
            storage.refresh_heartbeats,
            lambda conditions=conditions: set_state(storage, conditions.study_id, StudyState.PAUSED),
        ]
        barrier = threading.Barrier(len(calls))
        with ThreadPoolExecutor(len(calls)) as pool:
            list(pool.map(attempt, [barrier] * len(calls), calls, timeout=deadline()))
        assert errors == []
        assert row_counts(storage).keys() == {"version_info"}
        storage.requeue(storage.claimed_ids)
    assert caplog.text == ""


def test_plain_optuna_sees_that_the_study_is_deleted(storage: Storage, other: Storage) -> None:
    study_with_all_rows(storage, "digits")
    with plain(storage.location.full_url) as by_optuna:
        study = optuna.load_study(study_name="digits", storage=by_optuna)
        assert len(study.trials) == 2
        other.delete_study(study._study_id)
        assert optuna.get_all_study_names(by_optuna) == []
        with pytest.raises(KeyError):
            optuna.load_study(study_name="digits", storage=by_optuna)
