"""The commands that read a storage or a file: output, errors and exit status."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import jsonschema
import optuna
import pytest
from command import Outcome, Running
from deadlines import deadline
from forks import Fork
from optuna.distributions import FloatDistribution
from schemas import schema

import hpo as package
from hpo.cli import main as package_main
from hpo.storage import open_storage
from hpo.studyfile import read_study

Run = Callable[..., Outcome]
Start = Callable[..., Running]

COPY = ["copy", "tiny", "--to", "sqlite:///copy.db"]


@pytest.fixture
def stored(folder: Path) -> None:
    """Store the study of `tiny.toml` with three trials, as a launch stores it."""
    study = read_study("tiny.toml")
    storage = open_storage(None)
    made = optuna.create_study(storage=storage, study_name="tiny", direction="maximize")
    made.set_user_attr("hpo:study", json.dumps(study.resolved()))
    made.set_user_attr("hpo:run", {"precision": "float32", "device": "cpu"})
    sizes = {"train": 160, "validation": 40, "test": 360}
    made.set_user_attr("hpo:data", {"name": "digits", "sha256": "0" * 64, "split_sha256": "f" * 64, **sizes})
    distributions = {"dropout": FloatDistribution(0, 0.5), "lr": FloatDistribution(1e-3, 0.5, log=True)}
    for value in (0.5, 0.75, 0.625):
        params = {"dropout": 0.25, "lr": value / 10}
        attrs = {"seed": 7}
        made.add_trial(
            optuna.trial.create_trial(value=value, params=params, distributions=distributions, user_attrs=attrs)
        )
    storage.close()


BEST = "Best-1 (trial 1) | val acc: 0.7500 | dropout: 0.2500, lr: 7.5000e-02"


@pytest.mark.parametrize("word", ["version", "--version"])
def test_version(hpo: Run, word: str) -> None:
    outcome = hpo(word)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith(f"hpo {package.__version__} (python ")


def test_top(hpo: Run, stored: None) -> None:
    assert hpo("top", "tiny", "-n", "1") == (0, BEST + "\n", "")
    outcome = hpo("top", "tiny")
    assert [line.split(" ")[0] for line in outcome.out.splitlines()] == ["Best-1", "Best-2", "Best-3"]


def test_top_of_an_unknown_study_suggests_the_nearest(hpo: Run, stored: None) -> None:
    outcome = hpo("top", "tinny")
    assert outcome == (1, "", "hpo: sqlite:///hpo.db: no study named 'tinny' (did you mean 'tiny'?)\n")


def test_a_deleted_folder_is_one_line(hpo: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    assert hpo("check", "../tiny.toml") == (1, "", "hpo: the current folder was deleted: change to another folder\n")


def test_studies(hpo: Run, stored: None) -> None:
    outcome = hpo("studies")
    assert (outcome.status, outcome.err) == (0, "")
    heading, row = outcome.out.splitlines()
    assert heading.startswith("study  data set  trials")
    assert row.startswith("tiny   digits    3 complete  0.7500 val acc")


@pytest.mark.parametrize("args", [["studies"], ["top", "tiny"], ["export", "tiny"], ["dashboard", "--port", "0"], COPY])
def test_reading_creates_no_storage(hpo: Run, folder: Path, args: list[str]) -> None:
    outcome = hpo(*args)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("hpo: sqlite:///hpo.db: no such file; ")
    assert outcome.err.count("\n") == 1
    assert not list(folder.glob("*.db"))


def test_the_storage_is_an_option_or_a_variable(
    hpo: Run, stored: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "hpo.db").rename(folder / "other.db")
    assert hpo("top", "tiny", "--storage", "sqlite:///other.db", "-n", "1").out == BEST + "\n"
    monkeypatch.setenv("HPO_STORAGE", "sqlite:///other.db")
    assert hpo("top", "tiny", "-n", "1").out == BEST + "\n"


def test_an_unknown_storage_is_one_line_without_its_password(hpo: Run) -> None:
    outcome = hpo("studies", "--storage", "mysql://me:secret@host/hpo")
    assert (outcome.status, outcome.out) == (1, "")
    assert "unknown kind of storage 'mysql'" in outcome.err
    assert "secret" not in outcome.err
    assert outcome.err.count("\n") == 1


def test_export_to_stdout(hpo: Run, stored: None) -> None:
    outcome = hpo("export", "tiny")
    assert (outcome.status, outcome.err) == (0, "")
    exported = json.loads(outcome.out)
    jsonschema.validate(exported, schema("best"))
    assert exported["params"] == {"dropout": 0.25, "lr": 0.075}


def test_export_to_a_file(hpo: Run, stored: None, folder: Path) -> None:
    assert hpo("export", "tiny", "-o", "best.json") == (0, "", "")
    exported = json.loads((folder / "best.json").read_text())
    jsonschema.validate(exported, schema("best"))
    assert exported["value"] == 0.75


def test_export_to_a_missing_folder(hpo: Run, stored: None) -> None:
    outcome = hpo("export", "tiny", "-o", "missing/best.json")
    assert outcome == (1, "", "hpo: missing/best.json: cannot be written (No such file or directory)\n")


def test_export_without_a_finished_trial(hpo: Run, folder: Path) -> None:
    study = read_study("tiny.toml")
    made = optuna.create_study(storage=open_storage(None), study_name="tiny", direction="maximize")
    made.set_user_attr("hpo:study", json.dumps(study.resolved()))
    outcome = hpo("export", "tiny")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("hpo: study 'tiny': no finished trial yet")


def test_copy(hpo: Run, stored: None) -> None:
    assert hpo(*COPY) == (0, "tiny: 3 trials copied to sqlite:///copy.db\n", "")
    assert hpo("top", "tiny", "-n", "1", "--storage", "sqlite:///copy.db").out == BEST + "\n"
    back = hpo("copy", "tiny", "--from", "sqlite:///copy.db", "--to", "sqlite:///hpo.db", "--name", "back")
    assert back == (0, "tiny: 3 trials copied to sqlite:///hpo.db as 'back'\n", "")
    # The study file inside has the new name, too.
    assert json.loads(hpo("export", "back").out)["config"]["name"].startswith("back")


def test_a_copy_of_a_running_study(hpo: Run, stored: None) -> None:
    optuna.load_study(storage=open_storage(None), study_name="tiny").ask()
    assert hpo(*COPY).out == "tiny: 4 trials copied to sqlite:///copy.db, 1 of them running: waiting in the copy\n"
    assert "3 complete, 1 waiting" in hpo("studies", "--storage", "sqlite:///copy.db").out


def test_a_copy_overwrites_nothing(hpo: Run, stored: None) -> None:
    message = "a study named 'tiny' exists already, and is not changed; give the copy another name with --name"
    assert hpo("copy", "tiny", "--to", "sqlite:///./hpo.db") == (1, "", f"hpo: sqlite:///./hpo.db: {message}\n")
    assert hpo("top", "tiny", "-n", "1").out == BEST + "\n"


def test_a_copy_of_an_unknown_study_creates_no_file(hpo: Run, stored: None, folder: Path) -> None:
    outcome = hpo("copy", "tinny", "--to", "sqlite:///copy.db")
    assert outcome == (1, "", "hpo: sqlite:///hpo.db: no study named 'tinny' (did you mean 'tiny'?)\n")
    assert not (folder / "copy.db").exists()


def test_an_unreachable_target_hides_the_password(hpo: Run, stored: None) -> None:
    outcome = hpo("copy", "tiny", "--to", "postgresql://me:secret@127.0.0.1:1/hpo")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith("hpo: postgresql://me:***@127.0.0.1:1/hpo: ")
    assert "secret" not in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_copy_under_an_invalid_name(hpo: Run, stored: None) -> None:
    outcome = hpo(*COPY, "--name", " ")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("hpo: study 'tiny': name: ")


def test_debug_shows_the_traceback(hpo: Run) -> None:
    outcome = hpo("--debug", "studies")
    assert outcome.status == 1
    assert outcome.err.startswith("Traceback (most recent call last):")
    assert outcome.err.splitlines()[-1].startswith("hpo: sqlite:///hpo.db: no such file")


def test_data_list(hpo: Run) -> None:
    outcome = hpo("data", "list")
    assert (outcome.status, outcome.err) == (0, "")
    rows = outcome.out.splitlines()
    assert [row.split()[0] for row in rows[1:]] == [
        *("digits", "mnist", "fashion_mnist", "cifar10", "breast_cancer", "wine", "diabetes")
    ]
    assert " 1,438 " in rows[1]


def test_data_fetch_of_an_unknown_data_set(hpo: Run) -> None:
    outcome = hpo("data", "fetch", "mnits")
    assert outcome.status in (1, 2)
    assert outcome.out == ""
    assert "'mnits'" in outcome.err
    assert "mnist" in outcome.err
    assert outcome.err.count("\n") == 1


def test_check(hpo: Run, folder: Path) -> None:
    outcome = hpo("check", "tiny.toml", "--set", "training.epochs=3")
    assert (outcome.status, outcome.err) == (0, "")
    for word in ("tiny", "digits", "lr", "0.5", "dropout", "epochs"):
        assert word in outcome.out
    assert "description" not in outcome.out
    assert not (folder / "hpo.db").exists()


def test_check_prints_the_resolved_file_if_asked(hpo: Run) -> None:
    outcome = hpo("check", "tiny.toml", "--all")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith(hpo("check", "tiny.toml").out)
    assert 'description = "a study of the tests"' in outcome.out
    assert "batch_norm = false" in outcome.out


def test_check_of_an_invalid_file(hpo: Run) -> None:
    outcome = hpo("check", "tiny.toml", "--set", "optimizer.lr.low=0")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("hpo: tiny.toml: --set optimizer.lr.low: must be above 0 when log = true (got 0)")
    assert outcome.err.count("\n") == 1


def test_check_of_a_missing_file(hpo: Run) -> None:
    assert hpo("check", "none.toml") == (2, "", "hpo: none.toml: no such file\n")


def test_check_prints_the_schema_of_study_files(hpo: Run) -> None:
    assert hpo("check", "--schema") == (0, package.study_schema(), "")
    assert hpo("check") == (2, "", "hpo: Missing argument 'FILE' (see hpo check --help)\n")


def test_the_dashboard_serves_until_interrupted(process: Start, stored: None) -> None:
    running = process("dashboard", "--port", "0")
    url = running.line().strip()
    with urllib.request.urlopen(f"{url}api/studies", timeout=30) as answer:
        assert [each["study_name"] for each in json.load(answer)["study_summaries"]] == ["tiny"]
    running.process.send_signal(signal.SIGINT)
    assert running.outcome() == (130, "", "")


def test_the_dashboard_on_a_busy_port(process: Start, hpo: Run, stored: None) -> None:
    running = process("dashboard", "--port", "0")
    port = running.line().strip().rstrip("/").rpartition(":")[2]
    outcome = hpo("dashboard", "--port", port)
    assert outcome == (1, "", f"hpo: 127.0.0.1:{port}: the port is in use; choose another with --port\n")


def test_study_names_complete_in_the_shell(process: Start, stored: None) -> None:
    for command in ("top", "export", "copy"):
        outcome = process(_HPO_COMPLETE="complete_bash", COMP_WORDS=f"hpo {command} t", COMP_CWORD="2").outcome()
        assert outcome == (0, "tiny\n", "")


def test_a_closed_pipe_is_no_error(stored: None, folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with Fork(["top", "tiny"], stdout=writing, stderr=subprocess.PIPE, cwd=folder) as process:
        os.close(writing)
        assert process.communicate(deadline()) == (None, "")
    assert process.returncode == 1


UNICODE_NAME = "探索-é🎯"
ESCAPED_NAME = json.dumps(UNICODE_NAME)[1:-1]


@pytest.mark.parametrize(
    "command",
    [
        ("studies",),
        ("status",),
        ("status", UNICODE_NAME, "--json"),
        ("export", UNICODE_NAME),
        ("export", UNICODE_NAME, "--all"),
        ("export", UNICODE_NAME, "--format", "toml"),
        ("compare", UNICODE_NAME, "--json"),
        ("pause", UNICODE_NAME),
        ("report", UNICODE_NAME, "-o", f"{UNICODE_NAME}.html"),
        ("copy", UNICODE_NAME, "--from", "sqlite:///copy.db", "--to", "sqlite:///another.db"),
    ],
)
def test_unencodable_characters_are_json_escapes(
    command: tuple[str, ...], hpo: Run, stored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hpo(*COPY, "--name", UNICODE_NAME).status == 0
    monkeypatch.setenv("HPO_STORAGE", "sqlite:///copy.db")
    if command[0] == "copy":
        monkeypatch.delenv("HPO_STORAGE")
    output = io.BytesIO()
    with monkeypatch.context() as patched, io.TextIOWrapper(output, encoding="ascii") as terminal:
        patched.setattr(sys, "stdout", terminal)
        assert package_main(command) == 0
        out = output.getvalue().decode("ascii")
    assert ESCAPED_NAME in out
    if "--json" in command or command == ("export", UNICODE_NAME):
        assert UNICODE_NAME in str(json.loads(out))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(stored: None, folder: Path) -> None:
    with (
        open("/dev/full", "w") as full,
        Fork(["top", "tiny"], stdout=full, stderr=subprocess.PIPE, cwd=folder) as process,
    ):
        _, err = process.communicate(deadline())
    assert process.returncode == 1
    problem = "stdout or stderr cannot be written (No space left on device): redirect them to a disk with free space"
    assert err == f"hpo: {problem}\n"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.EMFILE, "Too many open files", "x.db"), "too many open files: raise the limit with `ulimit -n`"),
        (MemoryError(), "out of memory: free some"),
        (ImportError("libtorch_cpu.so: failed to map segment"), "a package cannot be imported (libtorch_cpu.so"),
        (RuntimeError("can't start new thread"), "no thread can be started: raise the limit with `ulimit -u`"),
        (OSError(errno.ENOSPC, "No space left on device", "x.db"), "[Errno 28] No space left on device: 'x.db'"),
        (RuntimeError("another"), "RuntimeError: another (a defect in hpo"),
    ],
    ids=str,
)
def test_a_lack_of_resources_is_no_defect(
    hpo: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(package, "load", fail)
    status, out, err = hpo("top", "tiny")
    assert (status, out) == (1, "")
    assert err.startswith(f"hpo: {message}")
