"""Tests of a worker: the order of studies, studies that it skips, stops, and changes of a running study."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from deadlines import wait_for
from idle_processes import IdleProcess, age_heartbeats
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from tiny import check_whole, states, study_of, trials_of, write_mnist
from worker_threads import WorkerThread, notes, populations, work_here, worker_thread

from hpo.errors import DataError, UnknownStudyError, UsageError
from hpo.search import driver as drivers
from hpo.search.events import EpochEnded, Event, PopulationEnded, PopulationStarted, StudyEnded, StudyStarted
from hpo.search.launch import submit
from hpo.search.options import LaunchOptions
from hpo.service import queue_control as control
from hpo.service import worker as working
from hpo.service.dashboard import figures
from hpo.service.status import status
from hpo.service.worker import WorkerOptions, work
from hpo.storage import (
    Storage,
    StudyState,
    connections,
    figures_record,
    heartbeats,
    open_storage,
    rename_study,
    running_trials,
    set_state,
    state_of,
    summary,
)
from hpo.storage.workers import Worker
from hpo.training import trainer
from hpo.training.population import EpochResult
from hpo.training.stack import Member

pytestmark = pytest.mark.usefixtures("no_figures")

UNTIL_STOPPED = WorkerOptions(device="cpu", threads=1)
UNTIL_IDLE = WorkerOptions(device="cpu", threads=1, until_idle=True)
UPDATE_FIGURES = figures.update_figures
TRIES = 50
"""More polls than any search of these tests makes."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working, "POLL_S", 0.02)


def put(storage: Storage, name: str = "tiny", priority: int | None = None, **changes: Any) -> int:
    """Submit a study of that name, and return its id."""
    submit(study_of(name=name, **changes), storage, LaunchOptions(priority=priority))
    return summary(storage, name).study_id


def holding(storage: Storage, worker: Worker, study_id: int, count: int) -> list[FrozenTrial]:
    """Claim `count` new trials for a worker."""
    storage.worker = worker
    template = optuna.trial.create_trial(
        state=TrialState.RUNNING,
        params={"lr": 0.1},
        distributions={"lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)},
        user_attrs={"seed": 1},
    )
    return storage.create_trials(study_id, [template] * count)


def at_first(kind: type[Event], study: str, act: Callable[[], object]) -> Callable[[str, Event], None]:
    """Act when the first such event of the study happens."""
    left = [act]

    def listen(name: str, event: Event) -> None:
        if isinstance(event, kind) and name == study and left:
            left.pop()()

    return listen


def endings(happened: Sequence[tuple[str, Event]]) -> list[tuple[str, str]]:
    return [(study, event.reason) for study, event in happened if isinstance(event, StudyEnded)]


# Which study, and when.


def test_the_highest_priority_goes_first_and_equals_take_turns(storage: Storage) -> None:
    for name, priority in (("a", 0), ("b", None), ("urgent", 5), ("last", -1)):
        put(storage, name, priority)
    happened = work_here(storage)
    assert populations(happened) == ["urgent", "urgent", "a", "b", "a", "b", "last", "last"]
    assert sorted(endings(happened)) == [(name, "finished") for name in ("a", "b", "last", "urgent")]
    for name in ("a", "b", "urgent", "last"):
        check_whole(trials_of(storage, name), 6)


@pytest.mark.parametrize(("room", "entered"), [(working.CACHED_BYTES, 1), (0, 3)], ids=["room", "none"])
def test_searches_are_cached_while_their_data_fits(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, room: int, entered: int
) -> None:
    monkeypatch.setattr(working, "CACHED_BYTES", room)
    names = [f"s{number}" for number in range(6)]
    for name in names:
        put(storage, name)
    happened = work_here(storage)
    assert populations(happened) == [*names, *names]
    starts = Counter(study for study, event in happened if isinstance(event, StudyStarted))
    assert starts == dict.fromkeys(names, entered)  # without room: for each population, and to note the end


def test_a_later_study_with_higher_priority_interrupts_another(storage: Storage) -> None:
    put(storage, "a", search={"trials": 12})
    happened = work_here(storage, on_event=at_first(EpochEnded, "a", lambda: put(storage, "b", 1)))
    assert populations(happened) == ["a", "b", "b", "a", "a"]


def test_a_priority_that_changes_counts_from_the_next_population_on(storage: Storage) -> None:
    put(storage, "a", search={"trials": 8})
    put(storage, "b", search={"trials": 8})
    happened = work_here(
        storage, on_event=at_first(EpochEnded, "a", lambda: put(storage, "a", 3, search={"trials": 8}))
    )
    assert populations(happened) == ["a", "a", "b", "b"]


def test_of_equals_the_one_with_the_fewest_workers_goes_first(
    storage: Storage, open_again: Callable[[], Storage], idle_process: Callable[[], IdleProcess], quick: None
) -> None:
    crowded = put(storage, "a")
    put(storage, "b", search={"trials": 8})
    other = idle_process()
    holding(open_again(), other.worker(), crowded, 3)
    happened = work_here(storage, on_event=lambda study, event: other.kill() if study == "a" else None)
    assert populations(happened)[:2] == ["b", "b"]
    check_whole_but_params(trials_of(storage, "a"), 6)


def check_whole_but_params(trials: Sequence[FrozenTrial], count: int) -> None:
    assert [trial.number for trial in trials] == list(range(count))
    assert set(states(trials)) == {TrialState.COMPLETE}


def test_only_the_studies_that_are_named(storage: Storage) -> None:
    for name in ("a", "b", "c"):
        put(storage, name)
    happened = work_here(storage, WorkerOptions(("c", "a"), "cpu", 1, until_idle=True))
    assert set(populations(happened)) == {"a", "c"}
    assert trials_of(storage, "b") == []


def test_a_named_study_is_trained_after_it_was_renamed(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "update_figures", UPDATE_FIGURES)
    study_id = put(storage, "a")
    rename = at_first(PopulationStarted, "a", lambda: rename_study(storage, study_id, "renamed"))
    happened = work_here(storage, WorkerOptions(("a",), "cpu", 1, until_idle=True), rename)
    assert populations(happened) == ["a", "renamed"]
    assert endings(happened) == [("renamed", "finished")]
    check_whole(trials_of(storage, "renamed"), 6)
    assert figures_record(storage, study_id) is not None


def test_an_unknown_study_is_refused_before_training(storage: Storage) -> None:
    put(storage, "tiny")
    with pytest.raises(UnknownStudyError, match="did you mean 'tiny'"):
        work(
            storage,
            WorkerOptions(("tiny", "tinny"), "cpu", 1, until_idle=True),
            lambda study, event: None,
            threading.Event(),
        )
    assert trials_of(storage) == []


def test_a_missing_device_is_refused_before_training(storage: Storage) -> None:
    with pytest.raises(UsageError, match="--device cudaa"):
        work_here(storage, WorkerOptions(device="cudaa", threads=1, until_idle=True))


def test_plain_optuna_studies_are_not_trained(storage: Storage) -> None:
    plain = optuna.create_study(storage=storage, study_name="plain")
    plain.ask()
    plain.enqueue_trial({"x": 1.0})
    put(storage)
    assert set(populations(work_here(storage))) == {"tiny"}
    assert states(plain.get_trials()) == [TrialState.RUNNING, TrialState.WAITING]


@pytest.mark.parametrize("damaged", ["{}", "not JSON", {"search": {}}], ids=["empty", "no JSON", "no text"])
def test_a_study_whose_file_cannot_be_read_does_not_keep_the_others_from_being_trained(
    storage: Storage, damaged: Any
) -> None:
    storage.create_study("damaged", [StudyDirection.MAXIMIZE], {"hpo:study": damaged})
    put(storage)
    worker = WorkerThread(storage, UNTIL_STOPPED)
    try:
        wait_for(lambda: worker.error or (len(trials_of(storage)) == 6 and all(ended(trials_of(storage)))))
    finally:
        worker.end()
    check_whole(trials_of(storage), 6)


def ended(trials: Sequence[FrozenTrial]) -> list[bool]:
    return [trial.state.is_finished() for trial in trials]


# Waiting, and being told to stop.


def test_a_worker_waits_for_studies(storage: Storage, quick: None) -> None:
    with worker_thread(storage, UNTIL_STOPPED) as worker:
        put(storage, "a")
        wait_for(lambda: ("a", "finished") in endings(worker.happened), lambda: worker.happened)
        put(storage, "b")
        wait_for(lambda: ("b", "finished") in endings(worker.happened), lambda: worker.happened)
    check_whole(trials_of(storage, "a"), 6)
    check_whole(trials_of(storage, "b"), 6)


def test_a_stop_ends_the_current_epoch_and_requeues_the_trials(storage: Storage) -> None:
    put(storage, training={"epochs": 500})
    stop = threading.Event()
    happened = work_here(storage, UNTIL_STOPPED, at_first(EpochEnded, "tiny", stop.set), stop)
    assert sum(isinstance(event, EpochEnded) for _, event in happened) == 1
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4
    assert (running_trials(storage), storage.claimed_ids) == ([], set())


def test_a_stop_during_the_last_epoch_keeps_the_finished_trials(storage: Storage) -> None:
    put(storage)
    stop = threading.Event()
    at_the_end = at_first(PopulationEnded, "tiny", stop.set)
    work_here(storage, UNTIL_STOPPED, at_the_end, stop)
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 4
    work_here(storage)
    check_whole(trials_of(storage), 6)


def test_a_worker_until_idle_waits_for_other_workers_and_takes_over_from_dead_ones(
    storage: Storage, open_again: Callable[[], Storage], idle_process: Callable[[], IdleProcess], quick: None
) -> None:
    study_id = put(storage)
    other = idle_process()
    holding(open_again(), other.worker(), study_id, 3)
    with worker_thread(storage, UNTIL_IDLE) as worker:
        wait_for(lambda: states(trials_of(storage)).count(TrialState.COMPLETE) == 3, lambda: worker.happened)
        assert endings(worker.happened) == []
        other.kill()
        worker.wait()
    check_whole_but_params(trials_of(storage), 6)
    assert endings(worker.happened) == [("tiny", "finished")]
    assert any("3 orphaned trials requeued" in note for note in notes(worker.happened))


def test_several_workers_share_a_study_and_end_with_exactly_its_trials(
    storage: Storage, open_again: Callable[[], Storage], idle_process: Callable[[], IdleProcess], quick: None
) -> None:
    put(storage, search={"trials": 20, "population": 2})
    put(storage, "b", search={"trials": 9, "population": 2})
    opened = [open_again() for _ in range(3)]
    for each in opened:
        each.worker = idle_process().worker()
    workers = [WorkerThread(each, UNTIL_IDLE) for each in opened]
    for worker in workers:
        worker.wait()
    check_whole(trials_of(storage), 20)
    check_whole(trials_of(storage, "b"), 9)
    done = [sum(event.completed for _, event in w.happened if isinstance(event, PopulationEnded)) for w in workers]
    assert sum(done) == 29
    assert state_of(summary(storage, "tiny").user_attrs) == StudyState.ENDED


def test_a_worker_waits_for_a_locked_file(storage: Storage, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup or a hanging disk may lock it; the worker must survive."""
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_S", 0.05)
    put(storage, training={"epochs": 50})
    impatient = open_storage(storage.location.full_url)
    with worker_thread(impatient, UNTIL_IDLE) as worker:
        wait_for(lambda: populations(worker.happened))
        with contextlib.closing(sqlite3.connect(str(storage.location.file), isolation_level=None)) as other:
            wait_for(lambda: is_locked_by(other))
            # Until the worker has met the lock: it cannot train on, and its time to wait is over.
            worker.join(20 * connections.BUSY_TIMEOUT_S)
            other.execute("ROLLBACK")
        worker.wait()
    impatient.close()
    check_whole(trials_of(storage), 6)


def is_locked_by(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


# What cannot be trained.


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with MNIST's training files; renaming it makes them missing."""
    write_mnist(tmp_path / "data" / "mnist")
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data" / "mnist"


def test_a_study_without_its_images_is_skipped_and_others_are_trained(storage: Storage, images: Path) -> None:
    put(storage, "a", 1, data={"dataset": "mnist", "train_size": 40})
    put(storage, "b")
    images.rename(images.with_name("gone"))
    happened: list[tuple[str, Event]] = []
    with pytest.raises(DataError, match="mnist"):
        work(storage, UNTIL_IDLE, lambda *event: happened.append(event), threading.Event())
    assert set(populations(happened)) == {"b"}
    assert [study for study, event in happened if study == "a"] == ["a"]
    assert notes(happened)[0].endswith("this worker skips the study for 60 s")
    check_whole(trials_of(storage, "b"), 6)
    assert state_of(summary(storage, "a").user_attrs) == StudyState.OPEN


def test_a_skipped_study_is_tried_again_later(
    storage: Storage, images: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "SKIP_S", 0.05)
    put(storage, data={"dataset": "mnist", "train_size": 40})
    images.rename(images.with_name("gone"))
    with worker_thread(storage, UNTIL_STOPPED) as worker:
        wait_for(lambda: len(notes(worker.happened)) > 1, lambda: worker.happened)
        images.with_name("gone").rename(images)
        wait_for(lambda: endings(worker.happened), lambda: worker.happened)
    check_whole(trials_of(storage), 6)


def test_changed_images_are_not_trained_on(storage: Storage, images: Path) -> None:
    put(storage, data={"dataset": "mnist", "train_size": 40})
    write_mnist(images, seed=1)
    with pytest.raises(Exception, match="not those that the study was created with"):
        work_here(storage)
    assert trials_of(storage) == []


class Raising(trainer.Trainer):
    """Trainer that raises the same error in the first epoch of every population."""

    def train(self, members: Sequence[Member], spent_s: float = 0.0) -> Generator[EpochResult, Collection[int], None]:
        yield from ()
        raise RuntimeError("the network's own\nmistake")


def test_a_study_whose_training_raises_three_times_is_stopped_with_the_reason(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(storage, "bad", 1, data={"train_size": 150}, search={"trials": 40})
    put(storage, "good", data={"train_size": 100})
    bad_images = len(drivers.plan(study_of(data={"train_size": 150}), "cpu").split.train)
    monkeypatch.setattr(
        drivers,
        "Trainer",
        lambda split, *rest, **named: (Raising if len(split.train) == bad_images else trainer.Trainer)(
            split, *rest, **named
        ),
    )
    happened = work_here(storage)
    found = {study.name: study for study in status(storage).studies}
    assert found["bad"].state == "stopped"
    assert "RuntimeError: the network's own mistake" in found["bad"].why
    assert populations(happened).count("bad") == 3
    assert sum(found["bad"].counts.values()) <= 12
    assert TrialState.RUNNING not in states(trials_of(storage, "bad"))
    check_whole(trials_of(storage, "good"), 6)
    (said,) = [note for note in notes(happened) if "is stopped" in note]
    assert "hpo resume" in said, "launching a study that is stopped is refused: it has to be resumed"
    assert "launch again" not in said


# What changes under a worker's hands.


def test_a_study_extended_while_a_worker_waits_is_trained_as_changed(storage: Storage, quick: None) -> None:
    put(storage)
    wider = study_of(optimizer={"lr": {"low": 2.0, "high": 4.0, "log": True}}, search={"trials": 9})
    with worker_thread(storage, UNTIL_STOPPED) as worker:
        wait_for(lambda: len(endings(worker.happened)) == 1, lambda: worker.happened)
        submit(wider, storage, LaunchOptions(extend=True))
        wait_for(lambda: len(endings(worker.happened)) == 2, lambda: worker.happened)
    trials = trials_of(storage)
    check_whole(trials, 9)
    assert all(trial.params["lr"] <= 1.0 for trial in trials[:6])
    assert all(trial.params["lr"] >= 2.0 for trial in trials[6:])


def test_a_study_changed_while_its_search_is_cached_is_trained_as_changed(storage: Storage, quick: None) -> None:
    study_id = put(storage, search={"trials": 8})
    wider = study_of(optimizer={"lr": {"low": 2.0, "high": 4.0, "log": True}}, search={"trials": 8})

    def change() -> None:
        control.pause(storage, "tiny")
        submit(wider, storage, LaunchOptions(extend=True))
        set_state(storage, study_id, StudyState.OPEN)

    happened = work_here(storage, on_event=at_first(PopulationEnded, "tiny", change))
    trials = trials_of(storage)
    check_whole(trials, 8)
    assert [trial.params["lr"] >= 2.0 for trial in trials] == [False] * 4 + [True] * 4
    assert [event.finished for _, event in happened if isinstance(event, StudyStarted)] == [0, 4]
    assert endings(happened) == [("tiny", "finished")]


def test_pausing_requeues_the_trials_and_the_worker_trains_others(storage: Storage) -> None:
    put(storage, "a", 1, training={"epochs": 400})
    put(storage, "b")
    happened = work_here(storage, on_event=at_first(EpochEnded, "a", lambda: control.pause(storage, "a")))
    assert states(trials_of(storage, "a")) == [TrialState.WAITING] * 4
    check_whole(trials_of(storage, "b"), 6)
    epochs = [event for study, event in happened if study == "a" and isinstance(event, EpochEnded)]
    assert len(epochs) <= 3


@pytest.mark.parametrize("closing", [control.pause, control.delete])
def test_the_note_of_trials_that_a_user_requeued_blames_no_other_process(
    storage: Storage, closing: Callable[[Storage, str], str]
) -> None:
    put(storage, training={"epochs": 400})
    happened = work_here(storage, on_event=at_first(EpochEnded, "tiny", lambda: closing(storage, "tiny")))
    assert not [note for note in notes(happened) if "given to another process" in note]


def test_stopping_finishes_the_running_trials_and_starts_none(storage: Storage) -> None:
    put(storage, search={"trials": 12})
    work_here(storage, on_event=at_first(EpochEnded, "tiny", lambda: control.stop(storage, "tiny")))
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 4
    control.resume(storage, "tiny")
    work_here(storage)
    check_whole(trials_of(storage), 12)


def test_a_study_deleted_during_training_is_dropped_and_others_are_trained(storage: Storage) -> None:
    put(storage, "a", 1, training={"epochs": 400})
    put(storage, "b")
    happened = work_here(storage, on_event=at_first(EpochEnded, "a", lambda: control.delete(storage, "a")))
    assert populations(happened) == ["a", "b", "b"]
    assert [study.name for study in status(storage).studies] == ["b"]
    assert storage.claimed_ids == set()
    check_whole(trials_of(storage, "b"), 6)


def test_a_study_deleted_between_two_populations_is_dropped(
    storage: Storage, open_again: Callable[[], Storage]
) -> None:
    put(storage, "a", 1)
    put(storage, "b")
    other = open_again()
    work_here(storage, on_event=at_first(PopulationEnded, "a", lambda: control.delete(other, "a")))
    check_whole(trials_of(storage, "b"), 6)


def test_a_study_deleted_while_its_search_begins_is_no_error(
    storage: Storage, open_again: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(storage, "a", 1)
    put(storage, "b")
    other, look = open_again(), working.running_trials
    left = ["a"]

    def look_and_delete(*arguments: Any) -> Any:
        if left:
            control.delete(other, left.pop())
        return look(*arguments)

    monkeypatch.setattr(working, "running_trials", look_and_delete)
    work_here(storage)
    check_whole(trials_of(storage, "b"), 6)


def test_a_study_closed_and_deleted_while_its_search_begins_is_no_error(
    storage: Storage, open_again: Callable[[], Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(storage, "a", 1, search={"trials": 8})
    put(storage, "b")
    other = open_again()

    def close(*arguments: Any) -> Any:
        """Its search finds it deleted: the worker has it at hand from the population before."""
        control.delete(other, "a")
        monkeypatch.undo()
        return running_trials(*arguments)

    def at_the_end() -> None:
        monkeypatch.setattr(working, "running_trials", close)

    happened = work_here(storage, on_event=at_first(PopulationEnded, "a", at_the_end))
    assert ("a", "deleted") in endings(happened)
    check_whole(trials_of(storage, "b"), 6)


@pytest.mark.parametrize("moment", [EpochEnded, PopulationEnded])
def test_a_study_that_is_deleted_and_submitted_anew_is_trained_as_a_new_one(
    storage: Storage, open_again: Callable[[], Storage], moment: type[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(storage)
    other, create, in_vain = open_again(), storage.create_trials, [0]

    def counting(*arguments: Any) -> list[FrozenTrial]:
        created = create(*arguments)
        in_vain[0] += not created
        assert in_vain[0] < TRIES, "the worker asks for trials under numbers that will never be free"
        return created

    def anew() -> None:
        control.delete(other, "tiny")
        submit(study_of(), other)

    monkeypatch.setattr(storage, "create_trials", counting)
    work_here(storage, on_event=at_first(moment, "tiny", anew))
    check_whole(trials_of(storage), 6)
    assert {"hpo:run", "hpo:study"} <= summary(storage, "tiny").user_attrs.keys()


# A study's own limits.


def test_a_study_past_its_timeout_ends_and_others_are_trained(storage: Storage) -> None:
    put(storage, "a", 1, search={"timeout": 1e-3})
    put(storage, "b")
    happened = work_here(storage)
    assert ("a", "timeout") in endings(happened)
    assert (status(storage, "a").studies[0].state, status(storage, "a").studies[0].why) == ("ended", "timeout")
    check_whole(trials_of(storage, "b"), 6)


def test_a_study_without_improvement_ends_and_extending_it_goes_on(storage: Storage) -> None:
    flat = {"lr": {"low": 1e-12, "high": 1e-11, "log": True}}
    put(storage, optimizer=flat, search={"trials": 40, "patience": 4})
    assert endings(work_here(storage)) == [("tiny", "no improvement")]
    count = len(trials_of(storage))
    assert count < 40
    submit(study_of(optimizer=flat, search={"trials": count + 2, "patience": 100}), storage, LaunchOptions(extend=True))
    assert endings(work_here(storage)) == [("tiny", "finished")]
    assert len(trials_of(storage)) == count + 2


def test_a_study_whose_space_is_exhausted_ends(storage: Storage) -> None:
    put(storage, optimizer={"lr": {"choices": [0.1, 0.2, 0.3]}}, search={"trials": 9})
    happened = work_here(storage)
    assert endings(happened) == [("tiny", "space exhausted")]
    assert len(trials_of(storage)) == 3
    assert work_here(storage) == []


# The cores of the machine.


@pytest.fixture
def eight_cores() -> None:
    torch.set_num_threads(8)


def threads_of(storage: Storage, threads: int | None = None) -> set[int]:
    """Return the number of threads of a worker's populations."""
    seen: set[int] = set()

    def look(study: str, event: Event) -> None:
        if isinstance(event, PopulationStarted):
            seen.add(torch.get_num_threads())

    work_here(storage, WorkerOptions(device="cpu", threads=threads, until_idle=True), look)
    assert seen
    return seen


def test_a_worker_alone_has_all_cores(storage: Storage, eight_cores: None) -> None:
    put(storage)
    assert threads_of(storage) == {8}


@pytest.mark.parametrize(("others", "share"), [(1, 4), (2, 2), (7, 1), (9, 1)])
def test_workers_of_a_machine_share_its_cores(
    storage: Storage,
    open_again: Callable[[], Storage],
    idle_process: Callable[[], IdleProcess],
    eight_cores: None,
    others: int,
    share: int,
) -> None:
    put(storage)
    registered = []
    for _ in range(others):
        other = open_again()
        other.worker = idle_process().worker()
        registered.append(heartbeats(other))
        registered[-1].__enter__()
    try:
        assert threads_of(storage) == {share}
    finally:
        for each in registered:
            each.__exit__(None, None, None)


def test_ended_dead_silent_and_remote_workers_get_no_share_of_the_cores(
    storage: Storage, open_again: Callable[[], Storage], idle_process: Callable[[], IdleProcess], eight_cores: None
) -> None:
    put(storage)
    gone, dead, silent, elsewhere = (open_again() for _ in range(4))
    with heartbeats(gone):
        pass
    dying = idle_process()
    dead.worker = dying.worker()
    silent.worker = idle_process().worker()
    elsewhere.worker = Worker("elsewhere", 1, 0.0, "another place", machine="another machine")
    with heartbeats(dead), heartbeats(silent), heartbeats(elsewhere):
        dying.kill()
        silence_in_registry(storage, silent.worker)
        assert threads_of(storage) == {8}


def silence_in_registry(storage: Storage, worker: Worker) -> None:
    """Set a process's last heartbeat to an hour ago."""
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE hpo_workers SET seen = datetime(seen, '-1 hour') WHERE worker_key = ?", (worker.key,)
        )


def test_a_given_number_of_threads_is_used(storage: Storage, eight_cores: None) -> None:
    put(storage)
    assert threads_of(storage, 3) == {3}


def test_a_worker_is_registered_only_while_it_works(storage: Storage, quick: None) -> None:
    with worker_thread(storage, UNTIL_STOPPED):
        (known,) = wait_for(lambda: status(storage).workers)
        assert (known.study, known.population, known.lost) == ("", 0, "")
    assert status(storage).workers == ()


def test_a_worker_reports_what_it_stored(storage: Storage) -> None:
    put(storage)
    happened = work_here(storage)
    ends = Counter[str]()
    for _, event in happened:
        json.dumps(event.to_json(), allow_nan=False)
        if isinstance(event, PopulationEnded):
            ends += Counter({"complete": event.completed, "pruned": event.pruned, "failed": event.failed})
    counts = status(storage).studies[0].counts
    assert {word: count for word, count in counts.items() if count} == dict(+ends)


def test_trials_of_a_silent_worker_of_another_machine_are_taken_over(
    storage: Storage, open_again: Callable[[], Storage], quick: None
) -> None:
    study_id = put(storage)
    far = Worker("elsewhere", 1, 0.0, "another place", machine="another machine")
    held = holding(open_again(), far, study_id, 2)
    with worker_thread(storage, UNTIL_IDLE) as worker:
        wait_for(lambda: states(trials_of(storage)).count(TrialState.COMPLETE) == 4, lambda: worker.happened)
        age_heartbeats(storage, [trial._trial_id for trial in held])
        worker.wait()
    check_whole_but_params(trials_of(storage), 6)
