"""Tests of workers with successive halving: several studies, several workers, frozen trials that are requeued."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from deadlines import wait_for
from idle_processes import IdleProcess
from optuna.trial import TrialState
from tiny import LR, check_whole, states, study_of, trials_of
from worker_threads import Happened, WorkerThread, populations, work_here

from hpo.results.reproduce.verify import verify
from hpo.search.events import (
    EpochEnded,
    Event,
    FrozenTrials,
    PopulationEnded,
    PopulationStarted,
    StudyEnded,
    TrialsNotPromoted,
)
from hpo.search.launch import submit
from hpo.search.options import LaunchOptions
from hpo.service import queue_control as control
from hpo.service import worker as working
from hpo.service.worker import WorkerOptions
from hpo.storage import Storage, StudyState, running_trials, state_of, summary

TRIALS, EPOCHS, RUNGS = 12, 4, (1, 3)
UNTIL_STOPPED = WorkerOptions(device="cpu", threads=1)
UNTIL_IDLE = WorkerOptions(device="cpu", threads=1, until_idle=True)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, no_figures: None) -> None:
    """Poll often, but not more often than a busy machine can read the queue.

    A study without trials to train is skipped for this time. If that ends before the worker has read the queue again,
    the worker never comes to a study of lower priority.
    """
    monkeypatch.setattr(working, "POLL_S", 0.5)


@pytest.fixture
def open_elsewhere(open_again: Callable[[], Storage], idle_process: Callable[[], IdleProcess]) -> Callable[[], Storage]:
    """Return a function that opens the same storage for a worker in another process."""

    def opened() -> Storage:
        storage = open_again()
        storage.worker = idle_process().worker()
        return storage

    return opened


def put(storage: Storage, name: str = "tiny", priority: int | None = None, **changes: Any) -> int:
    """Submit a study of that name with successive halving, and return its id."""
    search = {"trials": TRIALS, "pruner": "halving", "rung": RUNGS[0], **changes.pop("search", {})}
    training = {"epochs": EPOCHS, **changes.pop("training", {})}
    study = study_of(name=name, search=search, training=training, **changes)
    submit(study, storage, LaunchOptions(priority=priority))
    return summary(storage, name).study_id


def check_ended(storage: Storage, name: str = "tiny", trials: int = TRIALS) -> None:
    """Check that each trial has ended once, after as many epochs as its state says, and none is claimed or frozen."""
    found = trials_of(storage, name)
    check_whole(found, trials)
    assert state_of(summary(storage, name).user_attrs) == StudyState.ENDED
    for trial in found:
        complete = trial.state == TrialState.COMPLETE
        assert trial.last_step in ((EPOCHS,) if complete else RUNGS), trial
        assert list(trial.intermediate_values) == list(range(1, trial.last_step + 1))
    assert states(found).count(TrialState.COMPLETE) in (1, 2, 3)
    assert states(found).count(TrialState.FAIL) == 0
    assert running_trials(storage) == []


def check_curves(storage: Storage, name: str = "tiny") -> None:
    """Check that each completed trial has the learning curve that it has alone."""
    certificate = verify(storage, name, TRIALS, "cpu", threading.Event(), lambda text: None)
    assert max(certificate["largest"].values()) < 1e-9
    assert certificate["score"] == 0


def pruned_and_completed(happened: Happened, name: str = "tiny") -> tuple[int, int]:
    """Return the numbers of pruned and completed trials, as a display counts them."""
    events = [event for study, event in happened if study == name]
    ended = [event for event in events if isinstance(event, PopulationEnded)]
    not_promoted = sum(len(event.members) for event in events if isinstance(event, TrialsNotPromoted))
    return not_promoted + sum(event.pruned for event in ended), sum(event.completed for event in ended)


def once(condition: Callable[[str, Event], bool], act: Callable[[], object]) -> Callable[[str, Event], None]:
    """Act at the first event for which the condition is true."""
    left = [act]

    def listen(study: str, event: Event) -> None:
        if left and condition(study, event):
            left.pop()()

    return listen


def freezes(count: int) -> Callable[[str, Event], bool]:
    """Return a condition: the end of a population while that many trials of its study are frozen."""
    frozen: Counter[str] = Counter()

    def condition(study: str, event: Event) -> bool:
        if isinstance(event, FrozenTrials):
            frozen[study] = sum(number for _, number in event.counts)
        return isinstance(event, PopulationEnded) and frozen[study] >= count

    return condition


def first_epochs(happened: Happened) -> int:
    """Return the number of populations that trained epoch 1."""
    return sum(isinstance(event, EpochEnded) and event.epoch == 1 for _, event in happened)


@pytest.mark.parametrize(
    ("room", "priority"),
    [
        pytest.param(working.CACHED_BYTES, None, id="room-equal", marks=pytest.mark.slow),
        pytest.param(working.CACHED_BYTES, 1, id="room-priority"),
        pytest.param(0, None, id="none-equal"),
        pytest.param(0, 1, id="none-priority", marks=pytest.mark.slow),
    ],
)
def test_two_studies_of_one_worker_both_end(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, room: int, priority: int | None
) -> None:
    monkeypatch.setattr(working, "CACHED_BYTES", room)
    put(storage, "a")
    put(storage, "b", priority)
    happened = work_here(storage)
    for name in ("a", "b"):
        check_ended(storage, name)
        assert sum(pruned_and_completed(happened, name)) == TRIALS
        ends = [event for study, event in happened if study == name and isinstance(event, StudyEnded)]
        assert [end.completed + end.pruned for end in ends] == [TRIALS]
    order = populations(happened)
    if priority:
        assert order == sorted(order, reverse=True)
    else:
        assert order[:2] == ["a", "b"]
    assert first_epochs(happened) == 2 * TRIALS // 4  # also without room: a dropped search has written the states


def test_a_pause_requeues_frozen_trials_and_they_go_on_from_their_states(storage: Storage) -> None:
    put(storage)
    put(storage, "other", -1, search={"trials": 4})
    happened = work_here(storage, on_event=once(freezes(8), lambda: control.pause(storage, "tiny")))
    found = trials_of(storage)
    assert states(found) == [TrialState.WAITING] * 8
    assert summary(storage, "tiny").frozen == {}
    assert storage.claimed_ids == set()
    check_ended(storage, "other", 4)
    last = [event for study, event in happened if study == "tiny" and isinstance(event, FrozenTrials)][-1]
    assert last.counts == ()
    control.resume(storage, "tiny")
    resumed = work_here(storage)
    check_ended(storage)
    assert first_epochs(resumed) == 1  # the four new trials
    assert sum(pruned_and_completed(resumed)) == TRIALS
    check_curves(storage)


def test_a_stopped_study_finishes_its_frozen_trials_and_starts_no_other(storage: Storage) -> None:
    put(storage)
    put(storage, "other", -1, search={"trials": 4})
    happened = work_here(storage, on_event=once(freezes(8), lambda: control.stop(storage, "tiny")))
    found = trials_of(storage)
    assert len(found) == 8
    assert set(states(found)) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert sum(pruned_and_completed(happened)) == 8
    assert state_of(summary(storage, "tiny").user_attrs) == StudyState.STOPPED
    assert storage.claimed_ids == set()
    check_ended(storage, "other", 4)


def test_a_stopped_worker_requeues_its_frozen_trials_for_another(
    storage: Storage, open_elsewhere: Callable[[], Storage]
) -> None:
    put(storage)
    stop = threading.Event()
    work_here(storage, UNTIL_STOPPED, once(freezes(8), stop.set), stop)
    assert set(states(trials_of(storage))) <= {TrialState.WAITING, TrialState.PRUNED}
    assert running_trials(storage) == []
    assert first_epochs(work_here(open_elsewhere())) == 1
    check_ended(storage)


def test_a_deleted_study_leaves_no_states(storage: Storage, tmp_path: Path) -> None:
    put(storage, training={"checkpoint": 1})
    put(storage, "other", -1, search={"trials": 4})
    work_here(storage, on_event=once(freezes(8), lambda: control.delete(storage, "tiny")))
    check_ended(storage, "other", 4)
    assert [file for file in (tmp_path / "hpo-artifacts").rglob("*") if file.is_file()] == []


def test_workers_share_the_rungs_and_end_with_exactly_the_trials(
    storage: Storage, open_elsewhere: Callable[[], Storage]
) -> None:
    put(storage, search={"trials": 16, "population": 2})
    put(storage, "b", search={"population": 2})
    workers = [WorkerThread(open_elsewhere(), UNTIL_IDLE) for _ in range(2)]
    for worker in workers:
        worker.wait()
    found = {name: trials_of(storage, name) for name in ("tiny", "b")}
    for name, count in (("tiny", 16), ("b", 12)):
        check_whole(found[name], count)
        assert set(states(found[name])) == {TrialState.COMPLETE, TrialState.PRUNED}
        assert sum(sum(pruned_and_completed(worker.happened, name)) for worker in workers) == count
        assert state_of(summary(storage, name).user_attrs) == StudyState.ENDED
        check_curves(storage, name)


def held(storage: Storage, study_id: int, count: int) -> list[int]:
    """Claim `count` new trials for the storage's worker; return their ids."""
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"lr": 0.1},
        distributions={"lr": optuna.distributions.FloatDistribution(LR["low"], LR["high"], log=True)},
        user_attrs={"seed": 1},
    )
    return [trial._trial_id for trial in storage.create_trials(study_id, [template] * count)]


def test_a_process_with_frozen_trials_is_no_worker_of_the_study(
    storage: Storage, open_elsewhere: Callable[[], Storage]
) -> None:
    first, second = open_elsewhere(), open_elsewhere()
    idle = held(first, put(storage, "idle"), 3)
    first.freeze({trial_id: (1, [0.5]) for trial_id in idle})
    trained = held(second, put(storage, "trained"), 3)
    stop = threading.Event()
    at_work = once(lambda study, event: isinstance(event, PopulationStarted) and study == "trained", stop.set)
    assert populations(work_here(storage, UNTIL_STOPPED, at_work, stop))[0] == "idle"
    assert {trial.trial_id for trial in running_trials(storage)} == {*idle, *trained}


def test_frozen_trials_that_cannot_be_read_wait_for_their_worker(
    storage: Storage, open_elsewhere: Callable[[], Storage]
) -> None:
    other = open_elsewhere()
    ids = held(other, put(storage, search={"trials": 3}), 3)
    other.freeze({trial_id: (1, [0.5]) for trial_id in ids})
    put(storage, "b", -1)
    worker = WorkerThread(open_elsewhere(), UNTIL_IDLE)
    wait_for(lambda: ("b", StudyEnded) in [(study, type(event)) for study, event in worker.happened])
    assert states(trials_of(storage)) == [TrialState.RUNNING] * 3
    other.requeue(ids)
    worker.wait()
    assert set(states(trials_of(storage))) == {TrialState.COMPLETE, TrialState.PRUNED}
