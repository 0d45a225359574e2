"""What `hpo doctor` makes of facts: fine, a warning or a problem, and what to do; and that one line is one line."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
import torch
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from hpo.data import Listing
from hpo.errors import StorageError
from hpo.results.doctor import verdicts
from hpo.results.doctor.checks import data_folder, dataset, device, packages, threads
from hpo.results.doctor.finding import Finding, Verdict, failed
from hpo.results.doctor.storage import storage_findings
from hpo.storage import RunningTrial, Storage, storage_option
from hpo.storage.health import Damage, FileState, NumberingProblem, Schema
from hpo.storage.location import locate
from hpo.training.devices import DeviceCheck, check_device, detect_devices

NOW = datetime.datetime(2031, 1, 2, 3, 4, 5)
FILE = locate("sqlite:///a.db")
SPACED = locate("sqlite:////tmp/a b.db")


def is_ok(finding: Finding) -> bool:
    return finding.verdict == Verdict.OK


def test_a_finding_is_one_line_whatever_it_quotes() -> None:
    finding = Finding("disk", Verdict.PROBLEM, "a\nb\x1b[1m", "make room")
    assert str(finding) == "disk                problem  a\\nb\\x1b[1m; make room"
    written = {"check": "disk", "verdict": "problem", "found": "a\nb\x1b[1m", "advice": "make room"}
    assert json.loads(finding.json_text) == written
    assert "\n" not in finding.json_text
    assert str(Finding("disk", Verdict.OK, "fine")) == "disk                ok       fine"
    assert json.loads(Finding("disk", Verdict.OK, "fine").json_text)["advice"] is None


def test_an_error_says_after_a_semicolon_what_to_do() -> None:
    finding = failed("schema", StorageError("x.db: is damaged; put back a copy; or not"))
    assert (finding.found, finding.advice) == ("x.db: is damaged", "put back a copy; or not")
    assert finding.verdict == Verdict.PROBLEM


def test_the_option_names_the_storage_without_its_password() -> None:
    assert storage_option(None) == ""
    assert storage_option("postgresql://me:secret@host/my db") == "--storage 'postgresql://me:***@host/my db'"


@pytest.mark.parametrize(
    ("skew_s", "round_trip_s", "verdict"),
    [
        (0.0, 0.001, "ok"),
        (1.9, 0.0, "ok"),
        (-2.1, 0.0, "warning"),
        (2.1, 0.4, "ok"),  # it may have been the way
        (-29.0, 0.0, "warning"),
        (31.0, 0.0, "problem"),
        (-31.0, 4.0, "warning"),
    ],
)
def test_the_servers_clock(skew_s: float, round_trip_s: float, verdict: str) -> None:
    finding = verdicts.server_clock(skew_s, round_trip_s)
    assert finding.verdict == verdict
    if verdict != "ok":
        assert f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's" in finding.found
        assert "timedatectl" in finding.advice


@pytest.mark.parametrize(
    ("ahead_s", "verdict"), [([], "ok"), ([-50.0, 1.0], "ok"), ([-50.0, 3.0], "warning"), ([31.0, 0.0], "problem")]
)
def test_the_clocks_of_machines_that_share_a_file(ahead_s: list[float], verdict: str) -> None:
    finding = verdicts.file_clock(ahead_s)
    assert finding.verdict == verdict
    if verdict != "ok":
        assert f"{max(ahead_s):.1f} s ahead" in finding.found


def test_damage_names_the_way_out() -> None:
    assert is_ok(verdicts.integrity(Damage((), {}, True), SPACED))
    assert "not compared" in verdicts.integrity(Damage((), {}, False), SPACED).found
    damaged = verdicts.integrity(Damage(("Page 3 is never used",), {}, True), SPACED)
    assert (damaged.verdict, "Page 3 is never used" in damaged.found) == (Verdict.PROBLEM, True)
    assert "`sqlite3 '/tmp/a b.db' .recover | sqlite3 recovered.db`" in damaged.advice
    orphans = verdicts.integrity(Damage((), {("trial_values", "trials"): 2}, True), SPACED)
    assert orphans.verdict == Verdict.PROBLEM
    assert orphans.found == "2 rows of trial_values refer to rows that do not exist"
    assert "DELETE FROM trial_values WHERE" in orphans.advice


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (verdicts.journal(FileState("wal", 1, 1)), "ok"),
        (verdicts.journal(FileState("delete", 1, 1)), "warning"),
        (verdicts.disk(FileState("wal", 10**6, 2 * 10**9)), "ok"),
        (verdicts.disk(FileState("wal", 10**6, 5 * 10**8)), "warning"),
        (verdicts.disk(FileState("wal", 10**6, 5 * 10**7)), "problem"),
        (verdicts.connections(79, 100), "ok"),
        (verdicts.connections(80, 100), "warning"),
        (verdicts.schema(Schema("v1", ())), "ok"),
        (verdicts.schema(Schema("", ())), "ok"),
        (verdicts.schema(Schema("v1", ("trials.number",))), "problem"),
    ],
)
def test_limits(finding: Finding, verdict: str) -> None:
    assert finding.verdict == verdict
    assert (finding.advice == "") == (verdict == "ok")


def test_wrong_numbers_are_named() -> None:
    assert is_ok(verdicts.numbering(3, [], FILE))
    wrong = [
        NumberingProblem(1, "a", 9, (1, 2), ()),
        NumberingProblem(2, "b", 9, (), tuple(range(6))),
        NumberingProblem(4, "c", 1, (), ()),
    ]
    finding = verdicts.numbering(3, wrong, locate("postgresql+psycopg://me:secret@host/db"))
    assert finding.verdict == Verdict.PROBLEM
    assert "'a': 1, 2 duplicate among 9 trials, 'b': 0, 1, 2, 3, 4 and others missing among 9 trials" in finding.found
    assert "'c': trials without a number" in finding.found
    command = shlex.split(finding.advice.split("`")[1])
    assert command[:3] == ["psql", "postgresql://me:***@host/db", "-c"]
    assert "IN (1, 2, 4)" in command[3]


def test_wrong_numbers_are_put_right_as_advised(storage: Storage) -> None:
    study_id = storage.create_study("digits", [StudyDirection.MAXIMIZE], {"key": 1})
    storage.create_trials(study_id, [create_trial(value=value) for value in (0.1, 0.2, 0.3)])
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE trials SET number = 1 WHERE number = 2"))
    (finding,) = (each for each in storage_findings(storage.shown, fix=True) if each.check == "trial numbers")
    assert finding.verdict == Verdict.PROBLEM
    program, file, statement = shlex.split(finding.advice.split("`")[1])
    assert (program, file) == ("sqlite3", str(storage.location.file))
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.executescript(statement)
    assert [(each.number, each.value) for each in storage.get_all_trials(study_id)] == [(0, 0.1), (1, 0.2), (2, 0.3)]
    assert all(is_ok(each) for each in storage_findings(storage.shown, fix=False))


def lost(number: int, reason: str | None = "process 7 on host ended") -> RunningTrial:
    return RunningTrial(number, number, 1, NOW, NOW, None, 1.0, reason)


def test_lost_trials_are_named_by_study() -> None:
    assert verdicts.running(0, {}, None, False).found == "none"
    assert is_ok(verdicts.running(3, {}, None, False))
    by_study = {"a": [lost(n) for n in range(7)], "b c": [lost(2, "silent")]}
    finding = verdicts.running(9, by_study, "sqlite:///my runs.db", False)
    assert finding.found == (
        "8 of 9 orphaned, the worker is dead: trials 0, 1, 2, 3, 4 and 2 more of 'a' (process 7 on host ended),"
        " trials 2 of 'b c' (silent)"
    )
    assert "`hpo doctor --fix --storage 'sqlite:///my runs.db'`" in finding.advice
    assert finding.verdict == Verdict.PROBLEM
    assert verdicts.running(9, by_study, None, True).advice.startswith("repair the file")


def test_what_became_of_lost_trials() -> None:
    assert verdicts.requeued(3, 3, 0).found == "3 of 3 orphaned trials requeued"
    found = verdicts.requeued(6, 3, 2).found
    assert (
        found == "3 of 6 orphaned trials requeued, 2 failed because too many of their workers died, "
        "1 with a living worker after all"
    )


def test_trials_of_other_programs_are_asked_about_after_a_day() -> None:
    hours = [("a", 1, NOW - datetime.timedelta(hours=23))]
    assert is_ok(verdicts.others([], NOW, FILE))
    assert is_ok(verdicts.others(hours, NOW, FILE))
    days = [*hours, ("b c", 2, NOW - datetime.timedelta(hours=25)), ("d", 3, None)]
    finding = verdicts.others(days, NOW, locate("postgresql://me@host/db"))
    assert finding.verdict == Verdict.WARNING
    assert finding.found.startswith("2 running without a heartbeat for more than a day: 2 of 'b c', 3 of 'd'")
    command = shlex.split(finding.advice.split("`")[1])
    assert command == [
        *("optuna", "tell", "--storage", "postgresql+psycopg://me@host/db"),
        *("--study-name", "b c", "--trial-number", "2", "--state", "fail"),
    ]


def test_a_trial_without_a_heartbeat_ends_as_advised_and_fix_leaves_it_alone(storage: Storage) -> None:
    asked = optuna.create_study(storage=storage, study_name="plain").ask()
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE trials SET datetime_start = '2020-01-01 00:00:00'"))
    findings = {each.check: each for each in storage_findings(storage.shown, fix=True)}
    assert [each.verdict for each in findings.values()].count(Verdict.WARNING) == 1
    assert storage.get_trial(asked._trial_id).state == TrialState.RUNNING
    command = shlex.split(findings["other trials"].advice.split("`")[1])
    optuna_command = Path(sys.executable).with_name(command[0])
    subprocess.run([optuna_command, *command[1:]], check=True, capture_output=True)
    assert storage.get_trial(asked._trial_id).state == TrialState.FAIL
    assert all(is_ok(each) for each in storage_findings(storage.shown, fix=False))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trials_with_plain_optunas_heartbeats_are_left_to_it(storage: Storage) -> None:
    plain = optuna.storages.RDBStorage(storage.shown, heartbeat_interval=3600)
    asked = plain.create_new_trial(plain.create_new_study([StudyDirection.MINIMIZE], "plain"))
    plain.record_heartbeat(asked)
    plain.engine.dispose()

    def silent_for(hours: int) -> list[Finding]:
        with storage.engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', :ago)"), {"ago": f"-{hours} hours"}
            )
        found = list(storage_findings(storage.shown, fix=True))
        assert storage.get_trial(asked).state == TrialState.RUNNING
        return [each for each in found if not is_ok(each)]

    assert silent_for(1) == []
    (finding,) = silent_for(25)
    assert (finding.check, finding.verdict) == ("other trials", Verdict.WARNING)


def test_fixing_a_file_that_is_damaged_waits(storage: Storage) -> None:
    study_id = storage.create_study("digits", [StudyDirection.MAXIMIZE], {})
    (trial,) = storage.create_trials(study_id, [create_trial(state=TrialState.RUNNING)])
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"))
    damaged = Path(storage.location.full_url.removeprefix("sqlite:///"))
    storage.close()
    with damaged.open("r+b") as file:  # more free pages than the file has
        file.seek(36)
        file.write((5).to_bytes(4, "big"))
    findings = {each.check: each for each in storage_findings(storage.shown, fix=True)}
    assert findings["integrity"].verdict == Verdict.PROBLEM
    assert findings["running trials"].advice.startswith("repair the file, then requeue")
    assert storage.get_trial(trial._trial_id).state == TrialState.RUNNING


def test_lost_trials_of_two_studies_are_sent_back(storage: Storage) -> None:
    for name, count in (("a", 2), ("b", 3)):
        study_id = storage.create_study(name, [StudyDirection.MAXIMIZE], {})
        storage.create_trials(study_id, [create_trial(state=TrialState.RUNNING) for _ in range(count)])
    with storage.engine.begin() as connection:
        connection.execute(sa.text("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"))

    def found(fix: bool) -> Finding:
        (finding,) = (each for each in storage_findings(storage.shown, fix) if each.check == "running trials")
        return finding

    before = found(fix=False)
    assert before.verdict == Verdict.PROBLEM
    assert "no heartbeat from process" in before.found
    assert found(fix=False) == before
    assert found(fix=True).found == "5 of 5 orphaned trials requeued"
    assert found(fix=False).found == "none"


def test_a_folder_of_data(tmp_path: Path) -> None:
    assert is_ok(data_folder(""))
    assert is_ok(data_folder(str(tmp_path)))
    (tmp_path / "file").touch()
    for named, says in ((tmp_path / "none", "no such folder"), (tmp_path / "file", "not a folder")):
        finding = data_folder(str(named))
        assert (finding.verdict, finding.found) == (Verdict.PROBLEM, f"{named}: {says}")
        assert "HPO_DATA_DIR" in finding.advice


def test_data_sets() -> None:
    whole = dataset(Listing("mnist", Path("/data"), "IDX", 60000, "HPO_DATA_DIR"))
    assert (whole.verdict, whole.found) == (Verdict.OK, "60,000 training examples in /data (HPO_DATA_DIR)")
    absent = dataset(Listing("mnist", None, "IDX", None, "not found: hpo data fetch mnist"))
    assert (absent.verdict, absent.found) == (Verdict.OK, "not found")
    assert "`hpo data fetch mnist`" in absent.advice
    damaged = dataset(Listing("mnist", Path("/data"), "IDX", None, "/data/x: truncated; copy it again"))
    assert (damaged.verdict, damaged.found) == (Verdict.PROBLEM, "/data/x: truncated")
    assert damaged.advice == "copy it again"
    assert "hpo data fetch mnist" in dataset(Listing("mnist", Path("/d"), "IDX", None, "/d/x: no IDX file")).advice


def test_packages() -> None:
    torch_version = metadata.version("torch")
    required = ["torch>=2.0", "numpy", "no-such-package>=1; extra == 'test'"]
    finding = packages(required)
    assert is_ok(finding)
    assert finding.found.startswith("2,")
    finding = packages([*required, "torch>=99,<100", "no-such-package>=1"])
    assert finding.verdict == Verdict.PROBLEM
    assert f"torch is {torch_version}, required is <100,>=99" in finding.found
    assert "no-such-package is not installed" in finding.found
    assert "-m pip install 'torch" in finding.advice
    assert is_ok(packages(metadata.requires("hpo") or []))


@pytest.mark.parametrize(
    ("cores", "of_torch", "variable", "verdict"),
    [
        (2, 2, None, "ok"),
        (4, 1, "1", "ok"),
        (4, 4, "4,2", "ok"),
        (2, 8, "8", "warning"),
        (2, 2, "8", "warning"),
        (2, 8, None, "warning"),
        (2, 2, "many", "warning"),
        (2, 2, "0", "warning"),
    ],
)
def test_threads(cores: int, of_torch: int, variable: str | None, verdict: str) -> None:
    finding = threads(cores, of_torch, variable)
    assert finding.verdict == verdict
    assert f"{of_torch} threads of torch on {cores} cores" in finding.found
    assert (finding.advice == "") == (verdict == "ok")


def test_devices() -> None:
    found = detect_devices()
    assert found.devices[0] == torch.device("cpu")
    assert len(found.devices) == 1 + torch.cuda.device_count() + torch.backends.mps.is_available()
    assert found.threads == torch.get_num_threads()
    for each in found.devices:
        assert check_device(each).problem == ""
        assert is_ok(device(check_device(each)))


def test_a_device_that_does_not_work_is_a_problem() -> None:
    tried = check_device(torch.device("meta"))  # computes nothing
    assert "meta" in tried.problem
    finding = device(tried)
    assert (finding.check, finding.verdict) == ("device meta", Verdict.PROBLEM)
    assert "--device cpu" in finding.advice


def test_a_device_in_use_is_a_warning() -> None:
    free = device(DeviceCheck("cuda:0 (NVIDIA H100)", 70 * 10**9, 80 * 10**9, True, ""))
    assert (free.check, free.verdict) == ("device cuda:0", Verdict.OK)
    assert "70.0 of 80.0 GB free" in free.found
    assert "NVIDIA H100" in free.found
    full = device(DeviceCheck("cuda:0 (NVIDIA H100)", 7 * 10**9, 80 * 10**9, True, ""))
    assert (full.verdict, "nvidia-smi" in full.advice) == (Verdict.WARNING, True)


def test_a_missing_file_is_named_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPO_STORAGE", raising=False)
    (default,) = storage_findings(None, fix=True)
    assert (default.verdict, default.found) == (
        Verdict.OK,
        "sqlite:///hpo.db: does not exist yet; the first `hpo launch` creates it",
    )
    (named,) = storage_findings("sqlite:///hpo.db", fix=True)
    assert (named.verdict, named.found) == (Verdict.PROBLEM, "sqlite:///hpo.db: no such file")
    monkeypatch.setenv("HPO_STORAGE", "sqlite:///hpo.db")
    (named,) = storage_findings(None, fix=True)
    assert named.verdict == Verdict.PROBLEM
    assert os.listdir(tmp_path) == []
