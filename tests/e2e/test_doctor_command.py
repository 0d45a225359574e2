"""`hpo doctor`: one line a check on stdout, the number of problems on stderr, and the exit status."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Outcome, Running

from hpo.storage import open_storage

Run = Callable[..., Outcome]
Start = Callable[..., Running]


def lines(outcome: Outcome) -> dict[str, str]:
    """Return the verdict, finding and advice of each check by name; assert that a check has one line."""
    found = [line.split("  ", 1) for line in outcome.out.splitlines()]
    assert len({check for check, _ in found}) == len(found)
    return {check: rest.strip() for check, rest in found}


def launch_and_kill(process: Start) -> None:
    """Start a launch, and kill its process during the first population."""
    running = process("launch", "tiny.toml", "--json", "--set", "training.epochs=1000")
    running.wait_for("epoch_ended")
    running.process.kill()
    running.process.wait()


def test_an_empty_folder_has_no_problem_and_nothing_is_created(hpo: Run, folder: Path) -> None:
    outcome = hpo("doctor")
    assert (outcome.status, outcome.err) == (0, "")
    found = lines(outcome)
    assert found["storage"] == "ok       sqlite:///hpo.db: does not exist yet; the first `hpo launch` creates it"
    assert found["HPO_DATA_DIR"] == "ok       not set"
    assert {name.removeprefix("data ") for name in found if name.startswith("data ")} == {
        *("digits", "breast_cancer", "wine", "diabetes", "mnist", "fashion_mnist", "cifar10")
    }
    assert {"packages", "torch", "device cpu", "threads", "C compiler"} <= set(found)
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_a_valid_storage_has_no_problem(hpo: Run) -> None:
    open_storage(None).close()
    outcome = hpo("doctor")
    assert (outcome.status, outcome.err) == (0, "")
    checks = ["storage", "integrity", "journal", "disk", "schema", "trial numbers", "running trials", "other trials"]
    assert list(lines(outcome))[:9] == [*checks, "clock"]


def test_trials_of_a_killed_process_are_found_fixed_and_trained_again(hpo: Run, process: Start) -> None:
    launch_and_kill(process)
    outcome = hpo("doctor")
    assert (outcome.status, outcome.err) == (1, "hpo: 1 problem found\n")
    found = lines(outcome)["running trials"]
    assert found.startswith("problem  4 of 4 orphaned, the worker is dead: trials 0, 1, 2, 3 of 'tiny' (process ")
    assert found.endswith("requeue them with `hpo doctor --fix`, or launch the study again")
    assert "4 running" in hpo("studies").out
    assert lines(hpo("doctor"))["running trials"] == found
    fixed = hpo("doctor", "--fix")
    assert (fixed.status, fixed.err) == (0, "")
    assert lines(fixed)["running trials"] == "ok       4 of 4 orphaned trials requeued"
    assert "4 waiting" in hpo("studies").out
    again = hpo("doctor")
    assert (again.status, again.err) == (0, "")
    assert lines(again)["running trials"] == "ok       none"


def test_trials_of_a_live_process_are_not_requeued(hpo: Run, process: Start) -> None:
    running = process("launch", "tiny.toml", "--json", "--set", "training.epochs=1000")
    running.wait_for("epoch_ended")
    outcome = hpo("doctor", "--fix")
    assert (outcome.status, outcome.err) == (0, "")
    assert lines(outcome)["running trials"] == "ok       4, each with a living worker"
    assert "4 running" in hpo("studies").out


def test_json_is_one_object_a_check(hpo: Run, process: Start) -> None:
    launch_and_kill(process)
    outcome = hpo("doctor", "--json")
    assert (outcome.status, outcome.err) == (1, "hpo: 1 problem found\n")
    found = [json.loads(line) for line in outcome.out.splitlines()]
    assert all(list(each) == ["check", "verdict", "found", "advice"] for each in found)
    (wrong,) = (each for each in found if each["verdict"] == "problem")
    assert (wrong["check"], "`hpo doctor --fix`" in wrong["advice"]) == ("running trials", True)
    assert "torch" in {each["check"] for each in found}


def test_a_damaged_file_is_a_problem_and_the_other_checks_run(hpo: Run, folder: Path) -> None:
    open_storage(None).close()
    file = folder / "hpo.db"
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'trials'").fetchone()
    whole = file.read_bytes()
    start = (page - 1) * 4096
    file.write_bytes(whole[:start] + bytes(byte ^ 0xFF for byte in whole[start : start + 4096]) + whole[start + 4096 :])
    damaged = file.read_bytes()
    outcome = hpo("doctor", "--fix")
    assert outcome.status == 1
    assert outcome.err.startswith("hpo: ")
    assert outcome.err.endswith(" problems found\n")
    found = lines(outcome)
    assert found["integrity"].startswith("problem  ")
    assert "restore a backup" in found["integrity"]
    assert found["schema"].startswith("ok")
    assert found["running trials"].startswith("problem  sqlite:///hpo.db: the database is damaged; restore a backup")
    assert {"disk", "torch", "threads"} <= set(found)
    assert file.read_bytes() == damaged


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://me:secret@127.0.0.1:1/hpo", "postgresql://me:***@127.0.0.1:1/hpo: "),
        ("sqlite:///other.db", "sqlite:///other.db: no such file; name another storage"),
        ("mysql://me:secret@host/hpo", "mysql://me:***@host/hpo: unknown kind of storage 'mysql'"),
        ("sqlite:///tiny.toml", "sqlite:///tiny.toml: is not an SQLite database; name another file"),
        ("sqlite:///none/hpo.db", "sqlite:///none/hpo.db: the folder"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_problem(hpo: Run, folder: Path, url: str, message: str) -> None:
    outcome = hpo("doctor", "--storage", url, "--fix")
    assert (outcome.status, outcome.err) == (1, "hpo: 1 problem found\n")
    found = lines(outcome)
    assert found["storage"].startswith(f"problem  {message}")
    assert "; " in found["storage"]
    assert "secret" not in outcome.out
    assert {"data digits", "torch", "threads"} <= set(found)
    assert [path.name for path in folder.iterdir()] == ["tiny.toml"]


def test_a_missing_data_folder_is_a_problem(hpo: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPO_DATA_DIR", str(folder / "none"))
    outcome = hpo("doctor")
    assert (outcome.status, outcome.err) == (1, "hpo: 1 problem found\n")
    assert lines(outcome)["HPO_DATA_DIR"].startswith(f"problem  {folder / 'none'}: no such folder; ")


def test_too_many_threads_are_a_warning(process: Start) -> None:
    outcome = process("doctor", OMP_NUM_THREADS="4096").outcome()
    assert outcome.status == 0
    threads = lines(outcome)["threads"]
    assert threads.startswith("warning  ")
    assert "OMP_NUM_THREADS is 4096" in threads


def test_a_missing_c_compiler_is_a_warning(process: Start) -> None:
    outcome = process("doctor", CC="no-such-compiler").outcome()
    assert outcome.status == 0
    assert lines(outcome)["C compiler"].startswith("warning  there is no C compiler 'no-such-compiler'; ")
