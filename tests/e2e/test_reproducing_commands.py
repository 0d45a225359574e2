"""`hpo verify`, `hpo replay`, `hpo report`, and the file formats of `hpo export`."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from command import Outcome

from hpo.cli.app import require_no_terminal
from hpo.errors import UsageError

Run = Callable[..., Outcome]


def test_a_study_is_verified_and_its_export_has_the_certificate(hpo: Run, launched: None) -> None:
    outcome = hpo("verify", "tiny", "--trials", "2")
    assert (outcome.status, outcome.err) == (0, "")
    *trials, last = outcome.out.splitlines()
    assert len(trials) == 2
    assert all(line.startswith("trial ") and "largest difference in any epoch: " in line for line in trials)
    assert last.startswith("tiny: 2 trials, each trained again alone on cpu in float32")
    certificate = json.loads(hpo("verify", "tiny", "--trials", "1", "--json").out)
    assert json.loads(hpo("export", "tiny").out)["verified"] == certificate


@pytest.mark.parametrize("form", ["json", "toml"])
def test_an_export_is_replayed(hpo: Run, launched: None, folder: Path, form: str) -> None:
    file = f"best.{form}"
    assert hpo("export", "tiny", "--format", form, "-o", file) == (0, "", "")
    (folder / "hpo.db").unlink()
    outcome = hpo("replay", file)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.startswith("val acc 0.")
    (run,) = json.loads(hpo("replay", file, "--json").out)["runs"]
    assert abs(run["difference"]) <= 1 / 40  # one of 40 validation examples may be classified differently


def test_all_trials_are_exported_as_lines_and_as_a_table(hpo: Run, launched: None) -> None:
    lines = hpo("export", "tiny", "--all").out.splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(6))
    table = list(csv.DictReader(io.StringIO(hpo("export", "tiny", "--top", "3", "--format", "csv").out)))
    assert len(table) == 3
    assert {"number", "value", "lr", "dropout"} <= table[0].keys()
    assert hpo("export", "tiny", "--all", "--format", "parquet", "-o", "trials.parquet") == (0, "", "")
    assert pl.read_parquet("trials.parquet")["number"].to_list() == list(range(6))


def test_a_binary_file_is_not_written_to_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = os.openpty()
    with open(controller, "rb"), open(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        require_no_terminal(Path("trials.parquet"), "--format parquet")
        with pytest.raises(UsageError, match=r"^--format parquet: .* stdout is a terminal; add -o FILE"):
            require_no_terminal(None, "--format parquet")


def test_a_report_is_written(hpo: Run, launched: None, folder: Path) -> None:
    assert hpo("report", "tiny") == (0, "tiny-report.html\n", "")
    assert hpo("report", "tiny", "-o", "r.html") == (0, "r.html\n", "")
    assert hpo("report", "tiny", "--format", "markdown") == (0, "tiny-report.md\n", "")
    assert Path("tiny-report.md").read_text(encoding="utf-8").startswith("## Hyperparameter search: tiny\n")
    best = r"Best-1 \(trial \d+\): validation accuracy 0\.\d{4} in the search"
    assert re.search(best, (folder / "r.html").read_text())


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["verify", "tinny"], 1, "no study named 'tinny' (did you mean 'tiny'?)"),
        (["verify", "tiny", "--device", "tpu"], 2, "tpu"),
        (["replay", "tiny.toml"], 2, "tiny.toml: is not an export: write one with `hpo export NAME -o best.json`"),
        (["replay", "missing.json"], 2, "missing.json: no such file"),
        (["export", "tiny", "--confirmed"], 1, "study 'tiny' has not been confirmed: run `hpo confirm` first"),
        (["export", "tiny", "--all", "--format", "toml"], 2, "--format toml holds one trial"),
        (["export", "tiny", "--format", "xml"], 2, "xml"),
        (["report", "tinny"], 1, "no study named 'tinny' (did you mean 'tiny'?)"),
        (["report", "tiny", "-o", "missing/r.html"], 1, "missing/r.html: cannot be written"),
    ],
)
def test_an_error_is_one_line(hpo: Run, launched: None, args: list[str], status: int, message: str) -> None:
    outcome = hpo(*args)
    assert (outcome.status, outcome.out) == (status, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
