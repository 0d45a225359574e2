"""The study that follows: its name, seed and beginning, and the file it is written to."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial
from stored_studies import DROPOUT, LR, tree, trial

from hpo.errors import HpoError, UnknownStudyError, UsageError
from hpo.results.narrow.next_study import next_name, propose, write_study
from hpo.storage import Storage, load_study
from hpo.studyfile import parse_study, read_study

Store = Callable[..., optuna.Study]


def trials_at(lrs: Sequence[float], best: float = 0.9) -> list[FrozenTrial]:
    """Trials that are the worse the later they come."""
    return [
        trial(
            best - 0.01 * place,
            params={"lr": lr, "dropout": 0.3},
            distributions={"lr": LR, "dropout": DROPOUT},
        )
        for place, lr in enumerate(lrs)
    ]


SPREAD = (2e-4, 3e-4, 4e-4, 2e-6, 3e-6, 4e-6)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_next_study_is_the_old_one_with_other_ranges(stored: Store, storage: Storage) -> None:
    written = tree(search={"trials": 8, "sampler": "random", "seed": 4, "repeat": True})
    stored(trials_at(SPREAD), written)
    study, lines = propose(storage, "digits")
    expected = tree(
        network={"dropout": {"low": 0.24, "high": 0.36}},
        optimizer={"lr": {"low": 1e-4, "high": 1e-3, "log": True}},
        search={"trials": 8, "sampler": "random", "seed": 5, "repeat": True, "start_from": ["digits"]},
    )
    assert study == parse_study({**expected, "name": "digits-2"}, "x.toml")
    assert lines == (
        "digits: around the best 3 of 6 different configurations (val acc 0.8800 or more)",
        "dropout: 0..0.6 -> 0.24..0.36",
        "lr: 1e-06..0.1 -> 0.0001..0.001",
    )
    assert propose(storage, "digits") == (study, lines)


def test_what_the_old_one_started_from_counts_and_is_started_from_again(stored: Store, storage: Storage) -> None:
    stored(trials_at([8e-2, 4e-2, 3e-2], best=0.99), name="first")
    stored(trials_at(SPREAD), tree(search={"start_from": ["first"]}), name="second")
    study, lines = propose(storage, "second")
    assert study.search.start_from == ["second", "first"]
    assert lines[0] == "second: around the best 3 of 9 different configurations (val acc 0.9700 or more)"
    assert "lr: 1e-06..0.1 -> 0.01..1 (widened: the best value, 8.0e-02, lies at the upper edge)" in lines
    storage.delete_study(load_study(storage, "first")._study_id)
    study, lines = propose(storage, "second")
    assert study.search.start_from == ["second"]
    assert lines[0].endswith("no study named 'first'; the storage has 'second'; its trials are not used")
    assert lines[1] == "second: around the best 3 of 6 different configurations (val acc 0.8800 or more)"


def test_points_have_been_tried_and_the_baseline_stays(stored: Store, storage: Storage) -> None:
    search = {"points": [{"lr": 1e-5, "dropout": 0.5}], "repeats": 2, "trials": 8}
    stored(trials_at(SPREAD), tree(search=search) | {"baseline": {"lr": 0.01}})
    study, lines = propose(storage, "digits")
    assert study.search.points == []
    assert study.search.repeats == 2
    assert study.first_settings.baseline == {"lr": 0.01}
    path = write_study(study, lines)
    assert read_study(path) == study
    assert path.read_text().endswith("\n[baseline]\nlr = 0.01\n")


def test_the_loss_is_named_and_the_largest_seed_has_a_successor(stored: Store, storage: Storage) -> None:
    stored(trials_at(SPREAD), tree(search={"metric": "val_loss", "seed": 2**63 - 1}))
    study, lines = propose(storage, "digits")
    assert lines[0].endswith("(val loss 0.8700 or less)")
    assert study.search.seed == 0


def test_where_nothing_changes_it_says_so(stored: Store, storage: Storage) -> None:
    written = tree(network={"dropout": 0.3})
    spread = [
        trial(0.9 - lr, params={"lr": lr}, distributions={"lr": LR}) for lr in (2e-6, 1e-4, 5e-2, 6e-2, 7e-2, 8e-2)
    ]
    stored(spread, written)
    assert propose(storage, "digits")[1][1:] == ("every range stays as it is: the best trials lie all over it",)


@pytest.mark.parametrize(
    ("name", "start_from", "following"),
    [
        ("digits", [], "digits-2"),
        ("digits-2", ["digits"], "digits-3"),
        ("digits-9", ["digits-8", "digits"], "digits-10"),
        ("cifar-10", [], "cifar-10-2"),
        ("cifar-10-2", ["cifar-10"], "cifar-10-3"),
        ("wide", ["digits"], "wide-2"),
        ("x" * 200, [], "x" * 198 + "-2"),
    ],
)
def test_names_are_counted_up_where_narrowing_gave_the_number(name: str, start_from: list[str], following: str) -> None:
    written = {**tree(search={"start_from": start_from}), "name": name}
    assert next_name(parse_study(written, "x.toml")) == following


def test_another_name_can_be_given_but_not_the_old_one(stored: Store, storage: Storage) -> None:
    stored(trials_at(SPREAD))
    assert propose(storage, "digits", "narrower")[0].name == "narrower"
    with pytest.raises(UsageError, match=r"study 'digits': search.start_from.0: is the study itself"):
        propose(storage, "digits", "digits")


def test_what_cannot_be_narrowed_is_one_line(stored: Store, storage: Storage) -> None:
    stored(trials_at(SPREAD[:5]))
    with pytest.raises(HpoError, match="study 'digits': has 5 different completed configurations"):
        propose(storage, "digits")
    with pytest.raises(UnknownStudyError, match="no study named 'digit'"):
        propose(storage, "digit")
    optuna.create_study(storage=storage, study_name="plain")
    with pytest.raises(HpoError, match="study 'plain' was not created by hpo"):
        propose(storage, "plain")


def proposed(stored: Store, storage: Storage, **changed: Any) -> Any:
    stored(trials_at(SPREAD), tree(**changed))
    return propose(storage, "digits")


def test_the_file_reads_back_as_the_study_and_is_readable(stored: Store, storage: Storage) -> None:
    study, lines = proposed(stored, storage, network={"activation": "tanh"})
    path = write_study(study, lines)
    assert path == Path("digits-2.toml")
    assert read_study(path) == study
    text = path.read_text()
    assert text.startswith("# digits: around the best 3 of 6 ")
    assert 'activation = "tanh"\ndropout = { low = 0.24, high = 0.36 }\n' in text
    assert "lr = { low = 0.0001, high = 0.001, log = true }\n" in text
    assert "split_seed" not in text


def test_a_file_that_says_the_same_is_left_and_another_refused(stored: Store, storage: Storage, folder: Path) -> None:
    study, lines = proposed(stored, storage)
    path = write_study(study, lines, folder / "here.toml")
    assert path == folder / "here.toml"
    path.write_text("# my own words\n" + path.read_text())
    before = path.read_text()
    assert write_study(study, lines, path) == path
    assert path.read_text() == before
    path.write_text(before.replace("trials = 8", "trials = 9"))
    with pytest.raises(HpoError, match=r"here.toml: exists and contains something else; name another file with -o$"):
        write_study(study, lines, path)
    assert "trials = 9" in path.read_text()
    (folder / "digits-2.toml").write_text("no TOML")
    with pytest.raises(HpoError, match=r"^digits-2.toml: exists and contains something else"):
        write_study(study, lines)


def test_a_file_that_cannot_be_written_leaves_nothing(stored: Store, storage: Storage, folder: Path) -> None:
    study, lines = proposed(stored, storage)
    with pytest.raises(HpoError, match=r"missing/x.toml: cannot be written"):
        write_study(study, lines, Path("missing/x.toml"))
    with pytest.raises(UsageError, match=r"^x.json: the study is written as TOML"):
        write_study(study, lines, Path("x.json"))
    assert [path.name for path in folder.iterdir() if "hpo.db" not in path.name] == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a/b c", "a%2Fb%20c.toml"),
        ("../../etc", "%2E.%2F..%2Fetc.toml"),
        ("--help", "%2D-help.toml"),
        ("Ääh", "Ääh.toml"),
        ("-", "%2D.toml"),
    ],
)
def test_any_name_makes_a_safe_file(stored: Store, storage: Storage, folder: Path, name: str, file: str) -> None:
    stored(trials_at(SPREAD))
    path = write_study(*propose(storage, "digits", name))
    assert path == Path(file)
    assert read_study(path).name == name
    assert stat.S_ISREG(path.stat().st_mode)
    assert path.resolve().parent == folder
