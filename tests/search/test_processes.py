"""Several processes on one study: its trials are exactly those asked for, whoever is killed, silent or late."""

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
from hpo.search.population_search import PopulationSearch
from hpo.storage import Storage, heartbeats, load_study
from hpo.studyfile import Study

Started = Callable[[Study, Storage], LockStep]


def notes(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def test_what_a_killed_process_left_is_trained_again_at_once(
    lock_step: Started, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    running = lock_step(STUDY, storage)
    running.wait_for("epoch_ended")
    assert TrialState.RUNNING in states(trials_of(storage))
    running.kill()
    events = search(STUDY, storage)
    assert "4 orphaned trials requeued: the worker that trained them is dead" in notes(events)
    check_same_trials(trials_of(storage), uninterrupted)
    attempts = [trial.system_attrs.get("hpo:attempts", []) for trial in trials_of(storage)]
    assert [len(of_one) for of_one in attempts] == [1] * 4 + [0] * 6
    assert attempts[0][0]["ended"] == "died"
    assert f"process {running.process.pid} on " in attempts[0][0]["reason"]


def test_a_process_joins_one_that_searches_and_they_share_the_trials(
    lock_step: Started, uninterrupted: list[FrozenTrial], storage: Storage
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


def test_each_process_learns_what_the_others_have_done(lock_step: Started, storage: Storage) -> None:
    study = study_of(search={"trials": 20, "population": 2})
    first = lock_step(study, storage)
    first.wait_for("epoch_ended")
    events: list[Event] = []

    def take(event: Event) -> None:
        if isinstance(event, PopulationStarted) and not any(isinstance(each, PopulationStarted) for each in events):
            first.wait_for("population_ended")
        events.append(event)

    launch(study, storage, LaunchOptions(device="cpu"), on_event=take, stop=threading.Event())
    assert first.finish() == 0
    check_whole(trials_of(storage), 20)
    done = sum(len(event.members) for event in events if isinstance(event, PopulationStarted))
    others = sum(event.completed for event in events if isinstance(event, OthersEnded))
    assert (done, others) == (18, 2)
    assert isinstance(events[-1], StudyEnded)
    assert (events[-1].reason, events[-1].completed) == ("finished", 20)


def test_a_process_with_nothing_to_do_waits_and_takes_over_from_one_that_dies(
    lock_step: Started, uninterrupted: list[FrozenTrial], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    first = lock_step(STUDY, storage)
    first.wait_for("epoch_ended")

    class Stop(threading.Event):
        """Asked to wait, it has nothing to do: now the other process dies."""

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


def test_a_process_waits_for_trials_that_others_created_while_it_looked(
    lock_step: Started, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    study = study_of(search={"trials": 4})
    other = lock_step(study, storage)
    other.wait_for("study_started")

    class Late(PopulationSearch):
        """When it has looked who runs what, another process creates all trials there are to be."""

        def _retake(self) -> None:
            super()._retake()
            if not trials_of(storage):
                other.wait_for("population_started")

    class Stop(threading.Event):
        """Asked to wait, it lets the other process go on."""

        def wait(self, timeout: float | None = None) -> bool:
            other.resume()
            return super().wait(timeout)

    monkeypatch.setattr(drivers, "PopulationSearch", Late)
    events: list[Event] = []
    launch(study, storage, LaunchOptions(device="cpu"), on_event=events.append, stop=Stop())
    assert isinstance(events[-1], StudyEnded)
    assert (events[-1].reason, events[-1].completed) == ("finished", 4)
    assert other.finish() == 0


@pytest.fixture
def suspended(lock_step: Started, storage: Storage) -> LockStep:
    """A process that was suspended after its first epoch, and counts as silent by now."""
    suspended = lock_step(STUDY, storage)
    suspended.wait_for("epoch_ended")
    suspended.process.send_signal(signal.SIGSTOP)
    age_heartbeats(storage)
    return suspended


def test_a_late_process_cannot_change_what_was_given_away(
    suspended: LockStep, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    events = search(STUDY, storage)
    assert "4 orphaned trials requeued" in notes(events)
    before = trials_of(storage)
    check_same_trials(before, uninterrupted)
    suspended.process.send_signal(signal.SIGCONT)
    output = suspended.finish_with_output()
    warnings = [event["text"] for event in output if event["event"] == "note" and event["level"] == "warning"]
    dropped = ": claim lost to another worker; the results are discarded"
    assert all(warning.endswith(dropped) for warning in warnings)
    assert "".join(warnings).count("0") == 1
    assert suspended.process.returncode == 0
    assert trials_of(storage) == before


def test_a_process_that_was_silent_and_is_back_in_time_keeps_its_trials(
    suspended: LockStep, uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    suspended.process.send_signal(signal.SIGCONT)
    assert suspended.finish() == 0
    check_same_trials(trials_of(storage), uninterrupted)
    assert not any("hpo:attempts" in trial.system_attrs for trial in trials_of(storage))


def test_a_finite_space_is_shared_without_doubles(lock_step: Started, storage: Storage) -> None:
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


def test_a_study_that_is_searched_cannot_be_changed(lock_step: Started, storage: Storage) -> None:
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


def test_processes_that_start_at_once_agree_on_study_and_precision(lock_step: Started, storage: Storage) -> None:
    study = study_of(training={"epochs": 1, "precision": "auto"}, search={"trials": 12})
    started = [lock_step(study, storage) for _ in range(3)]
    assert [each.finish() for each in started] == [0, 0, 0]
    check_whole(trials_of(storage), 12)
    assert load_study(storage, "tiny").user_attrs["hpo:run"]["precision"] in ("float32", "bfloat16")


def test_a_trial_in_the_hands_of_plain_optuna_is_not_waited_for(storage: Storage) -> None:
    search(STUDY, storage, stop_at=lambda event: isinstance(event, StudyStarted))
    asked = load_study(storage, "tiny").ask()
    events = search(STUDY, storage)
    assert isinstance(events[-1], StudyEnded)
    trials = trials_of(storage)
    assert len(trials) == 10
    assert trials[asked.number].state == TrialState.RUNNING


def test_signs_of_life_are_shown_for_what_is_claimed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    search(STUDY, storage, stop_at=after_epochs(1))
    study = load_study(storage, "tiny")
    beaten = threading.Event()
    beat = storage.refresh_heartbeats
    monkeypatch.setattr(sys.modules["hpo.storage.heartbeats"], "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(storage, "refresh_heartbeats", lambda: (beat(), beaten.set()))
    waiting = [trial._trial_id for trial in study.get_trials(states=(TrialState.WAITING,))]
    storage.claim(waiting, 2)
    age_heartbeats(storage)
    with heartbeats(storage):
        assert beaten.wait(30)
    assert silent(storage) == 0
    age_heartbeats(storage)
    assert silent(storage) == 2


def silent(storage: Storage) -> int:
    from hpo.storage import running_trials

    return sum(trial.silent_s > 60 for trial in running_trials(storage))
