"""Fuzz tests of study files: valid studies are read back, all else is an error of one printable line."""

from __future__ import annotations

import json
import pickle
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo.errors import StudyFileError
from hpo.studyfile import Choices, Range, Study, differing_keys, parse_study, read_study
from hpo.studyfile.writing import study_text

fractions = st.floats(0, 0.99)
above_zero = st.floats(1e-12, 1e12)
sizes = st.integers(1, 2**63 - 1)
words = st.sampled_from


def ranges(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Valid ranges with ends among `values`, some on a log scale, some with steps."""

    def tables(ends: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
        table = {"low": min(ends), "high": max(ends)}
        kinds = [{}, {"log": False}, {"step": table["high"] - table["low"]}, *([{"log": True}] * (table["low"] > 0))]
        return st.sampled_from([{**table, **kind} for kind in kinds])

    return st.lists(values, min_size=2, max_size=2, unique=True).flatmap(tables)


def searchable(values: st.SearchStrategy[Any], numeric: bool = True) -> st.SearchStrategy[Any]:
    choices = st.lists(values, min_size=1, max_size=3, unique_by=repr)
    searched = st.fixed_dictionaries(
        {"choices": choices.filter(lambda them: all(a != b for a in them for b in them if a is not b))}
    )
    return st.one_of(values, searched, ranges(values)) if numeric else st.one_of(values, searched)


def sections(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


KINDS = {
    "sgd": {},
    "momentum": {"momentum": searchable(fractions)},
    "rmsprop": {"alpha": searchable(fractions), "eps": searchable(above_zero)},
    "adam": {"beta1": searchable(fractions), "beta2": searchable(fractions), "eps": searchable(above_zero)},
}


@st.composite
def studies(draw: st.DrawFn) -> dict[str, Any]:
    """Trees of valid studies."""
    network_kind, optimizer_kind = draw(words(["mlp", "cnn"])), draw(words(sorted(KINDS)))
    hidden = draw(st.lists(searchable(sizes), max_size=3))
    rates = st.lists(searchable(fractions), min_size=len(hidden), max_size=len(hidden))
    if network_kind == "cnn":
        rates = st.tuples(searchable(fractions), rates).map(lambda pair: [pair[0], *pair[1]])
    cnn = {"conv": st.lists(searchable(sizes), min_size=1, max_size=3), "kernel": searchable(sizes)}
    activations = words(["relu", "tanh", "silu"])
    return draw(
        sections(
            {
                "name": st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=200),
                "data": sections(
                    {"dataset": words(["digits", "mnist", "fashion_mnist", "cifar10"])},
                    {
                        "validation": st.floats(0.01, 0.99),
                        "train_size": st.integers(2, 10**9),
                        "stratify": st.sampled_from(["auto", True, False]),
                    },
                ),
                "network": sections(
                    {"kind": st.just(network_kind), "hidden": st.just(hidden)},
                    {
                        "activation": searchable(activations, numeric=False),
                        "init": st.one_of(words(["he", "xavier"]), searchable(above_zero)),
                        "batch_norm": searchable(st.booleans(), numeric=False),
                        "dropout": st.one_of(searchable(fractions), rates),
                        **(cnn if network_kind == "cnn" else {}),
                    },
                ),
                "optimizer": sections(
                    {"kind": st.just(optimizer_kind), "lr": searchable(above_zero)},
                    {"weight_decay": searchable(st.one_of(st.just(0), above_zero)), **KINDS[optimizer_kind]},
                ),
                "training": sections({"epochs": searchable(sizes)}, {"batch_size": searchable(sizes)}),
                "search": sections(
                    {"trials": sizes},
                    {"population": st.one_of(st.just("auto"), sizes), "seed": sizes, "repeat": st.booleans()},
                ),
            },
            {"description": st.text(st.characters(exclude_categories=["Cs"]))},
        )
    )


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(16**999), st.floats(), st.text(max_size=20), st.dates(),
    words(["low", "mlp", "adam", "auto", "\ud800", "a\nb"]),
)  # fmt: skip
keys = st.one_of(
    st.text(max_size=5), words(["name", "data", "network", "optimizer", "lr", "kind", "low", "high", "choices", "step"])
)
trees = st.recursive(
    scalars, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(keys, inside, max_size=4), max_leaves=20
)


def mannered(read: Callable[[], Study], start: str) -> Study | None:
    """Return the study, or None after an error of one printable line of limited length."""
    try:
        return read()
    except StudyFileError as error:
        line = str(error)
    assert line.startswith(start)
    assert line.isprintable()
    assert len(line) < len(start) + 400
    return None


def parsed(tree: Any) -> Study | None:
    """Parse any tree, which must stay unchanged."""
    before = pickle.dumps(tree)
    study = mannered(lambda: parse_study(tree, "s.toml"), "s.toml: ")
    assert pickle.dumps(tree) == before
    return study


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]


@given(tree=studies(), data=st.data())
def test_a_valid_study_is_read_back_and_configures_its_trials(tree: dict[str, Any], data: st.DataObject) -> None:
    study = parsed(tree)
    assert study is not None
    again = parse_study(json.loads(json.dumps(study.resolved())), "s.toml")
    assert again == study
    assert differing_keys(study, again) == []
    params = {}
    for parameter in study.parameters:
        match parameter.searched:
            case Choices(choices):
                params[parameter.name] = data.draw(words(choices))
            case Range(low, high) if parameter.integer:
                assert isinstance(low, int)
                assert isinstance(high, int)
                params[parameter.name] = data.draw(st.integers(low, high))
            case Range(low, high):
                params[parameter.name] = data.draw(st.floats(low, high))
    study.config(params)


@given(tree=studies())
def test_a_valid_study_written_as_toml_is_read_back(folder: Path, tree: dict[str, Any]) -> None:
    study = parse_study(tree, "s.toml")
    path = folder / "written.toml"
    path.write_text(study_text(study), encoding="utf-8")
    assert read_study(path) == study


@given(tree=studies(), data=st.data())
def test_one_change_to_a_valid_study_is_read_or_refused_in_one_line(tree: dict[str, Any], data: st.DataObject) -> None:
    *top, key = data.draw(words([place for place in places(tree) if place]))
    node = tree
    for step in top:
        node = node[step]
    change = data.draw(words(["replace", "remove", "add", "wrap"]))
    if change == "replace":
        node[key] = data.draw(trees)
    elif change == "remove":
        del node[key]
    elif change == "wrap":
        node[key] = data.draw(words([[node[key]], {"choices": [node[key]]}, {"low": node[key], "high": 1}]))
    elif isinstance(node, dict):
        node[data.draw(keys)] = data.draw(trees)
    study = parsed(tree)
    if study is not None:
        assert parse_study(study.resolved(), "s.toml") == study


@given(tree=trees)
def test_any_tree_is_refused_in_one_line(tree: Any) -> None:
    assert parsed(tree) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


EXAMPLE = b"""name = "a"
[data]
dataset = "digits"
[network]
kind = "mlp"
dropout = [0.5, { low = 0.0, high = 0.6 }]
[optimizer]
lr = { low = 1e-6, high = 1e-2, log = true }
[training]
epochs = 50
[search]
trials = 100
"""


@given(
    junk=st.one_of(
        st.binary(max_size=40), words([b"[", b"{", b"'''", b"\n[[data]]\n", b"1979-05-27", b"nan", b"0x" * 9])
    ),
    start=st.integers(0, len(EXAMPLE)),
    length=st.integers(0, 20),
    suffix=words([".toml", ".json", ""]),
)
def test_any_bytes_are_read_or_refused_in_one_line(
    folder: Path, junk: bytes, start: int, length: int, suffix: str
) -> None:
    path = folder / f"s{suffix}"
    for content in (junk, EXAMPLE[:start] + junk + EXAMPLE[start + length :]):
        path.write_bytes(content)
        mannered(lambda: read_study(path), f"{path}: ")


@given(
    key=st.one_of(
        words(["name", "data.dataset", "network.dropout.1.low", "optimizer.lr.high", "network.dropout", "optimizer"]),
        st.text(max_size=10),
        st.lists(words(["data", "network", "dropout", "0", "1", "99", "lr", "choices", ""]), max_size=4).map(".".join),
    ),
    value=st.one_of(st.text(max_size=20), st.text("[]{}=.,'\"0123456789low\n ", max_size=12)),
)
def test_any_override_is_applied_or_refused_in_one_line(folder: Path, key: str, value: str) -> None:
    path = folder / "override.toml"
    path.write_bytes(EXAMPLE)
    mannered(lambda: read_study(path, [f"{key}={value}"]), f"{path}: ")


def test_the_example_is_valid() -> None:
    assert parsed(tomllib.loads(EXAMPLE.decode())) is not None
