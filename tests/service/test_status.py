"""Tests of `hpo status`, as tables and JSON: studies in every state; busy, idle and dead workers."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from typing import Any

import optuna
import pytest
from idle_processes import IdleProcess, age_heartbeats
from optuna.distributions import FloatDistribution
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from rich.cells import cell_len
from tiny import study_of
from worker_threads import columns, work_here

from hpo.errors import HpoError, UnknownStudyError
from hpo.results.display.tables import studies_table
from hpo.search.launch import submit
from hpo.search.options import LaunchOptions
from hpo.service import queue_control as control
from hpo.service.status import Status, status
from hpo.storage import Storage, StudyState, TrialResult, heartbeats, open_storage, set_state, summary
from hpo.storage.workers import Worker

pytestmark = pytest.mark.usefixtures("no_figures")

LR = {"lr": FloatDistribution(1e-3, 1.0, log=True)}
FAR = Worker("elsewhere", 7, 0.0, "another place", "cuda:1 (NVIDIA H100)", "another machine")


@pytest.fixture
def far(storage: Storage) -> Iterator[Storage]:
    """Open the same storage as a worker of another machine."""
    opened = open_storage(storage.location.full_url)
    opened.worker = FAR
    yield opened
    opened.close()


def put(storage: Storage, name: str = "tiny", **changes: Any) -> int:
    submit(study_of(name=name, **changes), storage)
    return summary(storage, name).study_id


def hold(storage: Storage, study_id: int, count: int) -> list[int]:
    """Claim `count` new trials for the storage's worker; return their ids."""
    template = create_trial(state=TrialState.RUNNING, params={"lr": 0.1}, distributions=LR, user_attrs={"seed": 1})
    return [trial._trial_id for trial in storage.create_trials(study_id, [template] * count)]


def rows(text: str) -> list[dict[str, str]]:
    """Return the rows of both tables, by heading."""
    found = []
    for table in text.split("\n\n"):
        heading, *lines = table.splitlines()
        found += [dict(columns(line, heading)) for line in lines]
    return found


def as_json(found: Status) -> Any:
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


def test_a_storage_without_anything(storage: Storage) -> None:
    found = status(storage)
    assert as_json(found) == {"studies": [], "workers": []}
    assert found.text().splitlines()[0].split() == ["study", "state", "trials", "best", "pace", "left", "priority"]
    assert "hpo work" in found.text().splitlines()[-1]


def test_a_study_without_trials(storage: Storage) -> None:
    put(storage)
    (study,) = as_json(status(storage))["studies"]
    assert study == {
        "name": "tiny",
        "state": "open",
        "why": "",
        "priority": 0,
        "trials": 6,
        "counts": {"complete": 0, "pruned": 0, "failed": 0, "running": 0, "waiting": 0},
        "best": None,
        "per_second": None,
        "left_s": None,
        "frozen": {},
    }
    (row,) = rows(status(storage).text().split("\n\n")[0])
    assert row == {
        "study": "tiny", "state": "open", "trials": "none of 6", "best": "-", "pace": "-", "left": "-", "priority": "0"
    }  # fmt: skip


def test_a_running_study_has_a_worker_a_pace_and_time_left(storage: Storage, far: Storage) -> None:
    study_id = put(storage, search={"trials": 10})
    ids = hold(far, study_id, 5)
    far.report(1, {ids[0]: 0.1, ids[1]: 0.2})
    far.report(7, {ids[1]: 0.4})
    far.finish([TrialResult(ids[0], TrialState.COMPLETE, (0.5,)), TrialResult(ids[4], TrialState.PRUNED, (0.1,))])
    found = as_json(status(storage))
    (study,) = found["studies"]
    assert study["counts"] == {"complete": 1, "pruned": 1, "failed": 0, "running": 3, "waiting": 0}
    assert study["best"] == 0.5
    assert study["left_s"] == pytest.approx(8 / study["per_second"])
    assert 0 < study["per_second"] <= 2  # two trials in a second at least
    (worker,) = found["workers"]
    assert 0 <= worker.pop("silent_s") < 60
    assert worker == {
        "host": "elsewhere", "pid": 7, "device": "cuda:1 (NVIDIA H100)", "study": "tiny", "population": 3, "epoch": 7,
        "lost": "", "frozen": 0,
    }  # fmt: skip
    study_row, worker_row = rows(status(storage).text())
    assert study_row["trials"] == "1 complete, 1 pruned, 3 running of 10"
    assert study_row["best"] == "0.5000"
    assert worker_row["worker"] == "elsewhere:7"
    assert worker_row["population"] == "3 members, epoch 7"
    assert re.fullmatch(r"\d+(\.\d)? s ago", worker_row["last heartbeat"])


def test_frozen_trials_are_shown_by_epoch_and_are_no_members(storage: Storage, far: Storage) -> None:
    study_id = put(storage, search={"trials": 10})
    ids = hold(far, study_id, 8)
    far.report(9, dict.fromkeys(ids[2:], 0.5))
    far.report(4, dict.fromkeys(ids[:2], 0.5))
    far.freeze({trial_id: (3, [0.5]) for trial_id in ids[4:]} | {ids[2]: (9, [0.5]), ids[3]: (27, [])})
    far.thaw([ids[3]])
    far.finish([TrialResult(ids[7], TrialState.PRUNED, (0.1,))])
    assert summary(storage, "tiny").frozen == {3: 3, 9: 1}
    found = as_json(status(storage))
    (study,) = found["studies"]
    assert study["frozen"] == {"3": 3, "9": 1}
    assert study["counts"]["running"] == 7
    (worker,) = found["workers"]
    assert (worker["population"], worker["epoch"], worker["frozen"]) == (3, 9, 4)
    study_row, worker_row = rows(status(storage).text())
    assert study_row["trials"] == "1 pruned, 3 running, 3 frozen at epoch 3, 1 at epoch 9 of 10"
    assert worker_row["population"] == "3 members, epoch 9, 4 frozen"
    assert "1 pruned, 3 running, 3 frozen at epoch 3, 1 at epoch 9" in studies_table(storage)
    far.freeze({trial_id: (27, []) for trial_id in ids[:2]} | {ids[3]: (27, [])})
    study_row, worker_row = rows(status(storage).text())
    assert study_row["trials"] == "1 pruned, 3 frozen at epoch 3, 1 at epoch 9, 3 at epoch 27 of 10"
    assert worker_row["population"] == "7 frozen"
    assert (
        control.stop(storage, "tiny") == "tiny: stopped, 0 trials still running, 7 frozen; go on with `hpo resume tiny`"
    )
    assert control.question(storage, "tiny") == "Delete study 'tiny' with 8 trials, 7 of them frozen?"
    assert control.pause(storage, "tiny") == "tiny: paused, 7 trials requeued; go on with `hpo resume tiny`"
    assert status(storage).studies[0].frozen == {}


def test_the_pace_is_of_the_last_minutes_only(storage: Storage) -> None:
    study_id = put(storage)
    now = datetime.datetime.now()
    hour = datetime.timedelta(hours=1)

    def ended(age: datetime.timedelta, took: datetime.timedelta) -> Any:
        trial = create_trial(value=0.5, params={"lr": 0.1}, distributions=LR)
        trial.datetime_start, trial.datetime_complete = now - age - took, now - age
        return trial

    seconds = datetime.timedelta(seconds=1)
    storage.create_trials(study_id, [ended(hour, hour)] * 3)
    assert status(storage).studies[0].per_second is None
    # A trial that began before the five minutes began counts, and its beginning does not.
    storage.create_trials(study_id, [ended(10 * seconds, hour)] * 3)
    assert status(storage).studies[0].per_second == pytest.approx(3 / 300, rel=0.01)


def test_time_left_is_never_negative(storage: Storage, far: Storage) -> None:
    study_id = put(storage, search={"trials": 1})
    ids = hold(far, study_id, 3)
    far.finish([TrialResult(trial_id, TrialState.COMPLETE, (0.5,)) for trial_id in ids[:2]])
    assert status(storage).studies[0].left_s == 0


def test_an_idle_worker_has_no_study(storage: Storage, far: Storage) -> None:
    put(storage)
    with heartbeats(far):
        (worker,) = status(storage).workers
    assert (worker.host, worker.study, worker.population, worker.lost) == ("elsewhere", "", 0, "")
    assert status(storage).workers == ()


def test_a_busy_worker_is_shown_once(storage: Storage, far: Storage) -> None:
    study_id = put(storage)
    with heartbeats(far):
        hold(far, study_id, 4)
        (worker,) = status(storage).workers
    assert (worker.study, worker.population) == ("tiny", 4)


def test_a_worker_whose_process_has_ended_is_lost(storage: Storage, far: Storage) -> None:
    idle_process = IdleProcess()
    far.worker = idle_process.worker("cpu")
    with heartbeats(far):
        hold(far, put(storage), 2)
        idle_process.kill()
        (worker,) = status(storage).workers
        assert worker.lost == f"process {idle_process.process.pid} on {worker.host} ended"
        assert worker.lost in status(storage).text()


def test_a_silent_worker_with_claimed_trials_is_lost(storage: Storage, far: Storage) -> None:
    ids = hold(far, put(storage), 2)
    age_heartbeats(storage, ids)
    (worker,) = status(storage).workers
    assert worker.lost == "no heartbeat from process 7 on elsewhere for 60 s"
    assert worker.silent_s == pytest.approx(3600, abs=60)


def test_a_silent_idle_worker_is_lost_too(storage: Storage, far: Storage) -> None:
    with heartbeats(far):
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE hpo_workers SET seen = datetime(seen, '-1 hour')")
        (worker,) = status(storage).workers
    assert worker.silent_s == pytest.approx(3600, abs=60)
    assert worker.lost, "an idle worker of another machine that was killed looks alive for a day"


def test_only_one_study_and_its_workers(storage: Storage, far: Storage) -> None:
    one, other = put(storage, "one"), put(storage, "other")
    hold(far, one, 1)
    idle_process = IdleProcess()
    try:
        second = open_storage(storage.location.full_url)
        second.worker = idle_process.worker()
        hold(second, other, 1)
        found = status(storage, "one")
        second.close()
    finally:
        idle_process.kill()
    assert [study.name for study in found.studies] == ["one"]
    assert [worker.pid for worker in found.workers] == [7]
    with pytest.raises(UnknownStudyError, match="did you mean 'one'"):
        status(storage, "onee")


def test_the_states_of_studies_and_why(storage: Storage) -> None:
    for name in ("open", "paused", "stopped", "done"):
        put(storage, name, search={"trials": 2})
    control.pause(storage, "paused")
    set_state(storage, summary(storage, "stopped").study_id, StudyState.STOPPED, "training raised the same: Oops")
    for name in ("paused", "stopped"):
        assert not [study for study in status(storage).studies if study.name == name and study.left_s is not None]
    work_here(storage)
    found = {study.name: (study.state, study.why) for study in status(storage).studies}
    assert found == {
        "open": ("ended", "finished"),
        "done": ("ended", "finished"),
        "paused": ("paused", ""),
        "stopped": ("stopped", "training raised the same: Oops"),
    }
    text = status(storage).text()
    assert [row["state"] for row in rows(text) if row.get("study") == "done"] == ["finished"]


def test_the_table_shows_why_a_study_was_stopped(storage: Storage) -> None:
    set_state(storage, put(storage), StudyState.STOPPED, "training raised the same: Oops")
    assert "training raised the same: Oops" in status(storage).text()


def test_if_lines_are_few_finished_studies_are_left_out(storage: Storage, far: Storage) -> None:
    for name in ("done", "over"):
        set_state(storage, put(storage, name), StudyState.ENDED, "finished")
    hold(far, put(storage, "going"), 2)
    found = status(storage)
    assert found.text(len(found.text().splitlines())) == found.text()
    short = found.text(len(found.text().splitlines()) - 1)
    assert [row["study"] for row in rows(short) if "study" in row and "state" in row] == ["going"]
    assert "and 2 finished" in short
    assert short.splitlines()[-1].startswith(f"{FAR.host}:{FAR.pid}")


def test_a_study_whose_end_was_not_stored_has_ended(storage: Storage, far: Storage) -> None:
    study_id = put(storage, search={"trials": 2})
    far.finish([TrialResult(trial_id, TrialState.COMPLETE, (0.5,)) for trial_id in hold(far, study_id, 2)])
    assert (status(storage).studies[0].state, status(storage).studies[0].why) == ("ended", "finished")


def test_missing_values_are_none(storage: Storage, far: Storage) -> None:
    study_id = put(storage)
    ids = hold(far, study_id, 2)
    far.finish([TrialResult(ids[0], TrialState.COMPLETE, (float("inf"),)), TrialResult(ids[1], TrialState.FAIL)])
    (study,) = as_json(status(storage))["studies"]
    assert study["best"] is None
    assert study["counts"]["failed"] == 1


def test_plain_optuna_studies_and_trials_in_the_same_storage(storage: Storage, far: Storage) -> None:
    plain = optuna.create_study(storage=storage, study_name="plain", directions=["minimize", "maximize"])
    plain.ask()
    storage.record_heartbeat(plain.ask()._trial_id)
    hold(far, put(storage), 1)
    found = status(storage)
    assert [study.name for study in found.studies] == ["tiny"]
    assert [worker.study for worker in found.workers] == ["tiny"]
    with pytest.raises(HpoError, match="study 'plain' was not created by hpo"):
        status(storage, "plain")


@pytest.mark.parametrize("damaged", ["{}", "not JSON", {"search": {}}], ids=["empty", "no JSON", "no text"])
def test_a_study_whose_file_cannot_be_read_does_not_hide_the_others(storage: Storage, damaged: Any) -> None:
    storage.create_study("damaged", [StudyDirection.MAXIMIZE], {"hpo:study": damaged})
    put(storage)
    assert "tiny" in [study.name for study in status(storage).studies]


def test_a_state_that_this_version_does_not_know_does_not_hide_the_others(storage: Storage) -> None:
    storage.set_study_attrs(put(storage, "future"), {"hpo:state": "archived"})
    put(storage)
    assert "tiny" in [study.name for study in status(storage).studies]


def test_names_print_no_control_characters(storage: Storage, far: Storage) -> None:
    name = "up\x1b[1A\x07 and\nback \N{RIGHT-TO-LEFT OVERRIDE}"
    text = json.dumps(study_of().resolved())
    study_id = storage.create_study(name, [StudyDirection.MAXIMIZE], {"hpo:study": text})
    far.worker = Worker("evil\x1b[2J", 7, 0.0, "another place", "cpu\x1b[0m")
    hold(far, study_id, 1)
    found = status(storage)
    assert all(line.isprintable() for line in found.text().split("\n"))
    assert len(found.text().splitlines()) == 5
    assert as_json(found)["studies"][0]["name"] == name


def test_wide_names_keep_the_columns_in_line(storage: Storage) -> None:
    put(storage, "数字の研究")
    put(storage, "tiny")
    lines = status(storage).text().split("\n\n")[0].splitlines()
    starts = {cell_len(line[: line.index(word)]) for line, word in zip(lines, ("state", "open", "open"), strict=True)}
    assert len(starts) == 1


@pytest.mark.parametrize("priority", [0, -3, 1_000_001, 123_456_789])
def test_a_priority_is_shown_as_it_was_given(storage: Storage, priority: int) -> None:
    submit(study_of(), storage, LaunchOptions(priority=priority))
    (row,) = rows(status(storage).text().split("\n\n")[0])
    assert row["priority"] == str(priority)
    assert as_json(status(storage))["studies"][0]["priority"] == priority


def test_many_workers_and_studies(storage: Storage) -> None:
    ids = [put(storage, f"s{number}") for number in range(5)]
    idle_process = IdleProcess()
    try:
        for pid, study_id in enumerate(ids * 4):
            holder = open_storage(storage.location.full_url)
            holder.worker = Worker("elsewhere", pid, 0.0, "another place")
            hold(holder, study_id, 3)
            holder.close()
    finally:
        idle_process.kill()
    found = status(storage)
    assert len(found.workers) == 20
    assert sum(worker.population for worker in found.workers) == 60
    assert len(rows(found.text())) == 25
