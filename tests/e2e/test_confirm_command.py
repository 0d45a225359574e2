"""`hpo confirm`: table, JSON, errors, and Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from command import Outcome

Run = Callable[..., Outcome]


def test_a_search_is_confirmed(hpo: Run, launched: None) -> None:
    outcome = hpo("confirm", "tiny", "--top", "2", "--seeds", "2", "--device", "cpu")
    assert outcome.status == 0
    lines = outcome.out.splitlines()
    assert (
        lines[0] == "tiny: mean val acc over 2 fresh seeds on the split of the search (fewer than 10 seeds), best first"
    )
    assert sorted(line.split()[0] for line in lines[2:6]) == ["Best-1", "Best-2", "First", "baseline"]
    assert lines[6].startswith("tuning ")
    assert [line.partition(" minus ")[2].partition(" is ")[0] for line in lines[7:9]] == [
        "the baseline",
        "the first trial",
    ]
    assert lines[9].startswith("the search's best score, ")
    assert "tiny-confirm: 8 trials" in outcome.err
    assert "population: 8 completed" in outcome.err

    again = hpo("confirm", "tiny", "--top", "2", "--seeds", "2", "--quiet", "--json")
    assert (again.status, again.err) == (0, "")
    found = json.loads(again.out)
    assert len(found["configurations"]) == 4
    assert len(found["winner"]["scores"]) == 2
    assert "tiny-confirm " in hpo("studies").out
    assert "tiny-confirm-2" not in hpo("studies").out


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["tiny", "--seeds", "1"], 2, "'--seeds': Input should be greater than or equal to 2"),
        (["tinny"], 1, "no study named 'tinny' (did you mean 'tiny'?)"),
        (["tiny"], 1, "study 'tiny': no finished trial yet, so there is nothing to confirm"),
    ],
)
def test_an_error_is_one_line(hpo: Run, args: list[str], status: int, message: str) -> None:
    assert hpo("submit", "tiny.toml").status == 0
    outcome = hpo("confirm", *args)
    assert (outcome.status, outcome.out) == (status, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_ctrl_c_requeues_unfinished_trials_and_the_same_command_continues(
    hpo: Run, launched: None, signal_at: Callable[..., None]
) -> None:
    confirm = ("confirm", "tiny", "--top", "1", "--seeds", "2")
    signal_at(1)
    outcome = hpo(*confirm)
    assert (outcome.status, outcome.out) == (130, ""), outcome.err
    assert outcome.err.splitlines()[-1] == "hpo: tiny-confirm: interrupted; confirm 'tiny' again to go on"
    assert hpo(*confirm, "--quiet").status == 0
    assert "6 complete" in hpo("studies").out.partition("tiny-confirm ")[2]
