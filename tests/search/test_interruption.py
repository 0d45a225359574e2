"""Stops and exceptions: finished trials stay, other trials are requeued, and no trial stays RUNNING."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from optuna.trial import FrozenTrial, TrialState
from tiny import STUDY, StopAfter, after_epochs, check_same_trials, check_whole, search, states, study_of, trials_of

from hpo.search.events import EpochEnded, Event, PopulationEnded, PopulationStarted, StudyEnded, StudyStarted
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.storage import Storage, StudyState, load_study, state_of, summary

NewStorage = Callable[[], Storage]


def check_requeued(trials: list[FrozenTrial]) -> None:
    """Check that the trials are WAITING with their parameters and seed, and without results."""
    for trial in trials:
        assert trial.state == TrialState.WAITING
        assert (trial.intermediate_values, trial.datetime_start, trial.value) == ({}, None, None)
        assert trial.system_attrs == {}
        assert list(trial.user_attrs) == ["seed"]
        assert trial.params.keys() == {"dropout", "hidden", "lr"}


@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_stop_ends_after_the_epoch_and_the_next_launch_resumes(
    epochs: int, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    events = search(STUDY, storage, stop_at=after_epochs(epochs))
    assert sum(isinstance(event, EpochEnded) for event in events) == epochs
    *_, last_epoch, population_ended, ended = events
    assert isinstance(last_epoch, EpochEnded)
    assert isinstance(population_ended, PopulationEnded)
    assert isinstance(ended, StudyEnded)
    assert ended.reason == "interrupted"
    trials = trials_of(storage)
    finished = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert ended.completed == len(finished)
    check_requeued([trial for trial in trials if trial not in finished])

    search(STUDY, storage)
    trials = trials_of(storage)
    check_same_trials(trials, uninterrupted)
    assert [trial.value for trial in trials[: len(finished)]] == [trial.value for trial in trials][: len(finished)]


def test_several_stops_lose_no_trial(uninterrupted: list[FrozenTrial], storage: Storage) -> None:
    for population in (4, 8, 1, 3):
        study = study_of(
            network=STUDY.resolved()["network"],
            training={"epochs": 3},
            search={"trials": 10, "population": population},
        )
        search(study, storage, extend=True, stop_at=after_epochs(4))
    search(study, storage)
    check_same_trials(trials_of(storage), uninterrupted)


def test_stop_before_the_first_epoch_trains_nothing(storage: Storage) -> None:
    events = search(STUDY, storage, stop_at=lambda event: isinstance(event, StudyStarted))
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == "interrupted"
    assert trials_of(storage) == []


@pytest.mark.parametrize("checks", range(9))
def test_stop_at_any_check_leaves_the_study_open(checks: int, storage: Storage) -> None:
    events: list[Event] = []
    launch(study_of(), storage, LaunchOptions(device="cpu"), on_event=events.append, stop=StopAfter(checks))
    (ended,) = (event for event in events if isinstance(event, StudyEnded))
    assert ended.reason == "interrupted"
    assert state_of(summary(storage, "tiny").user_attrs) == StudyState.OPEN


def test_stop_in_the_last_epoch_still_finishes_the_study(storage: Storage) -> None:
    study = study_of(search={"trials": 4})
    events = search(study, storage, stop_at=after_epochs(2))
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == "finished"
    check_whole(trials_of(storage), 4)


@pytest.mark.parametrize(
    ("kind", "failure"),
    [
        (StudyStarted, KeyboardInterrupt()),
        (PopulationStarted, RuntimeError("a defect")),
        (EpochEnded, SystemExit(130)),
        (EpochEnded, KeyboardInterrupt()),
        (PopulationEnded, RuntimeError("a defect")),
        (StudyEnded, KeyboardInterrupt()),
    ],
)
def test_exception_leaves_no_trial_running(kind: type[Event], failure: BaseException, storage: Storage) -> None:
    study = study_of(search={"trials": 6, "population": 4}, training={"epochs": 1})

    def fail(event: Event) -> None:
        if isinstance(event, kind):
            raise failure

    with pytest.raises(type(failure)):
        launch(study, storage, LaunchOptions(device="cpu"), on_event=fail, stop=threading.Event())
    assert TrialState.RUNNING not in states(trials_of(storage))
    search(study, storage)
    check_whole(trials_of(storage), 6)


def test_claimed_trials_are_requeued_when_new_trials_cannot_be_stored(storage: Storage) -> None:
    from_epoch_1 = {"checkpoint": "none"}  # new trials join waiting ones that start again
    search(study_of(training=from_epoch_1), storage, stop_at=after_epochs(1))
    stored = load_study(storage, "tiny")
    assert states(stored.trials) == [TrialState.WAITING] * 4
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON trials BEGIN SELECT RAISE(ABORT, 'no more trials'); END"
        )
    with pytest.raises(Exception, match="no more trials"):
        search(study_of(training=from_epoch_1, search={"population": 5}), storage, extend=True)
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    search(study_of(training=from_epoch_1, search={"population": 5}), storage)
    check_whole(trials_of(storage), 6)
