"""The tables of studies and data sets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from stored_studies import tree, trial

from hpo.data import Listing
from hpo.results.display.tables import datasets_table, studies_table
from hpo.results.study_facts import counts_by_state
from hpo.storage import Storage
from hpo.text import columns

Store = Callable[..., optuna.Study]


def test_a_study_is_a_row(stored: Store, storage: Storage) -> None:
    late = trial(0.9)
    late.datetime_start, late.datetime_complete = datetime(2031, 1, 2, 3, 4, 5), datetime(2031, 1, 2, 3, 4, 6)
    stored([trial(0.5), late, trial(0.95, state=TrialState.PRUNED), trial(state=TrialState.FAIL)])
    heading, row = studies_table(storage).splitlines()
    assert heading.split("  ")[0] == "study"
    assert [cell.strip() for cell in row.split("  ") if cell] == [
        "digits",
        "digits",
        "2 complete, 1 pruned, 1 failed",
        "0.9000 val acc",
        "2031-01-02 03:04:06",
    ]


def test_the_best_of_a_loss_is_the_lowest(stored: Store, storage: Storage) -> None:
    stored([trial(0.5), trial(0.25)], tree(search={"metric": "val_loss"}))
    assert "0.2500 val loss" in studies_table(storage)


def test_studies_stand_in_alphabetical_order(stored: Store, storage: Storage) -> None:
    for name in ("b", "c", "a"):
        stored([], name=name)
    assert [line.split()[0] for line in studies_table(storage).splitlines()[1:]] == ["a", "b", "c"]


def test_a_study_without_trials_and_one_by_another_program(stored: Store, storage: Storage) -> None:
    stored([], name="fresh")
    optuna.create_study(storage=storage, study_name="one").add_trial(trial(2.0))
    two = optuna.create_study(storage=storage, study_name="two", directions=["minimize", "maximize"])
    two.add_trial(optuna.trial.create_trial(values=[0.5, 1.0]))
    rows = [row.split()[:6] for row in studies_table(storage).splitlines()[1:]]
    assert rows[0] == ["fresh", "digits", "none", "-", "-"]
    assert rows[1][:5] == ["one", "-", "1", "complete", "2.0000"]
    assert rows[2][:5] == ["two", "-", "1", "complete", "0.5000"]


def test_no_studies_leave_the_heading(storage: Storage) -> None:
    assert studies_table(storage).splitlines() == ["study  data set  trials  best  last activity"]


def test_states_are_counted_by_name() -> None:
    states = {TrialState.COMPLETE: 2, TrialState.WAITING: 1}
    assert counts_by_state(states) == {"complete": 2, "pruned": 0, "failed": 0, "running": 0, "waiting": 1}


def test_data_sets_are_rows() -> None:
    text = datasets_table(
        [
            Listing("mnist", Path("/data/mnist"), "IDX", 60000, "HPO_DATA_DIR"),
            Listing("cifar10", None, "binary", None, "not found: hpo data fetch cifar10"),
        ]
    )
    assert text.splitlines() == [
        "data set  place        kind    train images  note",
        "mnist     /data/mnist  IDX     60,000        HPO_DATA_DIR",
        "cifar10   -            binary  -             not found: hpo data fetch cifar10",
    ]


@given(st.lists(st.lists(st.text(max_size=8), min_size=3, max_size=3), min_size=1, max_size=6))
def test_any_text_stays_in_its_row(rows: list[list[str]]) -> None:
    lines = columns(rows).split("\n")
    assert len(lines) == len(rows)
    assert all(character.isprintable() for line in lines for character in line)


def test_wide_characters_keep_the_columns_straight() -> None:
    assert columns([["名前", "b"], ["abcd", "c"]]).splitlines() == ["名前  b", "abcd  c"]
