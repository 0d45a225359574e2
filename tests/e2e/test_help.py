"""Help, wrong usage and completion of words, all without loading torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import HPO, Outcome, Running

Run = Callable[..., Outcome]
HEAVY = {"torch", "optuna", "numpy", "sqlalchemy", "sklearn", "pydantic", "rich"}
COMMANDS = ["init", "launch", "check", "narrow", "studies", "top", "compare", "confirm", "test", "predict", "verify"]
COMMANDS += [
    "replay",
    "plot",
    "report",
    "export",
    "copy",
    "submit",
    "work",
    "status",
    "pause",
    "resume",
    "stop",
    "delete",
]
COMMANDS += ["dashboard", "doctor", "version", "data"]


def test_importing_the_command_and_help_load_nothing_heavy() -> None:
    code = "import sys, hpo.cli; hpo.cli.main(['--help']); print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.splitlines()[-1].split()) & HEAVY
    assert loaded.stderr == ""


def test_showing_exporting_and_pausing_studies_load_no_torch() -> None:
    rooms = ["hpo.service.status", "hpo.service.queue_control"]
    rooms += [f"hpo.results.{room}" for room in ("compare.table", "display.summary", "display.progress", "export.text")]
    code = f"import sys, {', '.join(rooms)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(loaded.stdout.split()) & {"torch", "sklearn", "plotly"}


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_help_names_every_command(hpo: Run, args: tuple[str, ...]) -> None:
    outcome = hpo(*args)
    assert outcome.status == 0
    assert all(f"\n  {command} " in outcome.out for command in COMMANDS)
    headings = [line for line in outcome.out.splitlines() if line and not line.startswith((" ", "Usage"))]
    assert headings == ["Options:", "Search:", "Results:", "Service:", "Machine:"]
    assert ".." not in outcome.out.partition("Search:")[2]  # a summary that was cut short
    assert outcome.err == ""


@pytest.mark.parametrize("command", [*COMMANDS, "data list", "data fetch"])
def test_every_command_has_help(hpo: Run, command: str) -> None:
    outcome = hpo(*command.split(), "--help")
    assert outcome.status == 0
    assert outcome.out.startswith(f"Usage: hpo {command}")
    assert ".." not in outcome.out.partition("Commands:")[2]  # a summary that was cut short
    assert outcome.err == ""


def test_help_is_written_by_the_installed_command() -> None:
    outcome = subprocess.run([HPO, "--help"], capture_output=True, text=True, check=True)
    assert outcome.stderr == ""
    assert outcome.stdout.startswith("Usage: hpo ")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["bogus"], "No such command 'bogus' (see hpo --help)"),
        (["data"], "Missing command (see hpo data --help)"),
        (["top"], "Missing argument 'NAME' (see hpo top --help)"),
        (["top", "x", "-n", "0"], "Invalid value for '-n'"),
        (["launch"], "Missing argument 'FILE' (see hpo launch --help)"),
        (["launch", "tiny.toml", "--trials", "many"], "Invalid value for '--trials'"),
        (["launch", "tiny.toml", "--population", "0"], "Invalid value for '--population'"),
        (["launch", "tiny.toml", "--colour"], "No such option: --colour"),
        (["export", "x", "-o"], "Option '-o' requires an argument"),
        (["copy", "x"], "Missing option '--to' (see hpo copy --help)"),
        (["dashboard", "--port", "65536"], "Invalid value for '--port'"),
        (["--nope", "version"], "No such option: --nope"),
    ],
)
def test_wrong_usage_is_one_line(hpo: Run, args: list[str], problem: str) -> None:
    outcome = hpo(*args)
    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith(f"hpo: {problem}")
    assert outcome.err.count("\n") == 1


def test_commands_complete_in_the_shell(process: Callable[..., Running]) -> None:
    outcome = process(_HPO_COMPLETE="complete_bash", COMP_WORDS="hpo da", COMP_CWORD="1").outcome()
    assert outcome == (0, "dashboard\ndata\n", "")


def test_studies_complete_to_nothing_without_a_storage(process: Callable[..., Running], folder: Path) -> None:
    outcome = process(_HPO_COMPLETE="complete_bash", COMP_WORDS="hpo top ", COMP_CWORD="2").outcome()
    assert (outcome.status, outcome.out.strip(), outcome.err) == (0, "", "")
    assert not (folder / "hpo.db").exists()
