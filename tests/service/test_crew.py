"""Tests of `hpo launch --workers N` with real processes: killed workers, stops, a killed launch."""

from __future__ import annotations

import json
import signal
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from deadlines import wait_for
from optuna.trial import FrozenTrial, TrialState
from ray_cluster import wait_until_gone
from tiny import check_whole, search, states, study_of, trials_of, write_mnist
from worker_threads import Process, ThreadCrew

import hpo
from hpo.errors import StudyClosedError, UsageError
from hpo.results.reproduce.verify import verify
from hpo.search.events import Event, StudyEnded, StudyStarted, WorkersSeen
from hpo.search.launch import submit
from hpo.search.options import LaunchOptions
from hpo.service import launching
from hpo.service import queue_control as control
from hpo.service.crew import crew
from hpo.service.worker import WorkerOptions
from hpo.storage import (
    ATTEMPTS,
    Storage,
    StudyState,
    figures_record,
    load_study,
    running_trials,
    set_state,
    study_names,
    summary,
)
from hpo.studyfile import Study, parse_study

Start = Callable[..., Process]

PATIENT = """
import multiprocessing, sys
from hpo.cli import main
from hpo.service.crew import local as local_crew

local_crew.SPAWN = multiprocessing.get_context(sys.argv[1])  # forks of a process with torch start in milliseconds
local_crew.RESTART_AFTER_S, local_crew.STOP_S = map(float, sys.argv[2:4])
sys.exit(main(sys.argv[4:]))
"""
"""`hpo` with a start method for its workers, and with RESTART_AFTER_S and STOP_S as arguments."""

FIRM = """
from multiprocessing.process import BaseProcess
import psutil

wait_for = BaseProcess.join

def join(process, timeout=None):
    hangs = timeout is not None and psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    wait_for(process, 0.1 if hangs else timeout)

BaseProcess.join = join
"""
"""Crew that waits for a suspended worker only shortly."""

IMAGES_GO = """
import os
from hpo.service.crew.local import LocalCrew

enter = LocalCrew.__enter__

def without_images(crew):
    os.rename(os.environ["HPO_DATA_DIR"] + "/mnist", os.environ["HPO_DATA_DIR"] + "/gone")
    return enter(crew)

LocalCrew.__enter__ = without_images
"""
"""Images that are deleted after the study is checked, before its workers load them."""

HELD = """
import os, time
from hpo.training.stack import Stack

train = Stack.epoch

def epoch(stack, number):
    while not os.path.exists(os.environ["GO"]):
        time.sleep(0.01)
    return train(stack, number)

Stack.epoch = epoch
"""
"""Workers whose epochs wait for a file, so that a test can act during an epoch."""

FOR_EVER_S = 1e6

SHORT = study_of(training={"epochs": 5}, search={"trials": 12, "population": 2})
LONG = study_of(training={"epochs": 150}, search={"trials": 8, "population": 2})
ENDLESS = study_of(training={"epochs": 1_000_000}, search={"trials": 8, "population": 2})


pytestmark = pytest.mark.usefixtures("looks_often")


@pytest.fixture
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll often enough to see the progress of a fast worker."""
    monkeypatch.setattr(crew, "POLL_S", 0.02)


@pytest.fixture
def launch(start: Start, storage: Storage, tmp_path: Path) -> Start:
    """Launch a study with two workers and this RESTART_AFTER_S."""

    def begin(
        study: Study, *args: str, by: str = "fork", young: float = FOR_EVER_S, script: str = "", **environment: str
    ) -> Process:
        file = tmp_path / "study.toml"
        file.write_text(str(hpo.read(study.resolved())))
        command = ("launch", str(file), "--workers", "2", "--device", "cpu", "--storage", storage.location.full_url)
        return start(by, str(young), str(FOR_EVER_S), *command, *args, script=script + PATIENT, **environment)

    return begin


def workers_at_work(storage: Storage, count: int) -> list[psutil.Process]:
    """Wait until `count` processes have claimed trials, and return them."""

    def look() -> set[int] | None:
        pids = {trial.worker.pid for trial in running_trials(storage) if trial.worker and not trial.orphaned}
        return pids if len(pids) >= count else None

    return [psutil.Process(pid) for pid in sorted(wait_for(look))]


def suspend(processes: Sequence[psutil.Process], storage: Storage) -> None:
    """Suspend processes while none of them is writing, which would block the database."""
    assert storage.location.file is not None
    with closing(sqlite3.connect(storage.location.file, timeout=60.0, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        for process in processes:
            process.suspend()


@pytest.mark.slow
def test_a_launch_in_a_pipe_prints_the_progress_of_its_workers(launch: Start, storage: Storage) -> None:
    running = launch(SHORT, by="spawn")
    assert running.status() == 0
    check_whole(trials_of(storage), 12)
    assert running.out == []
    assert running.err[0].startswith("tiny: 12 trials, 2 at once on 2 workers in float64")
    ended = next(number for number, line in enumerate(running.err) if line.startswith("tiny: finished, 12 completed"))
    assert any("/12 trials" in line for line in running.err[1:ended]), running.err
    drawn = figures_record(storage, summary(storage, "tiny").study_id)  # the dashboard's figures
    assert drawn is not None
    assert drawn.trials == 12


def test_workers_share_a_study_killed_ones_are_restarted_and_the_launch_shows_progress(
    launch: Start, storage: Storage, tmp_path: Path
) -> None:
    running = launch(SHORT, "--json", young=0.0, script=HELD, GO=str(tmp_path / "go"))
    first, second = workers_at_work(storage, 2)
    wait_for(lambda: any(len(each["workers"]) == 2 for each in running.events("workers_seen")), lambda: running.out)
    first.kill()
    running.said_in_a_note(f"worker process {first.pid} was killed (SIGKILL); it is restarted")
    second.terminate()  # by whom it may be: it hands back, and has no successor
    (tmp_path / "go").touch()
    assert running.status() == 0
    trials = trials_of(storage)
    check_whole(trials, 12)
    attempts = [attempt for trial in trials for attempt in trial.system_attrs.get(ATTEMPTS, [])]
    assert [attempt["ended"] for attempt in attempts] == ["died"] * 2  # of the first worker's population

    events = [json.loads(line) for line in running.out]
    assert (events[0]["event"], events[0]["trials"], events[0]["population"]) == ("study_started", 12, 2)
    assert (events[-1]["event"], events[-1]["reason"], events[-1]["completed"]) == ("study_ended", "finished", 12)
    assert sum(event["completed"] for event in running.events("others_ended")) == 12
    looks = running.events("workers_seen")
    pids = {int(worker["worker"].rpartition(":")[2]) for look in looks for worker in look["workers"]}
    assert {first.pid, second.pid} <= pids
    assert max(worker["epoch"] for look in looks for worker in look["workers"]) <= 5
    assert running.err[0].startswith("tiny: finished, 12 completed")


def test_workers_killed_at_their_start_are_not_restarted_and_without_any_the_launch_fails(
    launch: Start, storage: Storage
) -> None:
    running = launch(ENDLESS)
    first, second = workers_at_work(storage, 2)
    first.kill()
    running.said(f"worker process {first.pid} was killed (SIGKILL) as it started")
    assert running.process.poll() is None
    second.kill()
    assert running.status() == 1
    errors = [line for line in running.err if line.startswith("hpo: ")]
    assert len(errors) == 1
    assert "was killed (SIGKILL)" in errors[0]
    assert "Traceback" not in "\n".join(running.err)
    assert all(trial.orphaned for trial in running_trials(storage))


def test_ctrl_c_requeues_unfinished_trials_and_kills_hanging_workers(launch: Start, storage: Storage) -> None:
    running = launch(ENDLESS, script=FIRM)
    hanging, other = workers_at_work(storage, 2)
    suspend([hanging], storage)
    running.ctrl_c()
    assert running.status() == 130
    wait_until_gone([hanging, other])
    found = states(trials_of(storage))
    assert sorted(found) == [TrialState.RUNNING] * 2 + [TrialState.WAITING] * 2
    assert {trial.worker.pid for trial in running_trials(storage) if trial.worker and trial.orphaned} == {hanging.pid}
    assert "Traceback" not in "\n".join(running.err)
    assert any(line.startswith("tiny: interrupted, 0 completed") for line in running.err)


def test_a_second_ctrl_c_ends_the_launch_at_once(launch: Start, storage: Storage) -> None:
    running = launch(ENDLESS)
    processes = workers_at_work(storage, 2)
    suspend(processes, storage)  # nothing of theirs will end by itself any more
    running.ctrl_c()
    wait_for(lambda: all(signal_is_pending(process.pid, signal.SIGTERM) for process in processes))
    running.ctrl_c()
    assert running.status() == 130
    wait_until_gone(processes)


def signal_is_pending(pid: int, number: signal.Signals) -> bool:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask & 1 << (number - 1) for mask in masks)


def test_workers_whose_launch_was_killed_stop_by_themselves(launch: Start, storage: Storage) -> None:
    running = launch(ENDLESS)
    processes = workers_at_work(storage, 2)
    running.process.kill()
    wait_until_gone(processes)
    assert set(states(trials_of(storage))) == {TrialState.WAITING}
    assert running_trials(storage) == []


def launch_here(study: Study, storage: Storage, act: Callable[[], object] = lambda: None) -> list[Event]:
    """Launch with a worker in a thread, act when it has claimed trials, and return the events."""
    events: list[Event] = []
    left = [act]

    def take(event: Event) -> None:
        events.append(event)
        if isinstance(event, WorkersSeen) and any(worker.members for worker in event.workers) and left:
            left.pop()()

    worker = ThreadCrew(storage, WorkerOptions(("tiny",), "cpu", 1, until_idle=True))
    crew.launch_with(study, storage, worker, on_event=take, stop=threading.Event())
    return events


@pytest.mark.parametrize(
    ("act", "reason"), [(control.pause, "paused"), (control.stop, "stopped"), (control.delete, "deleted")]
)
def test_a_launch_ends_when_its_study_is_paused_stopped_or_deleted(
    storage: Storage, act: Callable[[Storage, str], str], reason: str
) -> None:
    events = launch_here(LONG, storage, lambda: act(storage, "tiny"))
    assert isinstance(events[0], StudyStarted)
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == reason
    if reason != "deleted":
        assert TrialState.RUNNING not in states(trials_of(storage))


def test_a_study_with_all_its_trials_is_launched_again_without_training(storage: Storage) -> None:
    search(SHORT, storage)
    events = launch_here(SHORT, storage)
    assert isinstance(events[0], StudyStarted)
    assert (events[0].finished, events[0].trials) == (12, 12)
    assert isinstance(events[-1], StudyEnded)
    assert (events[-1].reason, events[-1].completed) == ("finished", 12)


def test_two_workers_share_the_rungs_of_halving_and_the_launch_shows_frozen_trials(
    launch: Start, storage: Storage
) -> None:
    # Long enough that the launch looks at the workers, once a second, while trials are frozen.
    study = study_of(
        training={"epochs": 50}, search={"trials": 16, "population": 2, "pruner": "halving", "rung": 10, "factor": 2}
    )
    running = launch(study, "--json")
    assert running.status() == 0
    found = trials_of(storage)
    check_whole(found, 16)
    assert set(states(found)) == {TrialState.COMPLETE, TrialState.PRUNED}
    assert any(event["counts"] for event in running.events("frozen_trials"))
    assert running.events("frozen_trials")[-1]["counts"] == []
    seen = [worker for event in running.events("workers_seen") for worker in event["workers"]]
    assert any(worker["frozen"] for worker in seen)
    assert max(worker["members"] for worker in seen) <= 2
    ended = running.events("others_ended")
    assert sum(event["completed"] + event["pruned"] for event in ended) == 16
    (last,) = running.events("study_ended")
    assert (last["reason"], last["completed"], last["pruned"]) == ("finished", *counts_of(found))
    certificate = verify(storage, "tiny", 16, "cpu", threading.Event(), lambda text: None)
    assert len(certificate["trials"]) == last["completed"]
    assert max(certificate["largest"].values()) < 1e-9
    unpruned = {trial.number: trial for trial in alone(study, storage)}
    complete = [trial for trial in found if trial.state == TrialState.COMPLETE]
    assert [trial.value for trial in complete] == [unpruned[trial.number].value for trial in complete]


def counts_of(trials: Sequence[FrozenTrial]) -> tuple[int, int]:
    """Return the numbers of completed and pruned trials."""
    return states(trials).count(TrialState.COMPLETE), states(trials).count(TrialState.PRUNED)


def alone(study: Study, storage: Storage) -> list[FrozenTrial]:
    """Launch the study without workers and without a pruner, under another name; return its trials."""
    unpruned = study.resolved()
    unpruned["name"], unpruned["search"]["pruner"] = "alone", "none"
    search(parse_study(unpruned, "alone.toml"), storage)
    return trials_of(storage, "alone")


def test_precision_auto_is_announced_as_the_precision_that_is_used(storage: Storage) -> None:
    study = study_of(training={"precision": "auto"}, search={"trials": 2})
    events = launch_here(study, storage)
    assert isinstance(events[0], StudyStarted)
    assert events[0].precision != "auto"


@pytest.mark.parametrize("state", [StudyState.PAUSED, StudyState.STOPPED])
@pytest.mark.parametrize("begin", [search, launch_here], ids=["alone", "crew"])
def test_launching_a_closed_study_is_refused(
    storage: Storage, begin: Callable[[Study, Storage], object], state: StudyState
) -> None:
    submit(SHORT, storage)
    set_state(storage, summary(storage, "tiny").study_id, state)
    with pytest.raises(StudyClosedError, match="go on with `hpo resume tiny`"):
        begin(SHORT, storage)
    assert trials_of(storage) == []


def test_an_error_of_every_worker_is_printed_once(launch: Start, storage: Storage, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_mnist(data / "mnist")
    study = study_of(data={"dataset": "mnist", "train_size": 40})
    running = launch(study, script=IMAGES_GO, HPO_DATA_DIR=str(data), XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert running.status() == 1
    assert load_study(storage, "tiny").get_trials() == []
    assert "Traceback" not in "\n".join(running.err)
    said = [line for line in running.err if "hpo data fetch mnist" in line]
    assert len(said) == 1, said
    assert running.err[-1].startswith("hpo: ")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"device": "cuda:99", "workers": 2}, "--device cuda:99: "),
        ({"device": "auto", "workers": 2, "gpus_per_worker": 0.5}, "--gpus-per-worker: works with --ray only"),
        ({"device": "cpu", "ray": "local"}, "--device: Ray chooses"),
    ],
)
def test_conflicting_options_are_refused_before_anything_is_stored(
    storage: Storage, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UsageError, match=f"^{problem}"):
        launching.launch(SHORT, storage, LaunchOptions(**options), on_event=print, stop=threading.Event())
    assert study_names(storage) == []
