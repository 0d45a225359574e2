"""An objective study at the command line: launched, shared, killed, interrupted, exported, drawn."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import jsonschema
from command import Outcome, Running
from schemas import schema

Run = Callable[..., Outcome]
Start = Callable[..., Running]

STUDY = """\
name = "own"
objective = "code/objective.py:objective"

[search]
trials = 4
direction = "maximize"
"""
PLAIN = """
from helper import scored

def objective(trial):
    print("printed")
    x = trial.suggest_float("x", 0, 1)
    trial.report(scored(x), 3)
    trial.set_user_attr("checked", True)
    return scored(x)
"""
HELPER = "def scored(x):\n    return 1 - x\n"


def write(folder: Path, code: str = PLAIN, study: str = STUDY) -> None:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "own.toml").write_text(study)
    (folder / "code" / "objective.py").write_text(code)
    (folder / "code" / "helper.py").write_text(HELPER)


def states(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "hpo.db") as connection:
        return [state for (state,) in connection.execute("SELECT state FROM trials ORDER BY number")]


def test_an_objective_study_is_searched_shown_exported_and_drawn(hpo: Run, folder: Path) -> None:
    write(folder)
    launched = hpo("launch", "own.toml", "--json")
    assert launched.status == 0, launched.err
    events = [json.loads(line) for line in launched.out.splitlines()]
    assert (events[0]["objective"], events[0]["trials"]) == ("code/objective.py:objective", 4)
    assert "printed" in launched.err
    lines = launched.err.splitlines()
    assert any(line.startswith("Best-1 (trial ") for line in lines)
    assert "next: hpo confirm own" in lines

    assert hpo("top", "own", "-n", "1").out.startswith("Best-1 (trial ")
    assert "code/objective.py:objective" in hpo("studies").out
    assert "4 complete of 4" in hpo("status", "own").out

    exported = json.loads(hpo("export", "own").out)
    jsonschema.validate(exported, schema("objective"))
    assert exported["value"] == 1 - exported["params"]["x"]
    assert exported["curve"] == {"step": [3], "value": [exported["value"]]}
    assert exported["user_attrs"] == {"seed": exported["user_attrs"]["seed"], "checked": True}
    assert exported["code"]["folder"] == str(folder)
    assert exported["code"]["files"].keys() == {"code/helper.py", "code/objective.py"}
    rows = [json.loads(line) for line in hpo("export", "own", "--all").out.splitlines()]
    assert [row["value"] for row in rows] == [1 - row["params"]["x"] for row in rows]
    assert hpo("export", "own", "--all", "--format", "csv").out.splitlines()[0].endswith(",reason,x")

    drawn = hpo("plot", "own", "--figure", "curves", "--figure", "history")
    assert drawn.out.split() == ["own-curves.html", "own-history.html"]
    assert '"reported"' in (folder / "own-curves.html").read_text()

    plain = hpo("launch", "own.toml", "--name", "plain")
    assert "plain: 4 trials of code/objective.py:objective\n" in plain.err
    assert "trial 3: completed with " in plain.err


def test_a_command_for_network_studies_is_refused_in_one_line(hpo: Run, folder: Path) -> None:
    write(folder)
    assert hpo("launch", "own.toml", "--quiet", "--trials", "1").status == 0
    for command in ("narrow", "verify", "test"):
        refused = hpo(command, "own")
        assert (refused.status, refused.out) == (1, "")
        assert refused.err == (
            "hpo: study 'own' has an objective function, code/objective.py:objective; this command needs a network "
            "study. Take the parameters from `hpo export own` and continue in your own code\n"
        )


def test_an_objective_study_is_confirmed_compared_and_reported(hpo: Run, folder: Path) -> None:
    write(folder)
    assert hpo("launch", "own.toml", "--quiet").status == 0
    refused = hpo("confirm", "own", "--device", "cpu")
    assert (refused.status, refused.err) == (
        2,
        "hpo: --device: code/objective.py:objective chooses its device itself; remove the option\n",
    )
    assert "own-confirm" not in hpo("studies").out
    confirmed = hpo("confirm", "own", "--top", "1", "--seeds", "3", "--quiet")
    assert confirmed.status == 0, confirmed.err
    head, _, *rows = confirmed.out.splitlines()
    assert head == "own: mean value over 3 fresh seeds, best first"
    assert [row.split()[0] for row in rows[:2]] == ["Best-1", "baseline"]
    ignored = "all 3 runs of each configuration gave the same value: the function does not use trial.user_attrs['seed']"
    assert rows[2] == ignored
    exported = json.loads(hpo("export", "own", "--confirmed").out)
    jsonschema.validate(exported, schema("objective"))
    assert exported["confirmed"]["study"] == "own-confirm"
    assert exported["confirmed"]["baseline"] == {"x": 0.5}
    compared = hpo("compare", "own-confirm", "-o", "own.html")
    assert compared.status == 0, compared.err
    assert compared.out.splitlines()[0].split() == [
        "configuration",
        "trials",
        "value",
        "best",
        "reported",
        "difference",
        "p",
    ]
    assert "reported value" in (folder / "own.html").read_text()
    assert hpo("report", "own").out == "own-report.html\n"


def test_a_warning_of_the_function_is_printed_once(process: Start, folder: Path) -> None:
    code = "import warnings\ndef objective(trial):\n    warnings.warn('careful')\n    return 1.0\n"
    write(folder, code)
    outcome = process("launch", "own.toml").outcome()
    assert outcome.status == 0
    assert outcome.err.count("UserWarning: careful") == 1
    assert states(folder) == ["COMPLETE"] * 4


def test_an_export_of_an_objective_study_can_be_neither_launched_nor_replayed(hpo: Run, folder: Path) -> None:
    write(folder)
    hpo("launch", "own.toml", "--quiet", "--trials", "1")
    hpo("export", "own", "-o", "best.json")
    again = hpo("launch", "best.json")
    assert (again.status, again.err.count("\n")) == (2, 1)
    assert "is the export of an objective study" in again.err
    replayed = hpo("replay", "best.json")
    assert (replayed.status, replayed.err.count("\n")) == (2, 1)
    assert "call 'code/objective.py:objective' with its params" in replayed.err
    device = hpo("launch", "own.toml", "--device", "cpu")
    assert (device.status, device.err) == (
        2,
        "hpo: --device: code/objective.py:objective chooses its device itself; remove the option\n",
    )


def test_an_objective_study_is_checked_and_submitted(hpo: Run, folder: Path) -> None:
    write(folder)
    checked = hpo("check", "own.toml", "--all")
    assert checked.status == 0
    assert 'pruner = "median"' in checked.out
    assert "code/helper.py: SHA-256 " in checked.out
    assert hpo("submit", "own.toml").out == "own: in the queue, 4 trials left\n"
    assert hpo("work", "--until-idle").status == 0
    assert states(folder) == ["COMPLETE"] * 4


KILLED = """
import multiprocessing, os, signal
from pathlib import Path

def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    os.write(1, b"printed\\n")
    child = multiprocessing.get_context("fork").Process(target=int)  # as a DataLoader has
    child.start()
    child.join()
    if trial.number == 1 and not Path("killed").exists():
        Path("killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return x
"""


WORKERS_ARE_FORKS = """
import multiprocessing, sys
from hpo.cli import main
from hpo.service.crew import local as local_crew

local_crew.SPAWN = multiprocessing.get_context("fork")
sys.exit(main(sys.argv[1:]))
"""
"""The `hpo` command with workers that start in milliseconds."""


def test_workers_share_an_objective_and_retrain_trials_of_a_dead_worker(process: Start, folder: Path, hpo: Run) -> None:
    write(folder, KILLED)
    launched = process("launch", "own.toml", "--workers", "2", "--json", script=WORKERS_ARE_FORKS).outcome()
    assert launched.status == 0, launched.err
    assert all(json.loads(line)["event"] for line in launched.out.splitlines())
    assert states(folder) == ["COMPLETE"] * 4
    with sqlite3.connect(folder / "hpo.db") as connection:
        attempts = connection.execute(
            "SELECT value_json FROM trial_system_attributes WHERE key = 'hpo:attempts'"
        ).fetchall()
        params = connection.execute("SELECT COUNT(*) FROM trial_params").fetchone()
    ((attempt,),) = [json.loads(text) for (text,) in attempts]
    assert attempt["ended"] == "died"
    assert params == (4,)


REPORTS = """
def objective(trial):
    x = trial.suggest_float("x", 0, 1)
    for step in range(1_000_000):
        trial.report(x, step)
    return x
"""
SILENT = """
import threading
def objective(trial):
    trial.suggest_float("x", 0, 1)
    threading.Event().wait()
"""


def test_ctrl_c_ends_a_trial_at_its_next_report(process: Start, folder: Path) -> None:
    write(folder, REPORTS)
    running = process("launch", "own.toml", "--json")
    running.wait_for("epoch_ended")
    running.process.send_signal(signal.SIGINT)
    outcome = running.outcome()
    assert outcome.status == 130
    assert states(folder) == ["WAITING"]
    assert "own: interrupted, 0 completed" in outcome.err


def test_a_second_ctrl_c_ends_an_objective_that_never_reports(process: Start, folder: Path) -> None:
    write(folder, SILENT)
    running = process("launch", "own.toml", "--json")
    running.wait_for("population_started")
    while running.process.poll() is None:
        # The first signal may arrive before the function runs, the second before the first is handled.
        running.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(0.2)
    assert running.outcome().status in (130, -signal.SIGINT)  # the third of three in a row is not caught
