"""Stops, exceptions and killed processes: what had finished is kept, the rest waits, and nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest
from optuna.trial import FrozenTrial, TrialState
from tiny import after_epochs, are_close, check_whole, curves, params, search, states, study_of, trials_of

from hpo.errors import StudyBusyError
from hpo.search.events import EpochEnded, Event, Note, PopulationEnded, PopulationStarted, StudyEnded, StudyStarted
from hpo.search.launch import launch
from hpo.storage import Storage, load_study, open_storage
from hpo.studyfile import Study

NewStorage = Callable[[], Storage]
DEADLINE_S = 120.0

STUDY = study_of(
    network={"dropout": {"low": 0.0, "high": 0.4}, "hidden": {"choices": [[8], [5, 5]]}},
    training={"epochs": 3},
    search={"trials": 10, "population": 4},
)


def check_untouched(trials: list[FrozenTrial]) -> None:
    """Trials that wait have kept their parameters and seed, and nothing of what they had reached."""
    for trial in trials:
        assert trial.state == TrialState.WAITING
        assert (trial.intermediate_values, trial.datetime_start, trial.value) == ({}, None, None)
        assert trial.system_attrs == {}
        assert list(trial.user_attrs) == ["seed"]
        assert trial.params.keys() == {"dropout", "hidden", "lr"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[FrozenTrial]]:
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('whole')}/hpo.db")
    search(STUDY, storage)
    yield trials_of(storage)
    storage.close()


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 6, 8])
def test_a_stop_ends_after_the_epoch_and_the_next_launch_goes_on(
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
    check_untouched([trial for trial in trials if trial not in finished])

    search(STUDY, storage)
    trials = trials_of(storage)
    check_whole(trials, 10)
    assert params(trials) == params(uninterrupted)
    assert are_close(curves(trials), curves(uninterrupted))
    assert [trial.value for trial in trials[: len(finished)]] == [trial.value for trial in trials][: len(finished)]


def test_many_stops_lose_nothing(uninterrupted: list[FrozenTrial], storage: Storage) -> None:
    for population in (4, 8, 1, 3):
        study = study_of(
            network=STUDY.resolved()["network"],
            training={"epochs": 3},
            search={"trials": 10, "population": population},
        )
        search(study, storage, extend=True, stop_at=after_epochs(4))
    search(study, storage)
    check_whole(trials_of(storage), 10)
    assert params(trials_of(storage)) == params(uninterrupted)
    assert are_close(curves(trials_of(storage)), curves(uninterrupted))


def test_a_stop_before_the_first_epoch_trains_nothing(storage: Storage) -> None:
    events = search(STUDY, storage, stop_at=lambda event: isinstance(event, StudyStarted))
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == "interrupted"
    assert trials_of(storage) == []


def test_a_stop_in_the_very_last_epoch_comes_too_late(storage: Storage) -> None:
    study = study_of(search={"trials": 4})
    events = search(study, storage, stop_at=after_epochs(2))
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == "finished"
    check_whole(trials_of(storage), 4)


@pytest.mark.parametrize("kind", [StudyStarted, PopulationStarted, EpochEnded, PopulationEnded, StudyEnded])
@pytest.mark.parametrize("failure", [RuntimeError("a defect"), SystemExit(130), KeyboardInterrupt()])
def test_an_exception_leaves_nothing_running(kind: type[Event], failure: BaseException, storage: Storage) -> None:
    study = study_of(search={"trials": 6, "population": 4}, training={"epochs": 1})

    def fail(event: Event) -> None:
        if isinstance(event, kind):
            raise failure

    with pytest.raises(type(failure)):
        launch(study, storage, device="cpu", on_event=fail, stop=threading.Event())
    assert TrialState.RUNNING not in states(trials_of(storage))
    search(study, storage)
    check_whole(trials_of(storage), 6)


def test_what_is_claimed_goes_back_when_new_trials_cannot_be_stored(storage: Storage) -> None:
    search(study_of(), storage, stop_at=after_epochs(1))
    stored = load_study(storage, "tiny")
    assert states(stored.trials) == [TrialState.WAITING] * 4
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON trials BEGIN SELECT RAISE(ABORT, 'no more trials'); END"
        )
    with pytest.raises(Exception, match="no more trials"):
        search(study_of(search={"population": 5}), storage, extend=True)
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER full")
    search(study_of(search={"population": 5}), storage)
    check_whole(trials_of(storage), 6)


class LockStep:
    """A launch in a process of its own, which waits after each event until it is told to go on."""

    SCRIPT = """
import json, sys, threading
from hpo.search.launch import launch
from hpo.storage import open_storage
from hpo.studyfile import parse_study

def tell(event):
    print(json.dumps(event.to_json()), flush=True)
    sys.stdin.readline()

study = parse_study(json.loads(sys.argv[1]), "studies/tiny.toml")
launch(study, open_storage(sys.argv[2]), device="cpu", on_event=tell, stop=threading.Event())
"""

    def __init__(self, study: Study, storage: Storage) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, json.dumps(study.resolved()), storage.location.full_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            text=True,
        )
        self._deadline = threading.Timer(DEADLINE_S, self.process.kill)
        self._deadline.start()

    def wait_for(self, name: str) -> None:
        """Let it go on up to the next event of that name, and leave it waiting there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if json.loads(line)["event"] == name:
                return
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        raise AssertionError(f"the process ended, or the deadline passed, before {name}")

    def finish(self) -> int:
        """Let it go on to its end; return its status."""
        self.process.communicate()
        return self.process.returncode

    def end(self) -> None:
        self._deadline.cancel()
        with self.process:
            self.process.kill()


@pytest.fixture
def lock_step() -> Iterator[Callable[[Study, Storage], LockStep]]:
    started: list[LockStep] = []

    def start(study: Study, storage: Storage) -> LockStep:
        started.append(LockStep(study, storage))
        return started[-1]

    yield start
    for each in started:
        each.end()


def test_one_process_at_a_time_and_what_a_killed_one_left_is_trained_again(
    lock_step: Callable[[Study, Storage], LockStep], uninterrupted: list[FrozenTrial], storage: Storage
) -> None:
    running = lock_step(STUDY, storage)
    running.wait_for("epoch_ended")
    assert TrialState.RUNNING in states(trials_of(storage))
    changed = study_of(**{**STUDY.resolved(), "search": {**STUDY.resolved()["search"], "trials": 11}})
    for study in (STUDY, changed):
        with pytest.raises(StudyBusyError, match=f"is being searched by process {running.process.pid}"):
            search(study, storage, extend=True)
    assert TrialState.RUNNING in states(trials_of(storage))
    assert json.loads(load_study(storage, "tiny").user_attrs["hpo:study"]) == STUDY.resolved()
    assert "hpo:changes" not in load_study(storage, "tiny").user_attrs

    running.process.send_signal(signal.SIGKILL)
    # Not reaped: where nobody does that, as in many containers, dead processes stay in the table.
    os.waitid(os.P_PID, running.process.pid, os.WEXITED | os.WNOWAIT)
    assert TrialState.RUNNING in states(trials_of(storage))
    events = search(STUDY, storage)
    assert any(isinstance(event, Note) and "of a process that ended" in event.text for event in events)
    check_whole(trials_of(storage), 10)
    assert params(trials_of(storage)) == params(uninterrupted)
    assert are_close(curves(trials_of(storage)), curves(uninterrupted))


def test_a_process_that_was_refused_does_not_disturb_the_first(
    lock_step: Callable[[Study, Storage], LockStep], storage: Storage
) -> None:
    study = study_of(training={"epochs": 1})
    running = lock_step(study, storage)
    running.wait_for("epoch_ended")
    with pytest.raises(StudyBusyError):
        search(study, storage)
    other = lock_step(study_of(name="other"), storage)
    other.wait_for("epoch_ended")
    assert running.finish() == 0
    assert other.finish() == 0
    for name in ("tiny", "other"):
        check_whole(trials_of(storage, name), 6)
        assert load_study(storage, name).user_attrs["hpo:process"] is None


def test_a_process_number_that_was_used_before_does_not_block(storage: Storage) -> None:
    study = study_of(training={"epochs": 1})
    search(study, storage, stop_at=after_epochs(1))
    stored = load_study(storage, "tiny")
    stored.set_user_attr("hpo:process", {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0})
    search(study, storage)
    check_whole(trials_of(storage), 6)


def test_a_launch_within_a_launch_is_refused(storage: Storage) -> None:
    study = study_of(training={"epochs": 1})
    refused: list[str] = []

    def again(event: Event) -> None:
        if isinstance(event, EpochEnded) and not refused:
            with pytest.raises(StudyBusyError) as caught:
                search(study, storage)
            refused.append(str(caught.value))

    launch(study, storage, device="cpu", on_event=again, stop=threading.Event())
    assert len(refused) == 1
    check_whole(trials_of(storage), 6)
