"""`hpo compare` of a small trained grid: table, JSON, figure and errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Outcome

Run = Callable[..., Outcome]

GRID = "launch tiny.toml --quiet --set search.sampler=grid --set search.repeats=2 --set optimizer.lr=0.3"


@pytest.fixture
def trained(after: Callable[..., None]) -> None:
    """Train two dropout rates, each under two seeds, as the study `tiny`; and no dropout as `plain`."""
    after(
        f"{GRID} --trials 4 --set 'network.dropout={{ choices = [0.0, 0.9] }}'",
        f"{GRID} --trials 2 --set network.dropout=0.0 --name plain",
    )


def test_a_grid_is_compared_by_its_configurations(hpo: Run, trained: None, folder: Path) -> None:
    outcome = hpo("compare", "tiny", "-o", "tiny.html")
    assert (outcome.status, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("configuration  trials")
    assert lines[1].startswith("dropout: 0.0   0-1: 2 complete  ")
    assert lines[2].startswith("dropout: 0.9   2-3: 2 complete  ")
    page = (folder / "tiny.html").read_text(encoding="utf-8")
    assert "dropout: 0.9" in page
    assert "plotly.js v" in page


def test_equal_configurations_under_equal_seeds_do_not_differ(hpo: Run, trained: None) -> None:
    """`plain` is the first configuration of `tiny`: the seeds are the same, and so are the curves."""
    outcome = hpo("compare", "plain", "tiny", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    plain, same, dropped = json.loads(outcome.out)["groups"]
    assert [group["label"] for group in (plain, same, dropped)] == [
        "plain",
        "tiny (dropout: 0.0)",
        "tiny (dropout: 0.9)",
    ]
    assert same["seeds"] == plain["seeds"] == dropped["seeds"]
    assert same["test"]["difference"]["mean"] == pytest.approx(0, abs=1e-6)
    assert same["no_test_because"] == "there is no difference in any pair"
    final = [group["summary"]["final"]["train_accuracy"]["mean"] for group in (plain, dropped)]
    assert final[1] < final[0]
    assert dropped["test"]["difference"]["n"] == 2


def test_configurations_can_be_selected_by_trial_and_compared_by_parameter(hpo: Run, trained: None) -> None:
    selected = hpo("compare", "tiny#3", "plain")
    assert selected.status == 0
    assert "tiny: dropout: 0.9" in selected.out
    by_dropout = hpo("compare", "tiny", "--by", "dropout")
    assert "difference" in by_dropout.out
    assert "[" not in by_dropout.out  # each rate has one configuration


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["tinny"], 1, "sqlite:///hpo.db: no study named 'tinny' (did you mean 'tiny'?)"),
        (["tiny", "tiny"], 2, "tiny: the same configuration as tiny; name each configuration once"),
        (["tiny", "--by", "lr"], 2, "--by: 'lr' is not searched; searched parameters: dropout"),
        (["tiny", "-o", "tiny.pdf"], 2, "tiny.pdf: use a name that ends in .html or .png"),
        (["tiny", "-o", "missing/tiny.html"], 1, "missing/tiny.html: cannot be written (No such file or directory)"),
        ([], 2, "Missing argument 'NAME...' (see hpo compare --help)"),
    ],
)
def test_an_error_is_one_line(hpo: Run, trained: None, args: list[str], status: int, message: str) -> None:
    outcome = hpo("compare", *args)
    assert (outcome.status, outcome.err) == (status, f"hpo: {message}\n")
    if status == 2:
        assert outcome.out == ""


def test_the_activations_of_a_study_are_drawn_without_its_trials(hpo: Run, trained: None, folder: Path) -> None:
    outcome = hpo("plot", "tiny", "--figure", "activations")
    assert outcome == (0, "tiny-activations.html\n", "")
    assert "hidden 1" in (folder / "tiny-activations.html").read_text(encoding="utf-8")


def test_comparing_creates_no_storage(hpo: Run, folder: Path) -> None:
    outcome = hpo("compare", "tiny")
    assert outcome.status == 1
    assert "sqlite:///hpo.db: no such file" in outcome.err
    assert not (folder / "hpo.db").exists()
