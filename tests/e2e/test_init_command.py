"""`hpo init`: a starter study file that can be launched, and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from command import Outcome

from hpo.starter.schema_file import COPY

Run = Callable[..., Outcome]


def test_a_starter_study_is_written_and_can_be_launched(hpo: Run, folder: Path) -> None:
    rows = "".join(f"{number % 7},{number % 5},{number % 7 + number / 100}\n" for number in range(60))
    (folder / "houses.csv").write_text(f"rooms,floors,price\n{rows}")
    started = hpo("init", "--data", "table:houses.csv", "--target", "price", "--name", "my houses")
    file = "my%20houses.toml"
    assert started == (0, f"{file}\n", f"next: hpo check {file}\n      hpo launch {file}\n")
    assert (folder / COPY).exists()
    assert hpo("check", file).status == 0
    small = ("--trials", "2", "--set", "training.epochs=1", "--set", "data.folds=2", "--device", "cpu", "--quiet")
    assert hpo("launch", file, *small).status == 0
    again = hpo("init", "--data", "table:houses.csv", "--target", "price", "--name", "my houses")
    assert again == (1, "", f"hpo: {file}: exists already: name another file with -o, or move it\n")


def test_a_wrong_option_is_named(hpo: Run, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    outcome = hpo("init", "--data", "digts", "-o", "x.toml")
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith("hpo: --data: unknown data set 'digts' (did you mean 'digits'?)")
    several = hpo("init", "--objective", "own.py:f", "--task", "regression")
    assert several.err.startswith("hpo: --objective: cannot be combined with --task")
    assert sorted(folder.rglob("*")) == before
