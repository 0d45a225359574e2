"""Studies as Python objects: the same keys, checks and error messages as of a study file."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import json
import pickle
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter
from tiny import tree

import hpo
from hpo.api.sections import ArrayLike, Code, DataFrame
from hpo.studyfile import read_study
from hpo.studyfile.keys import SEARCHABLE, SECTIONS, open_tables, sections, unsearchable_keys
from hpo.studyfile.models import StudySettings
from hpo.studyfile.objective import ObjectiveStudySettings

CLASSES = {
    "data": hpo.Data,
    "task": hpo.Task,
    "network": hpo.Network,
    "optimizer": hpo.Optimizer,
    "training": hpo.Training,
}
CLASSES |= {"search": hpo.Search, "preprocess": hpo.Preprocess}
ONLY_IN_PYTHON = (Code, ArrayLike, DataFrame, Sequence[Any])
IN_MEMORY = {("data", key) for key in ("x", "y", "x_val", "y_val", "x_test", "y_test", "classes", "table")}
"""Keywords that no study file has: data in memory."""
FILE = """\
name = "whole"
description = "each kind of value"
[data]
dataset = "digits"
[network]
kind = { choices = ["mlp", "cnn"] }
hidden = [{ low = 8, high = 16, step = 4 }, 8]
batch_norm = { choices = [true, false] }
dropout = { low = 0.0, high = 0.5 }
[network.when.kind.cnn]
conv = { choices = [[4], [4, 4]] }
[network.when.batch_norm.true]
activation = "tanh"
[optimizer]
kind = "momentum"
lr = { low = 1e-4, high = 0.1, log = true }
momentum = 0.5
[training]
epochs = 3
batch_size = { choices = [20, 40] }
[training.when.batch_size.40]
epochs = 6
[search]
trials = 4
points = [{ lr = 0.01, dropout = 0.1, "network.kind" = "mlp", "hidden.0" = 8, batch_norm = true, batch_size = 20 }]
[search.limits]
parameters = 10000
[baseline]
lr = 0.05
"""


def whole(**changes: Any) -> hpo.Study:
    given: dict[str, Any] = {
        "name": "whole",
        "description": "each kind of value",
        "data": hpo.Data(dataset="digits"),
        "network": hpo.Network(kind="mlp", hidden=(8, 8), dropout=hpo.Range(0.0, 0.5)),
        "optimizer": hpo.Optimizer(kind="momentum", lr=hpo.Range(1e-4, 0.1, log=True), momentum=0.5),
        "training": hpo.Training(epochs=3),
        "search": hpo.Search(trials=4),
    }
    return hpo.Study(**{**given, **changes})


def kinds(schema: dict[str, Any], types: dict[str, Any], named: tuple[str, ...] = ()) -> set[str]:
    """Return what a JSON Schema allows: `number`, `list of integer`, `"adam"`, or one of the types with these names."""
    if reference := schema.get("$ref", "").removeprefix("#/$defs/"):
        return {reference} if reference in named else kinds(types[reference], types, named)
    if branches := schema.get("anyOf", schema.get("oneOf")):
        return set[str]().union(*(kinds(branch, types, named) for branch in branches)) - {"null"}
    if "enum" in schema or "const" in schema:
        return {json.dumps(word) for word in schema.get("enum", [schema.get("const")])}
    if schema.get("type") == "array":
        return {f"list of {each}" for each in kinds(schema["items"], types, named) or {"anything"}}
    return {schema["type"]} if "type" in schema else set()


def defaults_of(model: type[BaseModel] | None) -> dict[str, Any]:
    """Return the default of each key of a model; None for a required one."""
    fields = model.model_fields.items() if model else ()
    return {key: None if field.is_required() else field.get_default() for key, field in fields}


def as_json(tree: dict[str, Any]) -> Any:
    """Return a tree as it is read back from JSON: tuples are lists."""
    return json.loads(json.dumps(tree, default=lambda each: each.model_dump(exclude_none=True)))


def kinds_of_file(section: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for model in (SECTIONS[section], sections(ObjectiveStudySettings).get(section)):
        schema = model.model_json_schema() if model else {"properties": {}}
        for key, each in schema["properties"].items():
            found[key] = found.get(key, set()) | kinds(each, schema.get("$defs", {}))
    return found


def in_a_file(hint: Any) -> Any:
    """Return a type without what only Python has: classes, functions, arrays and DataFrames."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kept = [in_a_file(each) for each in typing.get_args(hint) if each not in ONLY_IN_PYTHON]
        return typing.Union[tuple(kept)]  # noqa: UP007 - made of a tuple
    if typing.get_origin(hint) is Sequence:
        return Sequence[in_a_file(typing.get_args(hint)[0])]  # type: ignore[misc]  # made of a value
    return hint


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_the_keys_of_a_study_file_and_takes_the_same_values(section: str) -> None:
    """A key of the models must be in `hpo/api/sections.py`, with the same types."""
    known = typing.get_type_hints(CLASSES[section])
    hints = {key: in_a_file(hint) for key, hint in known.items() if (section, key) not in IN_MEMORY}
    assert ("when" in hints) == (section in SEARCHABLE)
    hints.pop("when", None)
    expected = kinds_of_file(section)
    assert sorted(hints) == sorted(expected)
    for key, hint in hints.items():
        schema = TypeAdapter(hint).json_schema()
        taken = kinds(schema, schema.get("$defs", {}), ("Range", "Choices"))
        assert {each for each in taken if not each.endswith(("Range", "Choices"))} == expected[key], key
        searched = section in SEARCHABLE and not {(section, key)} & (unsearchable_keys() | open_tables())
        lists = {"list of " for each in expected[key] if searched and each.startswith("list")}
        numbers = {each for each in expected[key] if searched and each.endswith(("integer", "number"))}
        assert {each for each in taken if each.endswith("Choices")} == {
            f"{of}Choices" for of in ("", *lists) if searched
        }, key
        assert {each for each in taken if each.endswith("Range")} == {
            "list of Range" if each.startswith("list") else "Range" for each in numbers
        }, key


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_the_defaults_of_a_study_file(section: str) -> None:
    """The signatures have the defaults of the models; None for a required key that conditional tables may omit."""
    expected = defaults_of(sections(ObjectiveStudySettings).get(section)) | defaults_of(SECTIONS[section])
    known = {each.name: each for each in dataclasses.fields(CLASSES[section])}
    required = {"dataset": "digits", "trials": 1}
    made = CLASSES[section](**{name: required[name] for name in known if name in required})
    assert as_json({name: getattr(made, name) for name in expected if name not in required}) == as_json(
        {name: value for name, value in expected.items() if name not in required}
    )
    assert made.tree().keys() <= required.keys()
    signature = inspect.signature(CLASSES[section]).parameters
    assert {name: each.default for name, each in known.items() if name in expected and each.default != MISSING} == {
        name: signature[name].default for name in expected if known[name].default != MISSING
    }


def test_a_keyword_at_its_default_counts_as_given() -> None:
    optimizer = hpo.Optimizer(kind="adam", lr=0.1, weight_decay=0.0, clip=None)
    assert optimizer.tree() == {"kind": "adam", "lr": 0.1, "weight_decay": 0.0}
    assert optimizer == hpo.Optimizer(kind="adam", lr=0.1)
    for copied in (copy.copy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert copied.tree() == optimizer.tree()
    assert dataclasses.replace(optimizer, lr=0.2).tree() == {"kind": "adam", "lr": 0.2}
    network = hpo.Network(kind="cnn", args={}, pool=3)
    assert dataclasses.replace(network, args={}).tree() == {"kind": "cnn", "pool": 3}
    assert inspect.signature(hpo.Optimizer).parameters["momentum"].default == 0.9


@pytest.mark.parametrize(
    ("make", "given", "problem"),
    [
        (hpo.Network, {"hiden": [8]}, "hpo.Network: hiden: unknown key (did you mean 'hidden'?)"),
        (hpo.Network, {"lr": 0.1}, "hpo.Network: lr: unknown key (did you mean 'optimizer.lr'?)"),
        (hpo.Search, {"colour": 1}, "hpo.Search: colour: unknown key; known: trials, direction, sampler, "),
        (hpo.Study, {"netwrk": {}}, "hpo.Study: netwrk: unknown key (did you mean 'network'?)"),
        (hpo.Search, {}, "missing 1 required keyword-only argument: 'trials'"),
    ],
)
def test_a_wrong_keyword_suggests_the_nearest(make: Callable[..., object], given: dict[str, Any], problem: str) -> None:
    with pytest.raises(TypeError, match=re.escape(problem)) as caught:
        make(**given)
    assert isinstance(caught.value, hpo.StudyFileError) == bool(given)


def test_a_study_has_the_tables_of_a_study_file() -> None:
    known = StudySettings.model_fields.keys() | ObjectiveStudySettings.model_fields.keys()
    assert inspect.signature(hpo.Study).parameters.keys() - {"folder"} == known


def test_a_study_equals_the_one_of_its_file() -> None:
    Path("whole.toml").write_text(FILE)
    study = whole(
        network=hpo.Network(
            kind=hpo.Choices(["mlp", "cnn"]),
            hidden=(hpo.Range(8, 16, step=4), 8),
            batch_norm=hpo.Choices([True, False]),
            dropout=hpo.Range(0.0, 0.5),
            when={
                "kind": {"cnn": hpo.Network(conv=hpo.Choices([(4,), (4, 4)]))},
                "batch_norm": {True: hpo.Network(activation="tanh")},
            },
        ),
        training=hpo.Training(
            epochs=3, batch_size=hpo.Choices([20, 40]), when={"batch_size": {40: hpo.Training(epochs=6)}}
        ),
        search=hpo.Search(
            trials=4,
            points=[
                {"lr": 0.01, "dropout": 0.1, "network.kind": "mlp", "hidden.0": 8, "batch_norm": True, "batch_size": 20}
            ],
            limits={"parameters": 10_000},
        ),
        baseline={"lr": 0.05},
    )
    assert study == hpo.read("whole.toml")
    assert study != hpo.read("whole.toml", name="other")


def test_a_study_can_be_written_and_read() -> None:
    study = whole()
    Path("whole.toml").write_text(str(study))
    assert hpo.read("whole.toml") == study
    assert hpo.read(Path("whole.toml")) == study
    assert study.checked == read_study("whole.toml")
    assert hpo.read(study) == study == hpo.read(study.resolved())
    assert hpo.read("whole.toml", ["optimizer.lr.high=0.5"], trials=9, name="other") != study


def test_a_study_copies_its_arguments_and_its_tree() -> None:
    sizes = [8, 8]
    points: list[dict[str, Any]] = [{"lr": 0.1, "hidden": [4]}]
    network = hpo.Network(kind="mlp", hidden=hpo.Choices([sizes, [4]]))
    study = whole(network=network, search=hpo.Search(trials=4, points=points), baseline=dict(points[0]))
    resolved = study.resolved()
    assert resolved["network"]["hidden"] == {"choices": [[8, 8], [4]]}
    sizes.append(8)
    points[0]["hidden"].append(4)
    changed = study.resolved()
    changed["network"]["hidden"]["choices"][0].append(8)
    changed["search"]["points"][0]["hidden"].append(4)
    changed["baseline"]["hidden"].append(4)
    assert study.resolved() == resolved


def test_a_study_can_have_an_objective_function() -> None:
    Path("mine.py").write_text("def score(trial):\n    return trial.suggest_float('x', -1, 1)\n")
    search = hpo.Search(trials=3, direction="maximize")
    study = hpo.Study(name="mine", objective="mine.py:score", search=search)
    Path("mine.toml").write_text(str(study))
    assert hpo.read("mine.toml") == study == hpo.read(study) == hpo.read(study.resolved())
    stored = hpo.launch(study, progress="quiet")
    assert stored.study == study
    assert stored.best.value == max(trial.params["x"] for trial in stored.trials())
    with pytest.raises(hpo.StudyFileError, match=r"^hpo\.Study: data: cannot be used with objective"):
        hpo.Study(name="mine", objective="mine.py:score", data=hpo.Data(dataset="digits"), search=search)
    with pytest.raises(hpo.StudyFileError, match=r"^hpo\.Study: search\.direction: "):
        whole(search=search)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"optimizer": {"lr": -1}}, "optimizer.lr: must be above 0 (got -1)"),
        ({"optimizer": {"lr": hpo.Range(-1, 1)}}, "optimizer.lr.low: must be above 0 (got -1)"),
        ({"optimizer": hpo.Optimizer(kind="sgd")}, "optimizer.lr: missing"),
        ({"optimizer": hpo.Optimizer(kind="adam", lr=0.1, momentum=0.5)}, "optimizer.momentum: not used when kind"),
        (
            {"network": hpo.Network(kind="mlp", when={"kind": {}})},
            "network.when.kind: nothing can depend on network.kind",
        ),
        (
            {"network": hpo.Network(kind=hpo.Choices(["mlp", "cnn"]), when={"kind": {"cnn": {"kernel": 0}}})},  # type: ignore[dict-item]
            "network.when.kind.cnn.kernel: must be at least 1 (got 0)",
        ),
        (
            {"network": hpo.Network(kind=hpo.Choices(["mlp", "cnn"]), when={"kind": {"cmm": hpo.Network()}})},
            "network.when.kind.cmm: is not a choice of network.kind; known: mlp, cnn",
        ),
        ({"network": {"kind": "mlp", "hiden": [8]}}, "network.hiden: unknown key (did you mean 'hidden'?)"),
        ({"search": None}, "search.trials: missing"),
        ({"baseline": {"rate": 1}}, "baseline.rate: is not a searched parameter"),
        ({"name": " x"}, "name: must not begin or end with a space"),
        ({"objective": lambda trial: 0}, "objective: must be a function with a name: define it with `def`"),
    ],
)
def test_an_invalid_value_has_the_error_of_a_file(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(hpo.StudyFileError, match=rf"^hpo\.Study: {re.escape(problem)}"):
        whole(**given)


@pytest.mark.parametrize(
    ("make", "given", "problem"),
    [
        (hpo.Network, {"kind": "mpl"}, "kind: unknown kind 'mpl' (did you mean 'mlp'?); known: mlp, cnn, module"),
        (hpo.Network, {"kind": hpo.Choices(["mlp", "mpl"])}, "kind.choices.1: unknown kind 'mpl' (did you mean"),
        (hpo.Network, {"hidden": [8, hpo.Range(0, 4)]}, "hidden.1.low: must be at least 1 (got 0)"),
        (hpo.Network, {"hidden": [hpo.Range(2, 4), 0]}, "hidden.1: must be at least 1 (got 0)"),
        (hpo.Network, {"activation": hpo.Range(0, 1)}, "activation: cannot be a range; use { choices = [...] }"),
        (hpo.Network, {"args": {"width": {"low": 2, "high": 1}}}, "args.width.low: must be below high = 1 (got 2)"),
        (
            hpo.Network,
            {"module": hpo.Choices([list, functools.partial(list)])},
            "module: must be a function or a class, not an object",
        ),
        (hpo.Network, {"module": "n.py:N", "args": {"module": list}}, "args: must be a number, a string, true"),
        (hpo.Optimizer, {"lr": -1}, "lr: must be above 0 (got -1)"),
        (hpo.Optimizer, {"lr": hpo.Range(-1, 1)}, "lr.low: must be above 0 (got -1)"),
        (hpo.Training, {"keep": hpo.Choices(["none", "best"])}, "keep: cannot be searched: it is the same for all"),
        (hpo.Search, {"trials": 0}, "trials: must be at least 1 (got 0)"),
        (hpo.Search, {"trials": hpo.Range(1, 2)}, "trials: must be a whole number"),
        (hpo.Search, {"trials": 1, "direction": ["minimize", "up"]}, "direction.1: unknown "),
        (hpo.Task, {"kind": "regression", "loss": "bce"}, "loss: must be mse, mae, huber, gaussian_nll or FILE.py"),
        (hpo.Preprocess, {"impute": "zero"}, "impute: unknown impute 'zero'; known: none, median, mean"),
        (hpo.Data, {"dataset": "digit"}, "dataset: unknown data set 'digit' (did you mean 'digits'?)"),
        (hpo.Data, {"dataset": "digits", "folds": 2, "validation": 0.1}, "folds: cannot be combined with validation"),
        (hpo.Data, {"dataset": "table:a.csv"}, "target: missing"),
        (hpo.Data, {}, "dataset: missing: pass a data set, x and y, or a table"),
        (hpo.Data, {"dataset": "digits", "x": [1]}, "dataset: dataset and x and y exclude each other"),
    ],
)
def test_a_section_is_checked_when_it_is_made(make: Callable[..., object], given: dict[str, Any], problem: str) -> None:
    with pytest.raises(hpo.StudyFileError, match=f"^hpo\\.{make.__name__}: {re.escape(problem)}"):
        make(**given)


def test_a_section_does_not_check_rules_with_other_keys() -> None:
    """It may be one of `when`, or of an objective study."""
    hpo.Optimizer(momentum=0.5, lr=hpo.Range(1e-5, 1.0))
    hpo.Network(dropout=[0.1, 0.2, 0.3], conv=hpo.Choices([(4,), (4, 4)]), args={"width": hpo.Choices([1, "two"])})
    hpo.Search(trials=4, direction=["minimize", "maximize"], pruner="median", metric=["val_loss", "parameters"])
    hpo.Training(batch_size=hpo.Range(8, 16, step=8))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: hpo.Range(1, 0), "hpo.Range: low: must be below high = 0 (got 1)"),
        (lambda: hpo.Range(0, 1, log=True), "hpo.Range: low: must be above 0 when log = true (got 0)"),
        (lambda: hpo.Range(1, 2, step=3), "hpo.Range: step: must be at most high - low (got 3)"),
        (lambda: hpo.Range(0, float("inf")), "hpo.Range: high: must be a finite number (got inf)"),
        (lambda: hpo.Range(True, 2), "hpo.Range: low: must be a number (got true)"),
        (lambda: hpo.Choices([]), "hpo.Choices: choices: must not be empty (got [])"),
    ],
)
def test_a_range_is_checked_when_it_is_made(make: Callable[[], object], problem: str) -> None:
    with pytest.raises(hpo.StudyFileError, match=f"^{re.escape(problem)}$"):
        make()


def test_an_error_in_a_dictionary_names_the_key() -> None:
    with pytest.raises(hpo.StudyFileError, match=r"^study: search\.trials: must be at least 1 \(got 0\)$"):
        hpo.read(tree(search={"trials": 0}))
    with pytest.raises(hpo.StudyFileError, match=r"^nothing\.toml: no such file$"):
        hpo.read("nothing.toml")
    with pytest.raises(hpo.StudyFileError, match=r"^study: --trials: must be at least 1 \(got 0\)$"):
        hpo.read(tree(), trials=0)


def test_the_check_has_the_search_space() -> None:
    report = hpo.read(tree()).check("cpu")
    assert "lr: 0.001 to 1, log scale" in report
    assert "4 members" in report
