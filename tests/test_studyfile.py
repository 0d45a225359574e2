"""Study files: reading, the settings of a trial, and the error for each mistake."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpo.errors import StudyFileError
from hpo.studyfile import Choices, Parameter, Range, Study, differing_keys, parse_study, read_study
from hpo.studyfile.writing import study_text

DESIGN = """
name = "mnist-dropout"
description = "shown as the study's note in the dashboard"

[data]
dataset = "mnist"
validation = 0.2
train_size = 500
split_seed = 0

[network]
kind = "mlp"
hidden = [100, 100]
activation = "relu"
init = "he"
batch_norm = false
dropout = { low = 0.0, high = 0.6 }

[optimizer]
kind = "sgd"
lr = { low = 1e-6, high = 1e-2, log = true }
weight_decay = { low = 1e-8, high = 1e-4, log = true }

[training]
epochs = 50
batch_size = 100
precision = "auto"

[search]
trials = 100
sampler = "tpe"
pruner = "hyperband"
metric = "val_accuracy"
score = "last"
population = 32
seed = 0
"""

SMALLEST: dict[str, Any] = {
    "name": "small",
    "data": {"dataset": "digits"},
    "network": {"kind": "mlp"},
    "optimizer": {"lr": 0.1},
    "training": {"epochs": 2},
    "search": {"trials": 3},
}

OWN: dict[str, Any] = {"module": "my_net.py:Net"}


def tree(**values: Any) -> dict[str, Any]:
    """Return the smallest study with other values: `optimizer__lr=1` sets [optimizer] lr."""
    changed = copy.deepcopy(SMALLEST)
    for name, value in values.items():
        *sections, key = name.split("__")
        (changed[sections[0]] if sections else changed)[key] = value
    return changed


def study(**values: Any) -> Study:
    return parse_study(tree(**values), "s.toml")


def problem(**values: Any) -> str:
    """Return the error for the smallest study with these values, without the file."""
    with pytest.raises(StudyFileError) as caught:
        study(**values)
    assert str(caught.value).startswith("s.toml: ")
    return str(caught.value).removeprefix("s.toml: ")


@pytest.fixture
def design(tmp_path: Path) -> Path:
    path = tmp_path / "design.toml"
    path.write_text(DESIGN)
    return path


def failure(path: Path, *overrides: str, **changes: Any) -> str:
    with pytest.raises(StudyFileError) as caught:
        read_study(path, overrides, **changes)
    return str(caught.value).removeprefix(f"{path}: ")


class TestReading:
    def test_the_example_of_the_design_is_read(self, design: Path) -> None:
        study = read_study(design)
        assert study.source == str(design)
        assert study.name == "mnist-dropout"
        assert study.description == "shown as the study's note in the dashboard"
        assert (study.data.dataset, study.data.validation, study.data.train_size) == ("mnist", 0.2, 500)
        assert (study.search.trials, study.search.pruner, study.search.population) == (100, "hyperband", 32)
        assert study.parameters == (
            Parameter("dropout", ("network", "dropout"), Range(0.0, 0.6), integer=False),
            Parameter("lr", ("optimizer", "lr"), Range(1e-6, 1e-2, log=True), integer=False),
            Parameter("weight_decay", ("optimizer", "weight_decay"), Range(1e-8, 1e-4, log=True), integer=False),
        )

    def test_every_default_is_filled_in(self) -> None:
        assert study().resolved() == {
            "name": "small",
            "description": "",
            "data": {"dataset": "digits", "validation": "auto", "split_seed": 0, "stratify": "auto"},
            "network": {
                "kind": "mlp",
                "hidden": [100, 100],
                "activation": "relu",
                "init": "he",
                "batch_norm": False,
                "dropout": 0.0,
            },
            "optimizer": {"kind": "sgd", "lr": 0.1, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0},
            "training": {
                "epochs": 2,
                "batch_size": 100,
                "precision": "auto",
                "label_smoothing": 0.0,
                "ema": 0.0,
                "flip": 0.0,
                "shift": 0,
                "cutout": 0,
                "mixup": 0.0,
                "keep": "none",
                "keep_trials": 5,
                "checkpoint": "auto",
            },
            "search": {
                "trials": 3,
                "sampler": "tpe",
                "pruner": "auto",
                "rung": 3,
                "factor": 3,
                "random_share": 0.1,
                "metric": "val_accuracy",
                "score": "last",
                "population": "auto",
                "seed": 0,
                "points": [],
                "repeats": 1,
                "repeat": False,
                "retries": 1,
                "start_from": [],
                "limits": {},
            },
            "baseline": {},
        }

    def test_the_import_loads_no_large_package(self) -> None:
        code = "import sys, hpo.studyfile; print({'torch', 'optuna', 'numpy'} & set(sys.modules))"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"

    def test_a_resolved_tree_and_an_export_are_read_back_from_json(self, design: Path, tmp_path: Path) -> None:
        study, resolved, export = read_study(design), tmp_path / "resolved.json", tmp_path / "best.JSON"
        resolved.write_text(json.dumps(study.resolved()))
        export.write_text(json.dumps({"schema": "hpo.best/1", "value": 0.9, "config": study.resolved()}))
        assert read_study(resolved) == study
        assert read_study(export) == study

    def test_a_byte_order_mark_is_ignored(self, design: Path) -> None:
        design.write_bytes(b"\xef\xbb\xbf" + design.read_bytes())
        assert read_study(design).name == "mnist-dropout"

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("s.toml", b"", "is empty"),
            ("s.toml", b" \n\n", "is empty"),
            ("s.toml", b"# nothing yet\n", "name: missing"),
            ("s.toml", b"a = 1\nb = '\xff'\n", "is not UTF-8 text (line 2)"),
            ("s.toml", b"name = 'a'\nlr = \n", "is not TOML: Invalid value (at line 2, column 6)"),
            ("s.toml", b"x = " + b"[" * 5000, "is nested too deeply"),
            ("s.toml", b"x = " + b"9" * 5000, "is not TOML: Exceeds the limit"),
            ("s.toml", b"name = 0x" + b"f" * 9999, "name: must be a string (got 0xfff"),
            ("s.toml", b"#" * 300_000, "is larger than the maximum for a study file (262,144 bytes)"),
            ("s.json", b'{"a": 1,}', "is not JSON: "),
            ("s.json", b"[" * 100_000, "is nested too deeply"),
            ("s.json", b"9" * 5000, "is not JSON: Exceeds the limit"),
            ("s.json", b"[1, 2]", "must be a study file, a resolved file or an export (got [1, 2])"),
            ("s.json", b'{"schema": "hpo.best/1"}', "is an export without the key 'config'"),
            ("s.json", b"{}", "name: missing"),
        ],
    )
    def test_a_file_without_a_study(self, tmp_path: Path, name: str, content: bytes, expected: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        assert failure(path).startswith(expected)

    def test_a_path_without_a_file(self, tmp_path: Path) -> None:
        assert failure(tmp_path) == "is a directory, not a study file"
        assert failure(tmp_path / "none.toml") == "no such file"
        assert failure(tmp_path / "none.toml" / "x").startswith("no such file")
        assert failure(tmp_path / ("a" * 300)).startswith("cannot be read: ")
        with pytest.raises(StudyFileError, match=r"^a\\x00b: cannot be read: "):
            read_study("a\0b")

    def test_a_file_with_an_odd_name_gets_one_line_too(self, tmp_path: Path) -> None:
        with pytest.raises(StudyFileError) as caught:
            read_study(os.fsdecode(bytes(tmp_path) + b"/a\nb\xff.toml"))
        assert str(caught.value) == f"{tmp_path}/a\\nb\\udcff.toml: no such file"


class TestParameters:
    def test_names_are_keys_and_the_order_is_that_of_the_models(self) -> None:
        a_range = {"low": 0, "high": 0.5}
        parameters = study(
            optimizer__momentum=a_range,
            optimizer__kind={"choices": ["momentum", "nesterov"]},
            network__dropout=[a_range, 0.1],
            network__hidden=[50, {"low": 10, "high": 20}],
            network__kind={"choices": ["mlp"]},
        ).parameters
        assert [parameter.name for parameter in parameters] == [
            "network.kind",
            "hidden.1",
            "dropout.0",
            "optimizer.kind",
            "momentum",
        ]
        assert [parameter.integer for parameter in parameters] == [False, True, False, False, False]

    def test_a_step_may_be_as_wide_as_the_range(self) -> None:
        assert study(optimizer__lr={"low": 0.1, "high": 0.3, "step": 0.2}).parameters[0].searched == Range(
            0.1, 0.3, step=0.2
        )

    def test_values_have_the_types_of_their_settings(self) -> None:
        found = study(
            optimizer__lr={"low": 1, "high": 2, "step": 1},
            training__batch_size={"low": 10, "high": 20, "step": 5},
            network__init={"choices": ["xavier", 1]},
            network__hidden={"choices": [[], [5]]},
        )
        searched = {parameter.name: parameter.searched for parameter in found.parameters}
        assert searched == {
            "init": Choices(("xavier", 1.0)),
            "hidden": Choices(([], [5])),
            "lr": Range(1.0, 2.0, step=1.0),
            "batch_size": Range(10, 20, step=5),
        }
        lr, batch_size = searched["lr"], searched["batch_size"]
        assert isinstance(lr, Range)
        assert isinstance(batch_size, Range)
        assert {type(lr.low), type(lr.step)} == {float}
        assert {type(batch_size.low), type(batch_size.step)} == {int}


class TestConfig:
    def test_a_config_has_the_values_of_a_trial(self) -> None:
        found = study(optimizer__lr={"low": 0.1, "high": 1}, network__dropout=[0.5, {"low": 0, "high": 0.6}])
        config = found.config({"dropout.1": 0.25, "lr": 0.3})
        assert config.network.dropout == [0.5, 0.25]
        assert config.optimizer.lr == 0.3
        assert config.training.epochs == 2

    def test_unused_settings_do_not_matter(self) -> None:
        found = study(optimizer__kind={"choices": ["sgd", "momentum"]}, optimizer__momentum={"low": 0.1, "high": 0.9})
        plain = [found.config({"optimizer.kind": "sgd", "momentum": value}) for value in (0.1, 0.9)]
        heavy = [found.config({"optimizer.kind": "momentum", "momentum": value}) for value in (0.1, 0.9)]
        assert plain[0] == plain[1]
        assert heavy[0] != heavy[1]

    @pytest.mark.parametrize(
        ("params", "expected"),
        [
            ({}, "s.toml: optimizer.lr: the trial has no value for it"),
            ({"lr": 0.1, "x": 1}, "s.toml: unknown parameter 'x'; known: lr"),
            ({"lr": -1.0}, "s.toml: optimizer.lr: must be above 0 (got -1.0)"),
            ({"lr": "x"}, "s.toml: optimizer.lr: must be a number (got 'x')"),
        ],
    )
    def test_invalid_values_of_a_trial(self, params: dict[str, Any], expected: str) -> None:
        with pytest.raises(StudyFileError) as caught:
            study(optimizer__lr={"low": 0.1, "high": 1}).config(params)
        assert str(caught.value) == expected

    def test_a_value_outside_the_range_is_a_trial_of_an_earlier_study(self) -> None:
        assert study(optimizer__lr={"low": 0.1, "high": 1}).config({"lr": 5.0}).optimizer.lr == 5.0


RANGE = {"low": 1e-6, "high": 1e-2}


class TestErrors:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            # keys
            ({"optimizer__lrr": 1}, "optimizer.lrr: unknown key (did you mean 'lr'?)"),
            ({"optimizer__lrr": RANGE}, "optimizer.lrr: unknown key (did you mean 'lr'?)"),
            ({"optimizer__lrr": {"lo": 1}}, "optimizer.lrr: unknown key (did you mean 'lr'?)"),
            ({"networks": {}}, "networks: unknown key (did you mean 'network'?)"),
            ({"lr": 0.1}, "lr: unknown key (did you mean 'optimizer.lr'?)"),
            ({"training__zzz": 1}, "training.zzz: unknown key; known: epochs, batch_size, precision"),
            ({"training__a\nb": 1}, "training.'a\\nb': unknown key; known: epochs, batch_size, precision"),
            ({"training": {}}, "training.epochs: missing"),
            ({"network": {}}, "network.kind: missing"),
            ({"training": 3}, "training: must be a table (got 3)"),
            # modules of the user's own
            ({"network": {"kind": "module"}}, "network.module: missing"),
            ({"network__module": "a.py:Net"}, 'network.module: not used when kind = "mlp", only with "module"'),
            ({"network": {"module": "Net"}}, 'network.module: must be FILE.py:NAME, such as "my_net.py:Net" (got '),
            ({"network": {"module": 3}}, "network.module: must be a string (got 3)"),
            ({"network": OWN | {"hidden": [3]}}, 'network.hidden: not used when kind = "module", only with "mlp" or '),
            ({"network": OWN | {"args": [3]}}, "network.args: must be a table (got [3])"),
            ({"network": OWN | {"args": {"a-b": 3}}}, "network.args.a-b: is not a valid name of an argument in "),
            ({"network": OWN | {"args": {"a": math.inf}}}, "network.args.a: must be a finite number (got inf)"),
            ({"network": OWN | {"args": {"a": None}}}, "network.args.a: must be a number, a string, true, false or a"),
            ({"network": OWN | {"args": {"a": {"b": 3}}}}, "network.args.a.b: unknown key; known: low, high, log"),
            ({"network": OWN | {"args": {"a": {"low": 3, "high": 1}}}}, "network.args.a.low: must be below high = 1"),
            (
                {"network": OWN | {"args": {"a": {"choices": ["x", [[[[[3]]]]]]}}}},
                "network.args.a.choices.1: is nested",
            ),
            # types
            ({"optimizer__lr": "0.1"}, "optimizer.lr: must be a number (got '0.1')"),
            ({"optimizer__lr": True}, "optimizer.lr: must be a number (got true)"),
            ({"optimizer__lr": float("nan")}, "optimizer.lr: must be a finite number (got nan)"),
            ({"training__epochs": 1.0}, "training.epochs: must be a whole number (got 1.0)"),
            ({"training__epochs": True}, "training.epochs: must be a whole number (got true)"),
            ({"training__epochs": 2**64}, "training.epochs: must be at most 9223372036854775807 (got 1844674407"),
            ({"training__epochs": 16**9999}, "training.epochs: must be at most 9223372036854775807 (got 0x80000"),
            ({"network__batch_norm": 1}, "network.batch_norm: must be true or false (got 1)"),
            ({"network__hidden": 100}, "network.hidden: must be a list (got 100)"),
            ({"network__hidden": [100, 0]}, "network.hidden.1: must be at least 1 (got 0)"),
            ({"network__hidden": [[1]]}, "network.hidden.0: must be a whole number (got [1])"),
            ({"name": 3}, "name: must be a string (got 3)"),
            ({"name": "\ud800"}, "name: must be a string of valid Unicode characters (got '\\ud800')"),
            # limits
            ({"name": ""}, "name: must not be empty (got '')"),
            ({"name": "a" * 201}, f"name: must have at most 200 characters (got '{'a' * 56}...)"),
            ({"name": "a\tb"}, "name: must have printable characters only (got 'a\\tb')"),
            ({"name": " a"}, "name: must not begin or end with a space (got ' a')"),
            ({"data__validation": 1}, "data.validation: must be below 1 (got 1)"),
            ({"data__validation": 0.0}, "data.validation: must be above 0 (got 0.0)"),
            (
                {"data__validation": True},
                "data.validation: must be auto, a file, or a number above 0 and below 1 (got true)",
            ),
            ({"data__train_size": 1}, "data.train_size: must be at least 2 (got 1)"),
            ({"data__stratify": 1}, "data.stratify: must be auto, true or false (got 1)"),
            ({"data__stratify": "yes"}, "data.stratify: unknown stratify 'yes'; known: auto, true or false"),
            ({"data__groups": ""}, "data.groups: must not be empty (got '')"),
            ({"data__order": "late"}, "data.order: unknown order 'late'; known: time"),
            ({"data__order": "time", "data__groups": "g"}, "data.order: cannot be combined with groups (got 'time')"),
            (
                {"data__order": "time", "data__stratify": True},
                "data.order: cannot be combined with stratify = true (got 'time')",
            ),
            ({"optimizer__lr": 0}, "optimizer.lr: must be above 0 (got 0)"),
            ({"optimizer__weight_decay": -1e-4}, "optimizer.weight_decay: must be at least 0 (got -0.0001)"),
            ({"search__trials": 0}, "search.trials: must be at least 1 (got 0)"),
            ({"network__dropout": 1.0}, "network.dropout: must be below 1 (got 1.0)"),
            (
                {"network__dropout": [0.1]},
                "network.dropout: must be one number or a list of 2, one for each dropout layer (got",
            ),
            (
                {"network__dropout": [0.1, 0.2], "network__kind": "cnn"},
                "network.dropout: must be one number or a list of 3",
            ),
            ({"network__conv": [], "network__kind": "cnn"}, "network.conv: must not be empty (got [])"),
            # words
            (
                {"data__dataset": "mnits"},
                "data.dataset: unknown data set 'mnits' (did you mean 'mnist'?); known: digits, mnist, fashion_mnist, "
                "cifar10",
            ),
            (
                {"data__dataset": "wine.npz"},
                "data.dataset: unknown data set 'wine.npz' (did you mean 'npz:wine.npz'?);",
            ),
            (
                {"data__dataset": "data/wines"},
                "data.dataset: unknown data set 'data/wines' (did you mean 'folder:data/w",
            ),
            (
                {"data__dataset": "my_data.py"},
                "data.dataset: unknown data set 'my_data.py' (did you mean 'my_data.py:FU",
            ),
            (
                {"search__metric": "rmse"},
                "search.metric: unknown metric 'rmse' (did you mean 'val_rmse'?); known: val_a",
            ),
            ({"data__dataset": 3}, "data.dataset: unknown data set 3; known: digits, mnist, fashion_mnist, cifar10"),
            (
                {"search__sampler": "tpee"},
                "search.sampler: unknown sampler 'tpee' (did you mean 'tpe'?); known: random, ",
            ),
            (
                {"search__pruner": "x"},
                "search.pruner: unknown pruner 'x'; known: auto, none, median, hyperband, halving",
            ),
            ({"search__metric": "val_acuracy"}, "search.metric: unknown metric 'val_acuracy' (did you mean 'val_acc"),
            (
                {"network__init": "hee"},
                "network.init: unknown init 'hee' (did you mean 'he'?); known: he, xavier or a num",
            ),
            ({"network__init": True}, "network.init: must be he, xavier or a number above 0 (got true)"),
            ({"network__init": 0.0}, "network.init: must be above 0 (got 0.0)"),
            ({"network__dropout": "x"}, "network.dropout: must be a number or a list of numbers (got 'x')"),
            (
                {"search__population": "all"},
                "search.population: unknown population 'all'; known: auto or a whole number",
            ),
            ({"search__population": 0}, "search.population: must be at least 1 (got 0)"),
            # kinds
            (
                {"optimizer__momentum": 0.5},
                'optimizer.momentum: not used when kind = "sgd", only with "momentum" or "nesterov"',
            ),
            ({"network__conv": [3]}, 'network.conv: not used when kind = "mlp", only with "cnn"'),
            (
                {"optimizer__kind": {"choices": ["adam", "adagrad"]}, "optimizer__alpha": 0.5},
                'optimizer.alpha: not used when kind = "adam" or "adagrad", only with "rmsprop"',
            ),
            (
                {"optimizer__step_every": 3},
                'optimizer.step_every: not used when schedule = "constant", only with "step"',
            ),
            (
                {"optimizer__schedule": {"choices": ["cosine", "constant"]}, "optimizer__step_factor": 0.5},
                'optimizer.step_factor: not used when schedule = "cosine" or "constant", only with "step"',
            ),
            (
                {"optimizer__schedule": "cosin"},
                "optimizer.schedule: unknown schedule 'cosin' (did you mean 'cosine'?); known: constant, step, cosine",
            ),
            ({"training__flip": 1.5}, "training.flip: must be at most 1 (got 1.5)"),
        ],
    )
    def test_fixed_values(self, values: dict[str, Any], expected: str) -> None:
        assert problem(**values).startswith(expected)

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("optimizer__lr", {"low": 0, "high": 1, "log": True}, ".low: must be above 0 when log = true (got 0)"),
            ("optimizer__lr", {"low": 0, "high": 1}, ".low: must be above 0 (got 0)"),
            ("optimizer__lr", {"low": 2, "high": 1}, ".low: must be below high = 1 (got 2)"),
            ("optimizer__lr", {"low": 1, "high": 1}, ".low: must be below high = 1 (got 1)"),
            ("optimizer__lr", {"low": 1}, ".high: missing"),
            ("optimizer__lr", {}, ".low: missing"),
            ("optimizer__lr", {"low": "1", "high": 2}, ".low: must be a number (got '1')"),
            ("optimizer__lr", {"low": 1, "high": True}, ".high: must be a number (got true)"),
            ("optimizer__lr", {"low": 1, "high": float("inf")}, ".high: must be a finite number (got inf)"),
            ("optimizer__lr", {"low": 1, "high": 10**400}, ".high: is too large (got 0x"),
            ("optimizer__lr", {**RANGE, "log": 1}, ".log: must be true or false (got 1)"),
            ("optimizer__lr", {**RANGE, "logg": True}, ".logg: unknown key (did you mean 'log'?)"),
            ("optimizer__lr", {"chioces": [1]}, ".chioces: unknown key (did you mean 'choices'?)"),
            ("optimizer__lr", {**RANGE, "log": True, "step": 0.1}, ".step: cannot be used when log = true (got 0.1)"),
            ("optimizer__lr", {**RANGE, "step": 0}, ".step: must be above 0 (got 0)"),
            ("optimizer__lr", {**RANGE, "step": 1}, ".step: must be at most high - low (got 1)"),
            ("optimizer__lr", {**RANGE, "choices": [1]}, ".low: cannot be given beside choices"),
            ("optimizer__lr", {"choices": []}, ".choices: must not be empty (got [])"),
            ("optimizer__lr", {"choices": 1}, ".choices: must be a list (got 1)"),
            ("optimizer__lr", {"choices": [1, 2, 1.0]}, ".choices.2: is the same as choices.0 (got 1.0)"),
            ("optimizer__lr", {"choices": [1, True]}, ".choices.1: must be a number (got true)"),
            ("optimizer__lr", {"choices": [1, RANGE]}, ".choices.1: must be a number (got { low = 1e-06"),
            ("network__dropout", {"low": 0.5, "high": 1}, ".high: must be below 1 (got 1)"),
            ("network__dropout", [0.5, {"low": 0.5, "high": 1}], ".1.high: must be below 1 (got 1)"),
            ("network__dropout", [0.5, {"low": 0.7, "high": 0.6}], ".1.low: must be below high = 0.6 (got 0.7)"),
            ("network__dropout", {"choices": [0.5, [0.1]]}, ".choices.1: must be one number or a list of 2"),
            ("network__hidden", {"choices": [[5], [5, 0]]}, ".choices.1.1: must be at least 1 (got 0)"),
            ("network__hidden", {"choices": [[5], [5]]}, ".choices.1: is the same as choices.0 (got [5])"),
            ("network__hidden", {"low": 1, "high": 2}, ": cannot be a range; use { choices = [...] }"),
            ("network__batch_norm", {"low": 0, "high": 1}, ": cannot be a range; use { choices = [...] }"),
            ("network__activation", {"low": 0, "high": 1}, ": cannot be a range; use { choices = [...] }"),
            (
                "network__activation",
                {"choices": ["relu", "tahn"]},
                ".choices.1: unknown activation 'tahn' (did you mean",
            ),
            ("training__epochs", {"low": 1.5, "high": 5}, ".low: must be a whole number (got 1.5)"),
            ("training__epochs", {"low": 1, "high": 5.0}, ".high: must be a whole number (got 5.0)"),
            ("training__epochs", {"low": 1, "high": 5, "step": 0.5}, ".step: must be a whole number (got 0.5)"),
            ("data__validation", RANGE, ": cannot be searched: only values in [network], [optimizer], [training] can"),
            ("search__sampler", {"choices": ["tpe"]}, ": cannot be searched: only values in [network], [optimizer], "),
            ("name", {"choices": ["a", "b"]}, ": cannot be searched: only values in [network], [optimizer], [training"),
            ("training__keep", {"choices": ["best"]}, ": cannot be searched: it is the same for all trials (got {"),
            ("training__keep_trials", {"low": 1}, ": cannot be searched: it is the same for all trials (got {"),
            ("training__checkpoint", {"low": 1}, ": cannot be searched: it is the same for all trials (got {"),
        ],
    )
    def test_searched_values(self, key: str, value: Any, expected: str) -> None:
        assert problem(**{key: value}).startswith(key.replace("__", ".") + expected)

    @pytest.mark.parametrize(
        ("choices", "expected"),
        [
            ([True, 1, 2], "choices.1: is the same as choices.0 = true when stored (got 1)"),
            ([2, 0, False], "choices.2: is the same as choices.1 = 0 when stored (got false)"),
            ([1, 1.0], "choices.1: is the same as choices.0 = 1 when stored (got 1.0)"),
            ([True, 1.0], "choices.1: is the same as choices.0 = true when stored (got 1.0)"),
            ([0.0, -0.0], "choices.1: is the same as choices.0 = 0.0 when stored (got -0.0)"),
            (["[8]", [8]], "choices.1: is the same as choices.0 = '[8]' when stored (got [8])"),
            ([[[1, "a"]], '[[1, "a"]]'], "choices.1: is the same as choices.0 = [[1, 'a']] when stored (got"),
            ([[1.0], [2], [1.0]], "choices.2: is the same as choices.0 (got [1.0])"),
        ],
    )
    def test_choices_that_are_equal_when_stored_are_refused(self, choices: list[Any], expected: str) -> None:
        assert problem(network=OWN | {"args": {"a": {"choices": choices}}}).startswith(f"network.args.a.{expected}")

    def test_choices_that_are_equal_in_the_type_of_their_key_are_refused(self) -> None:
        alike = {"choices": [2**53, 2**53 + 1]}  # as fractions
        assert problem(optimizer__lr=alike).startswith("optimizer.lr.choices.1: is the same as choices.0 (got")
        case = {"adam": {"beta1": {"choices": [0, -0.0]}}}
        line = problem(optimizer={"lr": 0.1, "kind": {"choices": ["sgd", "adam"]}, "when": {"kind": case}})
        told = "is the same as choices.0 = 0.0 when stored (got -0.0)"
        assert line == f"optimizer.when.kind.adam.beta1.choices.1: {told}"

    def test_choices_that_differ_when_stored_may_look_alike(self) -> None:
        for choices in ([True, 0], [1, "1"], ["true", True], [[1], [1.0], [True]], ["[8,16]", [8, 16]], ["[]", [[]]]):
            found = study(network=OWN | {"args": {"a": {"choices": choices}}})
            assert found.parameters[0].searched == Choices(tuple(choices))

    def test_every_choice_must_fit_the_other_settings(self) -> None:
        line = problem(network__dropout=[0.1, 0.2], network__hidden={"choices": [[5, 5], [5]]})
        assert line.startswith("network.hidden.choices.1: conflicts with network.dropout, which must be one number or")
        line = problem(network__dropout=[0.1, 0.2], network__kind={"choices": ["mlp", "cnn"]})
        assert line.startswith("network.kind.choices.1: conflicts with network.dropout, which must be one number or")

    def test_a_key_may_be_used_by_any_of_the_kinds_searched(self) -> None:
        found = study(optimizer__kind={"choices": ["sgd", "momentum"]}, optimizer__momentum=0.5)
        assert found.config({"optimizer.kind": "momentum"}).optimizer.momentum == 0.5
        line = problem(optimizer__kind={"choices": ["sgd", "momentum"]}, optimizer__momentum=1.5)
        assert line == "optimizer.momentum: must be below 1 (got 1.5)"

    def test_a_grid_needs_a_countable_space(self) -> None:
        line = 'optimizer.lr: must have a step, or be { choices = [...] }, when sampler = "grid"'
        assert problem(search__sampler="grid", optimizer__lr=RANGE) == line
        assert study(search__sampler="grid", optimizer__lr={"choices": [0.1, 0.2]})
        assert study(search__sampler="grid", optimizer__lr={"low": 0.1, "high": 0.5, "step": 0.1})
        assert study(search__sampler="grid", training__epochs={"low": 1, "high": 5})

    def test_the_first_problem_in_the_order_of_the_file_is_raised(self) -> None:
        wrong = {
            "optimizer": {"lr": 0, "weight_decay": {"low": 1}, "lrr": 3},
            "search": {"trials": 0},
            "network": {"hidden": {"choices": [[1], [0]]}},
            "data": {"dataset": "x"},
            "name": "",
        }
        keys = []
        for section, key, value in [
            ("optimizer", "lr", 1.0),
            ("optimizer", "weight_decay", 0.0),
            ("optimizer", "lrr", None),
            ("search", "trials", 1),
            ("network", "hidden", []),
            ("network", "kind", "mlp"),
            ("data", "dataset", "mnist"),
        ]:
            with pytest.raises(StudyFileError) as caught:
                parse_study(wrong, "s.toml")
            keys.append(caught.value.key)
            wrong[section][key] = value  # type: ignore[index]
            if value is None:
                del wrong[section][key]  # type: ignore[attr-defined]
        assert keys == [
            "optimizer.lr",
            "optimizer.weight_decay.high",
            "optimizer.lrr",
            "search.trials",
            "network.hidden.choices.1.0",
            "network.kind",
            "data.dataset",
        ]

    def test_a_study_returns_errors_about_its_keys(self) -> None:
        error = study().error("data.train_size", "is more than the 1438 training images (got 5000)")
        assert str(error) == "s.toml: data.train_size: is more than the 1438 training images (got 5000)"
        assert error.exit_status == 2

    def test_a_tree_must_be_a_table(self) -> None:
        with pytest.raises(StudyFileError, match=r"^x: must be a table \(got \[1\]\)$"):
            parse_study([1], "x")  # type: ignore[arg-type]


class TestChanges:
    def test_overrides_are_toml_values_or_bare_words(self, design: Path) -> None:
        study = read_study(
            design,
            [
                "optimizer.lr.high=0.1",
                "network.activation=tanh",
                "network.dropout=[0.5, { low = 0.0, high = 0.5 }]",
                "network.dropout.0 = 0.25",
                "optimizer.weight_decay=1e-4",
                "search.sampler='random'",
            ],
        )
        assert [parameter.name for parameter in study.parameters] == ["dropout.1", "lr"]
        assert study.parameters[1].searched == Range(1e-6, 0.1, log=True)
        assert study.first_settings.network.activation == "tanh"
        assert study.first_settings.network.dropout == [0.25, 0.0]
        assert study.first_settings.optimizer.weight_decay == 1e-4
        assert study.search.sampler == "random"

    def test_settings_change_by_name_and_none_leaves_them(self, design: Path) -> None:
        study = read_study(design, trials=20, name="other", population=None)
        assert (study.name, study.search.trials, study.search.population) == ("other", 20, 32)

    def test_the_last_of_several_overrides_applies(self, design: Path) -> None:
        assert read_study(design, ["training.epochs=0", "training.epochs=7"]).first_settings.training.epochs == 7

    def test_an_override_may_create_a_section(self, tmp_path: Path) -> None:
        path = tmp_path / "s.json"
        path.write_text(json.dumps({key: value for key, value in SMALLEST.items() if key != "training"}))
        assert read_study(path, ["training.epochs=3"]).first_settings.training.epochs == 3

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("optimizer.lr.hihg=0.1", "--set optimizer.lr.hihg: unknown key (did you mean 'high'?)"),
            ("optimzer.lr=0.1", "--set optimzer: unknown key (did you mean 'optimizer'?)"),
            ("lr=0.1", "--set lr: unknown key (did you mean 'optimizer.lr'?)"),
            ("optimizer.lr.low=0", "--set optimizer.lr.low: must be above 0 when log = true (got 0)"),
            ("optimizer.lr={ low = 1, hihg = 2 }", "--set optimizer.lr.hihg: unknown key (did you mean 'high'?)"),
            ("optimizer.lr={ low = 1", "--set optimizer.lr: is not a TOML value (got '{ low = 1')"),
            ("optimizer.lr=1\nx=2", "--set optimizer.lr: must be a number (got '1\\nx=2')"),
            ("optimizer.lr=fast", "--set optimizer.lr: must be a number (got 'fast')"),
            ("training.epochs.low=3", "--set training.epochs.low: training.epochs is 50: it has no key low"),
            ("network.hidden.5=3", "--set network.hidden.5: network.hidden has no element 5 (got [100, 100])"),
            ("network.hidden.0=0", "--set network.hidden.0: must be at least 1 (got 0)"),
            ("network.hidden.x=0", "--set network.hidden.x: network.hidden is [100, 100]: it has no key x"),
            (
                "data.x.0=1",
                "--set data.x: unknown key; "
                "known: dataset, validation, train_size, split_seed, stratify, groups, order, folds, splits, target, "
                "features, categorical, test",
            ),
            ("network.conv.0=1", "--set network.conv.0: network.conv is not set: it has no element 0"),
            ("training.epochs", "--set 'training.epochs': must be KEY=VALUE, such as optimizer.lr.high=0.1"),
            ("=1", "--set '=1': must be KEY=VALUE, such as optimizer.lr.high=0.1"),
            ("a..b=1", "--set 'a..b=1': must be KEY=VALUE, such as optimizer.lr.high=0.1"),
        ],
    )
    def test_an_error_names_the_override(self, design: Path, override: str, expected: str) -> None:
        assert failure(design, override) == expected

    def test_an_error_names_the_option(self, design: Path) -> None:
        assert failure(design, trials=0) == "--trials: must be at least 1 (got 0)"
        assert failure(design, name=" x") == "--name: must not begin or end with a space (got ' x')"

    def test_an_error_elsewhere_names_the_files_key(self, design: Path) -> None:
        line = failure(design, "search.sampler=grid")
        assert line.startswith("network.dropout: must have a step")


class TestDifferences:
    def test_a_study_stored_without_newer_keys_is_equal(self, design: Path) -> None:
        study = read_study(design)
        stored = study.resolved()
        for section, keys in {
            "optimizer": ("schedule", "warmup"),
            "training": ("label_smoothing", "ema", "flip", "shift", "cutout", "mixup"),
        }.items():
            for key in keys:
                del stored[section][key]
        assert parse_study(stored, "stored") == study
        assert differing_keys(parse_study(stored, "stored"), study) == []

    def test_the_keys_of_a_schedule_are_resolved_if_it_is_possible(self) -> None:
        searched = study(
            optimizer__schedule={"choices": ["cosine", "step"]}, optimizer__step_every={"low": 1, "high": 4}
        )
        names = [parameter.name for parameter in searched.parameters]
        assert names == ["schedule", "step_every"]
        assert searched.resolved()["optimizer"]["step_factor"] == 0.1
        cosine, step = (searched.config({"schedule": kind, "step_every": 3}).optimizer for kind in ("cosine", "step"))
        assert (cosine.schedule, cosine.step_every, step.step_every) == ("cosine", 10, 3)  # not the cosine's to use
        assert "step_factor" not in study(optimizer__schedule="cosine").resolved()["optimizer"]

    def test_equal_studies_have_no_differences(self, design: Path) -> None:
        study = read_study(design)
        assert differing_keys(study, parse_study(study.resolved(), "elsewhere")) == []

    @pytest.mark.parametrize(
        ("before", "after", "told"),
        [
            (True, 1, "network.args.a: true -> 1"),
            (1, 1.0, "network.args.a: 1 -> 1.0"),
            (0.0, -0.0, "network.args.a: 0.0 -> -0.0"),
            ([1], [True], "network.args.a: [1] -> [true]"),
            ({"choices": [0, 2]}, {"choices": [False, 2]}, "network.args.a.choices: [0, 2] -> [false, 2]"),
        ],
    )
    def test_values_equal_in_python_may_differ(self, before: Any, after: Any, told: str) -> None:
        one, other = (study(network=OWN | {"args": {"a": value}}) for value in (before, after))
        assert one != other
        assert differing_keys(one, other) == [told]

    def test_each_difference_has_both_values(self, design: Path) -> None:
        changed = read_study(
            design,
            ["optimizer.lr.high=0.1", "network.dropout=0.5", "optimizer.kind=momentum", "data.train_size=400"],
            name="other",
        )
        assert differing_keys(read_study(design), changed) == [
            "name: 'mnist-dropout' -> 'other'",
            "data.train_size: 500 -> 400",
            "network.dropout: { low = 0.0, high = 0.6, log = false } -> 0.5",
            "optimizer.kind: 'sgd' -> 'momentum'",
            "optimizer.lr.high: 0.01 -> 0.1",
            "optimizer.momentum: not set -> 0.9",
        ]


class TestModules:
    def test_an_argument_is_fixed_or_searched_under_its_name(self) -> None:
        args = {
            "width": {"choices": [16, 32]},
            "dropout": {"low": 0, "high": 0.5},
            "depth": {"low": 1, "high": 4},
            "rates": [0.1, {"low": 0.0, "high": 1.0}],
            "kind": "wide",
        }
        found = study(network=OWN | {"args": args})
        assert found.parameters == (
            Parameter("width", ("network", "args", "width"), Choices((16, 32)), integer=False),
            Parameter("args.dropout", ("network", "args", "dropout"), Range(0.0, 0.5), integer=False),
            Parameter("depth", ("network", "args", "depth"), Range(1, 4), integer=True),
            Parameter("rates.1", ("network", "args", "rates", 1), Range(0.0, 1.0), integer=False),
        )
        network = found.config({"width": 32, "args.dropout": 0.2, "depth": 3, "rates.1": 0.4}).network
        assert (network.kind, network.module) == ("module", "my_net.py:Net")
        assert network.args == {"width": 32, "dropout": 0.2, "depth": 3, "rates": [0.1, 0.4], "kind": "wide"}
        assert parse_study(found.resolved(), "elsewhere") == found

    def test_the_folder_is_that_of_the_study_file(self, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text(study_text(study(network=OWN | {"args": {"log": False, "low": 3, "a": {"choices": [1, 2]}}})))
        assert '[network]\nkind = "module"\nmodule = "my_net.py:Net"\n\n[network.args]\nlog = false' in path.read_text()
        found = read_study(path, ["network.args.low=4"])
        assert found.references == {"my_net.py:Net": "network.module"}
        assert found.folder == tmp_path
        assert found.config({"a": 1}).network.folder == found.first_config.network.folder == tmp_path
        assert found.first_settings.network.args == {"log": False, "low": 4, "a": 1}


def test_a_study_as_toml_has_one_key_a_line_and_is_read_back(tmp_path: Path) -> None:
    text = """name = "it\\u0027s"
description = "two\\nlines"

[data]
dataset = "mnist"

[network]
kind = "mlp"
hidden = { choices = [[64, 64], [128, 64]] }
dropout = [0.1, { low = 0.0, high = 0.6 }]

[optimizer]
kind = { choices = ["momentum", "adam"] }
lr = { low = 1e-06, high = 0.01, log = true }

[training]
epochs = 20
batch_size = { low = 32, high = 128, step = 32 }

[search]
trials = 100
population = 8
points = [{ hidden = [64, 64], "dropout.1" = 0.5, "optimizer.kind" = "adam", lr = 0.001, batch_size = 64 }]
start_from = ["a", "b"]

[baseline]
lr = 0.01
"dropout.1" = 0.0
"""
    path = tmp_path / "s.toml"
    path.write_text(text)
    study = read_study(path)
    assert study_text(study) == text.replace("\\u0027", "'")


def test_data_without_its_prefix_and_other_tasks_are_explained(tmp_path: Path) -> None:
    (tmp_path / "wines").mkdir()
    with pytest.raises(
        StudyFileError, match=r"unknown data set 'wines' \(did you mean 'folder:wines'\?\); known: digits"
    ):
        parse_study(tree(data__dataset="wines"), "s.toml", tmp_path)
    with pytest.raises(
        StudyFileError, match=r"\. For numbers or several labels, set `kind` of \[task\]; for anything else"
    ):
        parse_study(tree(search__metric="perplexity"), "s.toml")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"search__metric": "val_f"}, "search.metric: unknown metric 'val_f' (did you mean 'val_f1'?); known: val_acc"),
        (
            {"search__metric": "mine.py:f2"},
            'search.direction: missing: set "minimize" or "maximize" for the m',
        ),
        ({"search__direction": "maximize"}, "search.direction: not used, because the direction of this metric is kn"),
        (
            {"search__metric": "mine:f2"},
            "search.metric: must be FILE.py:NAME, such as \"my_net.py:Net\" (got 'mine:f2')",
        ),
        (
            {"search__metric": "mine.py:f1", "search__direction": "maximize"},
            "search.metric: mine.py:f1 has the name of a metric of hpo; rename the function",
        ),
        (
            {"search__metric": ["a.py:x", "b.py:y"], "search__direction": "maximize"},
            "search.metric: must have at most one user-defined metric",
        ),
        ({"search__metric": "val_top_k"}, "search.metric: val_top_k needs task.top_k, the number of classes of which"),
        ({"task": {"top_k": 3}}, "task.top_k: not used without the metric val_top_k"),
        ({"task": {"loss": "mse"}}, "task.loss: must be cross_entropy or FILE.py:NAME for kind = classification"),
        ({"task": {"class_weights": [1.0, -2.0]}}, "task.class_weights: unknown class weights [1.0, -2.0]; known: bal"),
        (
            {"task": {"loss": "mine.py:loss", "class_weights": "balanced"}},
            "task.class_weights: not used with loss = mine.py:loss, which can have weights itself",
        ),
        (
            {"task": {"loss": "mine.py:loss"}, "training__label_smoothing": 0.1},
            "training.label_smoothing: not used with task.loss = mine.py:loss (got 0.1)",
        ),
        (
            {"task": {"loss": "mine.py:loss"}, "training__mixup": {"low": 0.0, "high": 0.4}},
            "training.mixup.high: not used with task.loss = mine.py:loss (got 0.4)",
        ),
        ({"task": {"class_weights": {"choices": ["balanced"]}}}, "task.class_weights: cannot be searched"),
    ],
)
def test_settings_of_the_task_and_its_metrics_are_checked(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(StudyFileError) as raised:
        parse_study(tree(**changes), "s.toml")
    assert str(raised.value).startswith(f"s.toml: {problem}")


def test_a_metric_and_a_loss_of_the_user_are_user_code() -> None:
    changes = {"task": {"loss": "mine.py:loss"}, "search__metric": ["mine.py:f2", "val_loss"]}
    study = parse_study(tree(**changes, search__direction="maximize"), "s.toml")
    assert study.references == {"mine.py:loss": "task.loss", "mine.py:f2": "search.metric"}
    assert study.search.metrics == ("val_f2", "val_loss")
    assert study.search.all_minimized == (False, True)
    assert study.curve_keys == ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_f2")
    assert parse_study(study.resolved(), "s.toml") == study


def test_a_study_without_a_task_has_the_resolved_file_of_earlier_versions() -> None:
    study = parse_study(tree(), "s.toml")
    assert "task" not in study.resolved()
    assert "direction" not in study.resolved()["search"]
    assert parse_study(tree(task={"kind": "classification"}), "s.toml") == study
