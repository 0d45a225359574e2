"""Exports of many trials: JSON lines, comma-separated values and Parquet, of all trials or the best."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import optuna
import polars as pl
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState
from stored_studies import DROPOUT, LR, OWN, tree, trial
from tiny import search, study_of, trials_of

from hpo.errors import HpoError, UsageError
from hpo.results.export.parquet import export_parquet, parquet_bytes
from hpo.results.export.text import FIRST_COLUMNS, export_text
from hpo.search.study_records import CURVE
from hpo.storage import Storage

Store = Callable[..., optuna.Study]


def lines(storage: Storage, **options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export_text(storage, "digits", **options).splitlines()]


def rows(storage: Storage, name: str = "digits", **options: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(export_text(storage, name, form="csv", **options))))


def test_every_trial_is_a_line_whatever_became_of_it(stored: Store, storage: Storage) -> None:
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    values = [0.5, 0.25, None, None, None]
    stored([trial(value, state=state) for value, state in zip(values, states, strict=True)])
    found = lines(storage, every=True)
    assert [each["number"] for each in found] == [0, 1, 2, 3, 4]
    assert [each["state"] for each in found] == ["complete", "pruned", "failed", "running", "waiting"]
    assert [each["value"] for each in found] == values
    assert {each["schema"] for each in found} == {"hpo.trial/1"}
    assert [each["state"] for each in rows(storage, every=True)] == [each["state"] for each in found]


def test_the_best_are_in_their_order(stored: Store, storage: Storage) -> None:
    stored([trial(0.5), trial(0.9), trial(0.99, state=TrialState.PRUNED), trial(0.7)])
    assert [each["number"] for each in lines(storage, top=2)] == [1, 3]
    assert [each["number"] for each in rows(storage, top=50)] == ["1", "3", "0"]
    assert [each["value"] for each in rows(storage)] == ["0.9"]


def test_a_search_is_exported_with_its_curves_seeds_and_times(storage: Storage) -> None:
    search(study_of(), storage)
    found = [json.loads(line) for line in export_text(storage, "tiny", every=True).splitlines()]
    for each, stored_trial in zip(found, trials_of(storage), strict=True):
        assert each["curve"] == stored_trial.system_attrs[CURVE]
        assert each["seed"] == stored_trial.user_attrs["seed"]
        assert each["params"] == stored_trial.params
        assert (each["epochs"], each["precision"], each["device"]) == (2, "float64", "cpu")
        assert each["started"] < each["ended"]


def test_what_json_has_no_number_for_is_a_word_and_what_is_not_there_is_null(stored: Store, storage: Storage) -> None:
    clip = CategoricalDistribution([None, 1.0, float("inf")])
    study = stored([])
    study.set_user_attr("hpo:study", json.dumps(OWN))
    study.add_trials(
        [trial(float("-inf"), params={"clip": each}, distributions={"clip": clip}) for each in clip.choices]
    )
    study.add_trial(trial(state=TrialState.FAIL, params={}, distributions={}))
    found = lines(storage, every=True)
    assert [each["value"] for each in found] == ["-Infinity"] * 3 + [None]
    assert [each["params"] for each in found] == [{"clip": None}, {"clip": 1.0}, {"clip": "Infinity"}, {}]
    cells = [(row["value"], row["clip"]) for row in rows(storage, every=True)]
    assert cells == [("-Infinity", "null"), ("-Infinity", "1.0"), ("-Infinity", "Infinity"), ("", "")]


def test_lists_words_and_names_with_commas_are_cells(stored: Store, storage: Storage) -> None:
    written = tree(network={"hidden": {"choices": [[8], [16, 16]]}})
    space = {"lr": LR, "dropout": DROPOUT, "hidden": CategoricalDistribution(["[8]", "[16, 16]"])}
    params = {"lr": 1e-3, "dropout": 0.25, "hidden": "[16, 16]"}
    stored([trial(0.9, params=params, distributions=space)], written)
    assert rows(storage, every=True)[0]["hidden"] == "[16, 16]"


def test_no_two_columns_have_one_name(storage: Storage) -> None:
    search(study_of(training={"epochs": {"choices": [1, 2]}}, search={"trials": 3}), storage)
    heading, *_ = csv.reader(io.StringIO(export_text(storage, "tiny", every=True, form="csv")))
    assert len(set(heading)) == len(heading)
    assert [row["params.epochs"] == row["epochs"] for row in rows(storage, "tiny", every=True)] == [True] * 3


def test_a_parquet_file_has_the_cells_of_csv_with_their_types_and_the_curves(storage: Storage) -> None:
    search(study_of(training={"epochs": {"choices": [1, 2]}}, search={"trials": 3}), storage)
    found = pl.read_parquet(export_parquet(storage, "tiny", every=True))
    curves = [f"curve.{metric}" for metric in trials_of(storage)[0].system_attrs[CURVE]]
    as_text = pl.read_csv(export_text(storage, "tiny", every=True, form="csv").encode(), infer_schema=False)
    assert found.columns == [*as_text.columns, *curves]
    numbers = ("number", "value", "seed", "epochs", "lr", "params.epochs")
    for name in numbers:
        assert found[name].to_list() == as_text[name].cast(found[name].dtype).to_list(), name
    assert found["state"].to_list() == as_text["state"].to_list()
    assert [found[name].dtype for name in numbers] == [pl.Int64, pl.Float64, pl.Int64, pl.Int64, pl.Float64, pl.Int64]
    assert found["started"].dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_list() == as_text["started"].to_list()
    for row, each in zip(found.iter_rows(named=True), trials_of(storage), strict=True):
        assert {f"curve.{metric}": row[f"curve.{metric}"] for metric in each.system_attrs[CURVE]} == {
            f"curve.{metric}": values for metric, values in each.system_attrs[CURVE].items()
        }
    assert len(pl.read_parquet(export_parquet(storage, "tiny", top=2))) == 2
    with pytest.raises(UsageError, match="--format parquet is for several trials, but --trial exports one"):
        export_parquet(storage, "tiny", trial=1)


def test_values_of_several_types_are_json_in_a_parquet_file() -> None:
    record: dict[str, Any] = dict.fromkeys(FIRST_COLUMNS) | {"params": {}, "curve": {}, "values": {}}
    params: list[dict[str, Any]] = [
        {"word": "a", "on": True, "n": 1, "any": None, "big": 2**70, "rate": 1, "curve.value": 1},
        {"word": "\ud800", "on": False, "any": "x", "big": 1, "rate": 0.5},
    ]
    found = pl.read_parquet(parquet_bytes({**record, "params": each, "curve": {"value": [1]}} for each in params))
    assert found["word"].to_list() == ["a", "\\ud800"]
    assert found["on"].to_list() == [True, False]
    assert found["n"].to_list() == [1, None]
    assert found["any"].to_list() == ["null", '"x"']
    assert found["big"].to_list() == [str(2**70), "1"]
    assert found["rate"].to_list() == [1.0, 0.5]
    assert found["params.curve.value"].to_list() == [1, None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": True, "top": 3}, "--all excludes --top"),
        ({"top": 3, "confirmed": True}, "--top excludes --confirmed"),
        ({"every": True, "form": "toml"}, "--format toml holds one trial, but --all exports several"),
        ({"confirmed": True, "form": "csv"}, "--format csv is for several trials, but --confirmed exports one"),
    ],
)
def test_what_does_not_go_together(storage: Storage, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export_text(storage, "digits", **options)


@pytest.mark.parametrize("options", [{"every": True}, {"top": 2}, {"form": "csv"}, {}])
def test_a_study_without_trials_is_one_line(stored: Store, storage: Storage, options: dict[str, Any]) -> None:
    stored([])
    with pytest.raises(HpoError, match=r"study 'digits': no .*trial yet"):
        export_text(storage, "digits", **options)
