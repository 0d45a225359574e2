"""Several processes on one study: trials stay complete and unique when a process is killed, suspended or resumed."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable

import pytest
from lock_step import LockStep, age_heartbeats
from optuna.trial import FrozenTrial, TrialState
from tiny import STUDY, after_epochs, check_same_trials, check_whole, search, states, study_of, trials_of

from hpo.errors import StudyBusyError
from hpo.search import driver as drivers
from hpo.search import loop
from hpo.search.events import EpochEnded, Event, Note, OthersEnded, PopulationStarted, StudyEnded, StudyStarted
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.search.populations.population_search import PopulationSearch
from hpo.storage import Storage, heartbeats, load_study
from hpo.studyfile import Study

StartLockStep = Callable[[Study, Storage], LockStep]


def notes(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def test_trials_of_a_killed_process_are_requeued_at_once(
    lock_step: StartLockStep, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    running = lock_step(STUDY, storage)
    running.wait_for("epoch_ended")
    assert TrialState.RUNNING in states(trials_of(storage))
    running.kill()
    events = search(STUDY, storage)
    assert "4 orphaned trials requeued: the worker that trained them is dead" in notes(events)
    check_same_trials(trials_of(storage), uninterrupted)
    attempts = [trial.system_attrs.get("hpo:attempts", []) for trial in trials_of(storage)]
    assert [len(each) for each in attempts] == [1] * 4 + [0] * 6
    assert attempts[0][0]["ended"] == "died"
    assert f"process {running.process.pid} on " in attempts[0][0]["reason"]


def test_a_second_process_joins_a_search_and_shares_its_trials(
    lock_step: StartLockStep, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    first = lock_step(STUDY, storage)
    first.wait_for("epoch_ended")

    def resume(event: Event) -> None:
        if isinstance(event, EpochEnded):
            first.resume()

    launch(STUDY, storage, LaunchOptions(device="cpu"), on_event=resume, stop=threading.Event())
    assert first.finish() == 0
    check_same_trials(trials_of(storage), uninterrupted)
    workers = Counter(trial.system_attrs["hpo:worker"]["pid"] for trial in trials_of(storage))
    assert workers[first.process.pid] >= 4
    assert len(workers) == 2


def test_each_process_counts_the_trials_of_the_others(lock_step: StartLockStep, storage: Storage) -> None:
    study = study_of(search={"trials": 20, "population": 2})
    first = lock_step(study, storage)
    first.wait_for("epoch_ended")
    events: list[Event] = []

    def record(event: Event) -> None:
        if isinstance(event, PopulationStarted) and not any(isinstance(each, PopulationStarted) for each in events):
            first.wait_for("population_ended")
        events.append(event)

    launch(study, storage, LaunchOptions(device="cpu"), on_event=record, stop=threading.Event())
    assert first.finish() == 0
    check_whole(trials_of(storage), 20)
    own_trials = sum(len(event.members) for event in events if isinstance(event, PopulationStarted))
    other_trials = sum(event.completed for event in events if isinstance(event, OthersEnded))
    assert (own_trials, other_trials) == (18, 2)
    assert isinstance(events[-1], StudyEnded)
    assert (events[-1].reason, events[-1].completed) == ("finished", 20)


def test_an_idle_process_waits_and_takes_over_from_a_dead_one(
    lock_step: StartLockStep, uninterrupted: list[FrozenTrial], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    first = lock_step(STUDY, storage)
    first.wait_for("epoch_ended")

    class Stop(threading.Event):
        """A search waits when it is idle: kill the other process at that moment."""

        def wait(self, timeout: float | None = None) -> bool:
            if first.process.returncode is None:
                first.kill()
                first.process.wait()
            return super().wait(timeout)

    events: list[Event] = []
    launch(STUDY, storage, LaunchOptions(device="cpu"), on_event=events.append, stop=Stop())
    assert first.process.returncode == -signal.SIGKILL
    assert "4 orphaned trials requeued" in notes(events)
    check_same_trials(trials_of(storage), uninterrupted)


def test_a_process_waits_for_trials_that_another_creates_meanwhile(
    lock_step: StartLockStep, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    study = study_of(search={"trials": 4})
    other = lock_step(study, storage)
    other.wait_for("study_started")

    class DelayedSearch(PopulationSearch):
        """Let the other process create all trials after this one has checked for orphaned trials."""

        def _retake(self) -> None:
            super()._retake()
            if not trials_of(storage):
                other.wait_for("population_started")

    class Stop(threading.Event):
        """Let the other process continue when this one waits."""

        def wait(self, timeout: float | None = None) -> bool:
            other.resume()
            return super().wait(timeout)

    monkeypatch.setattr(drivers, "PopulationSearch", DelayedSearch)
    events: list[Event] = []
    launch(study, storage, LaunchOptions(device="cpu"), on_event=events.append, stop=Stop())
    assert isinstance(events[-1], StudyEnded)
    assert (events[-1].reason, events[-1].completed) == ("finished", 4)
    assert other.finish() == 0


@pytest.fixture
def suspended(lock_step: StartLockStep, storage: Storage) -> LockStep:
    """Return a process suspended after its first epoch, with expired heartbeats."""
    suspended = lock_step(STUDY, storage)
    suspended.wait_for("epoch_ended")
    suspended.process.send_signal(signal.SIGSTOP)
    age_heartbeats(storage)
    return suspended


def test_a_resumed_process_cannot_change_requeued_trials(
    suspended: LockStep, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    events = search(STUDY, storage)
    assert "4 orphaned trials requeued" in notes(events)
    before = trials_of(storage)
    check_same_trials(before, uninterrupted)
    suspended.process.send_signal(signal.SIGCONT)
    output = suspended.finish_with_output()
    warnings = [event["text"] for event in output if event["event"] == "note" and event["level"] == "warning"]
    lost_claim = ": claim lost to another worker or a pause; the results are not stored"
    assert all(warning.endswith(lost_claim) for warning in warnings)
    assert "".join(warnings).count("0") == 1
    assert suspended.process.returncode == 0
    assert trials_of(storage) == before


def test_a_process_that_resumes_before_a_requeue_continues_its_trials(
    suspended: LockStep, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    suspended.process.send_signal(signal.SIGCONT)
    assert suspended.finish() == 0
    check_same_trials(trials_of(storage), uninterrupted)
    assert not any("hpo:attempts" in trial.system_attrs for trial in trials_of(storage))


def test_processes_share_a_finite_space_without_duplicates(lock_step: StartLockStep, storage: Storage) -> None:
    for sampler in ("grid", "random", "qmc"):
        study = study_of(
            name=sampler,
            network={"dropout": {"low": 0.0, "high": 0.9, "step": 0.1}},
            optimizer={"lr": {"choices": [0.1, 0.2]}},
            training={"epochs": 1},
            search={"trials": 30, "population": 3, "sampler": sampler},
        )
        first = lock_step(study, storage)
        first.wait_for("study_started")
        events = search(study, storage)
        assert first.finish() == 0
        assert isinstance(events[-1], StudyEnded)
        assert events[-1].reason == "space exhausted"
        check_whole(trials_of(storage, sampler), 20)


def test_a_study_cannot_be_extended_during_a_search(lock_step: StartLockStep, storage: Storage) -> None:
    running = lock_step(STUDY, storage)
    running.wait_for("epoch_ended")
    changed = study_of(**{**STUDY.resolved(), "search": {**STUDY.resolved()["search"], "trials": 11}})
    with pytest.raises(StudyBusyError, match=f"is being searched by process {running.process.pid} on .*; wait for it"):
        search(changed, storage, extend=True)
    assert json.loads(load_study(storage, "tiny").user_attrs["hpo:study"]) == STUDY.resolved()
    assert "hpo:changes" not in load_study(storage, "tiny").user_attrs
    running.kill()
    search(changed, storage, extend=True)
    check_whole(trials_of(storage), 11)


def test_processes_that_start_together_agree_on_study_and_precision(lock_step: StartLockStep, storage: Storage) -> None:
    study = study_of(training={"epochs": 1, "precision": "auto"}, search={"trials": 12})
    started = [lock_step(study, storage) for _ in range(3)]
    assert [each.finish() for each in started] == [0, 0, 0]
    check_whole(trials_of(storage), 12)
    assert load_study(storage, "tiny").user_attrs["hpo:run"]["precision"] in ("float32", "bfloat16")


def test_a_search_does_not_wait_for_running_trials_of_optuna(storage: Storage) -> None:
    search(STUDY, storage, stop_at=lambda event: isinstance(event, StudyStarted))
    optuna_trial = load_study(storage, "tiny").ask()
    events = search(STUDY, storage)
    assert isinstance(events[-1], StudyEnded)
    trials = trials_of(storage)
    assert len(trials) == 10
    assert trials[optuna_trial.number].state == TrialState.RUNNING


def test_claimed_trials_get_heartbeats(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    search(STUDY, storage, stop_at=after_epochs(1))
    study = load_study(storage, "tiny")
    refreshed = threading.Event()
    refresh = storage.refresh_heartbeats
    monkeypatch.setattr(sys.modules["hpo.storage.heartbeats"], "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(storage, "refresh_heartbeats", lambda: (refresh(), refreshed.set()))
    waiting = [trial._trial_id for trial in study.get_trials(states=(TrialState.WAITING,))]
    storage.claim(waiting, 2)
    age_heartbeats(storage)
    with heartbeats(storage):
        assert refreshed.wait(30)
    assert count_silent(storage) == 0
    age_heartbeats(storage)
    assert count_silent(storage) == 2


def count_silent(storage: Storage) -> int:
    from hpo.storage import running_trials

    return sum(trial.silent_s > 60 for trial in running_trials(storage))
