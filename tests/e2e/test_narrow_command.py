"""`hpo narrow`: the next study's file, rounds, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from command import Outcome

from hpo.studyfile import read_study

Run = Callable[..., Outcome]


def test_the_next_study_is_written_and_can_be_launched(hpo: Run, launched: None, folder: Path) -> None:
    outcome = hpo("narrow", "tiny")
    assert (outcome.status, outcome.out) == (0, "tiny-2.toml\n")
    first, *changes = outcome.err.splitlines()
    assert first.startswith("tiny: around the best 3 of 6 different configurations (val acc 0.")
    assert changes
    text = (folder / "tiny-2.toml").read_text()
    assert text.startswith("".join(f"# {line}\n" for line in outcome.err.splitlines()))
    study = read_study("tiny-2.toml")
    assert (study.name, study.search.seed, study.search.start_from) == ("tiny-2", 1, ["tiny"])
    assert hpo("check", "tiny-2.toml").status == 0
    second = hpo("launch", "tiny-2.toml")
    assert second.status == 0
    assert "tiny-2: finished, 6 completed" in second.err
    assert hpo("narrow", "tiny") == outcome
    assert hpo("narrow", "tiny-2", "-o", "third.toml").out == "third.toml\n"
    assert read_study("third.toml").name == "tiny-3"


def test_rounds_are_searched_and_compared_and_continue_after_ctrl_c(
    hpo: Run, launched: None, folder: Path, signal_at: Callable[..., None]
) -> None:
    rounds = ("narrow", "tiny", "--rounds", "2", "--name", "round", "--device", "cpu")
    signal_at(3)  # in the first round's second population
    outcome = hpo(*rounds)
    assert (outcome.status, outcome.out) == (130, "")
    assert "round: interrupted" in outcome.err
    assert "Traceback" not in outcome.err
    outcome = hpo(*rounds)
    assert outcome.status == 0
    first, second = outcome.out.splitlines()
    assert first.startswith("round: best val acc 0.")
    assert " tiny (0." in first
    assert second.startswith("round-2: best val acc 0.")
    assert " round (0." in second
    assert outcome.err.count("finished, 6 completed") == 2
    assert list(folder.glob("*.toml")) == [folder / "tiny.toml"]


@pytest.mark.parametrize(
    ("args", "status", "problem"),
    [
        (["tiny"], 1, "study 'tiny': has 2 different completed configurations, and narrowing needs 6; launch it "),
        (["tinny"], 1, "sqlite:///hpo.db: no study named 'tinny' (did you mean 'tiny'?)"),
        (["tiny", "--rounds", "2", "-o", "x.toml"], 2, "--output: cannot be combined with --rounds"),
        (["tiny", "--device", "cpu"], 2, "--device: needs --rounds"),
        (["tiny", "--workers", "2"], 2, "--workers: needs --rounds"),
        (["tiny", "--rounds", "0"], 2, "Invalid value for '--rounds'"),
        (["tiny", "--rounds", "1", "--device", "abacus"], 1, "study 'tiny': has 2 different"),
    ],
)
def test_an_error_is_one_line(hpo: Run, after: Callable[..., None], args: list[str], status: int, problem: str) -> None:
    after("launch tiny.toml --quiet --trials 2")
    outcome = hpo("narrow", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert outcome.err.startswith(f"hpo: {problem}")
    assert outcome.err.count("\n") == 1


def test_a_study_that_starts_from_a_missing_study_is_refused(hpo: Run) -> None:
    outcome = hpo("launch", "tiny.toml", "--set", 'search.start_from=["earlier"]')
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err == (
        "hpo: tiny.toml: search.start_from: sqlite:///hpo.db: no study named 'earlier'; the storage has no study yet: "
        "start one with `hpo launch FILE`\n"
    )
