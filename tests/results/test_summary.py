"""The summary of a launch and the next commands."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.trial import TrialState
from stored_studies import tree, trial

from hpo.results.confirm.study import CONFIRMS
from hpo.results.display.summary import next_lines, summary_lines
from hpo.search.events import StudyEnded
from hpo.storage import Storage, identity
from hpo.studyfile import Study, parse_study

Store = Callable[..., optuna.Study]
FINISHED = StudyEnded(reason="finished", completed=7, pruned=1, failed=0, seconds=2.5)


def study(name: str = "digits") -> Study:
    return parse_study({**tree(), "name": name}, "x.toml")


def test_the_five_best_and_the_next_commands(stored: Store, storage: Storage) -> None:
    stored([trial(number / 10) for number in range(1, 8)])
    lines = [*summary_lines(study(), storage, FINISHED), *next_lines(study(), storage, None)]
    assert lines[0] == "digits: finished, 7 completed, 1 pruned, 0 failed in 2.5 s"
    assert [line.rsplit(" | ", 1)[0] for line in lines[1:6]] == [
        f"Best-{rank} (trial {7 - rank}) | val acc: 0.{8 - rank}000" for rank in range(1, 6)
    ]
    assert lines[6:] == ["next: hpo confirm digits", "      hpo export digits -o best.json", "      hpo dashboard"]


def test_the_best_at_an_edge_is_warned_of(stored: Store, storage: Storage) -> None:
    stored([trial(0.9, params={"lr": 0.1, "dropout": 0.25}), trial(0.5, params={"lr": 1e-6, "dropout": 0.25})])
    warnings = [line for line in summary_lines(study(), storage, FINISHED) if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "--set optimizer.lr.high=1 --extend" in warnings[0]


@pytest.mark.parametrize(("trivial", "warned"), [(0.5, True), (0.4999, False), (None, False)])
def test_a_best_trial_that_is_not_better_than_the_trivial_baseline_is_warned_of(
    stored: Store, storage: Storage, trivial: float | None, warned: bool
) -> None:
    original = stored([trial(0.5), trial(0.4)])
    record = {**original.user_attrs["hpo:data"], "trivial": {"val_accuracy": trivial}}
    original.set_user_attr("hpo:data", record)
    lines = summary_lines(study(), storage, FINISHED)
    warning = (
        "warning: the best trial (0.5000) is not better than the trivial baseline: val acc 0.5000 (always the most "
        "frequent class); check the inputs and targets, or widen the search space"
    )
    assert (warning in lines) == warned


def test_a_grid_is_to_be_compared(stored: Store, storage: Storage) -> None:
    stored([trial(0.9)])
    grid = parse_study(tree(network={"dropout": 0.1}, optimizer={"lr": 0.1}, search={"sampler": "grid"}), "x.toml")
    assert next_lines(grid, storage, None)[0] == "next: hpo compare digits"


def test_a_confirmed_study_is_tested_next_and_then_reported(stored: Store, storage: Storage) -> None:
    original = stored([trial(0.9)])
    confirms = stored([trial(0.8), trial(state=TrialState.RUNNING)], tree(search={"trials": 2}), name="digits-confirm")
    record = {"study": "digits", "identity": identity(original.user_attrs, "digits"), "seeds": 2, "candidates": []}
    confirms.set_user_attr(CONFIRMS, record)
    assert next_lines(study(), storage, None)[0] == "next: hpo confirm digits"  # a run is left
    running = confirms.get_trials(states=(TrialState.RUNNING,))[0]
    storage.set_trial_state_values(running._trial_id, TrialState.COMPLETE, [0.7])
    assert next_lines(study(), storage, None)[:2] == [
        "next: hpo test digits",
        "      hpo export digits --confirmed -o best.json",
    ]
    original.set_user_attr("hpo:data", {**original.user_attrs["hpo:data"], "test": 0})
    assert next_lines(study(), storage, None)[0] == "next: hpo report digits"  # it has no test set


def test_nothing_finished_leaves_nothing_to_rank(stored: Store, storage: Storage) -> None:
    stored([trial(0.9, state=TrialState.PRUNED)])
    interrupted = StudyEnded(reason="interrupted", completed=0, pruned=1, failed=0, seconds=2.5)
    assert summary_lines(study(), storage, interrupted) == [
        "digits: interrupted, 0 completed, 1 pruned, 0 failed in 2.5 s; launch it again to continue"
    ]
    assert next_lines(study(), storage, None) == ["next: hpo dashboard"]


def test_a_search_that_ends_without_a_best_trial_says_why(stored: Store, storage: Storage) -> None:
    stored([trial(0.9, state=TrialState.PRUNED)] * 8)
    ended = StudyEnded(reason="finished", completed=0, pruned=8, failed=0, seconds=2.5)
    _, line = summary_lines(study(), storage, ended)
    assert line.startswith("study 'digits': no trial to rank: 8 pruned; it has ended")


def test_an_exhausted_space_is_said_to_be(stored: Store, storage: Storage) -> None:
    stored([trial(0.9)])
    exhausted = StudyEnded(reason="space exhausted", completed=1, pruned=0, failed=0, seconds=0.5)
    assert "every configuration of the search space has been tried" in summary_lines(study(), storage, exhausted)[0]


def test_commands_name_another_storage_without_its_password(stored: Store, storage: Storage) -> None:
    name = "it's one"
    stored([trial(0.9)], name=name)
    lines = next_lines(study(name), storage, "postgresql://me:secret@host/hpo")
    assert lines[0] == """next: hpo confirm 'it'"'"'s one' --storage 'postgresql://me:***@host/hpo'"""
    assert "secret" not in "\n".join(lines)


def test_a_name_with_a_dash_in_front_is_no_option_of_the_commands(stored: Store, storage: Storage) -> None:
    stored([trial(0.9)], name="-x")
    lines = next_lines(study("-x"), storage, "sqlite:///a.db")
    assert lines[0] == "next: hpo confirm --storage sqlite:///a.db -- -x"
    assert lines[1].strip() == "hpo export --storage sqlite:///a.db -o best.json -- -x"
