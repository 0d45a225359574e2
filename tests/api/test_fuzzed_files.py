"""Fuzz tests of untrusted files: study files, exports and model folders.

Every mutation is accepted, or refused in one printable line, within limits of time and memory. All run in one process,
so that no file may affect the next. Networks are trained where the study is small.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import hpo
from hpo.errors import HpoError
from hpo.results.final_test.model_folder import sha256
from hpo.results.reproduce import replay as replaying
from hpo.search.enqueueing import network_values
from hpo.storage import open_storage
from hpo.studyfile import Study, parse_any_study
from hpo.training.networks.weights_file import read_weights

MAX_S = 20
"""CPU seconds that a file may take."""

MAX_BYTES = 2**30
"""Bytes by which all files together may enlarge this process."""

quick = settings(max_examples=40, suppress_health_check=list(HealthCheck))
thorough = settings(quick, max_examples=1000)

STUDY = {
    "name": "tiny",
    "description": "a study of the tests",
    "data": {"dataset": "npz:images.npz", "validation": 0.25},
    "network": {
        "kind": {"choices": ["mlp", "cnn"]},
        "hidden": [4],
        "dropout": {"low": 0.0, "high": 0.5},
        "when": {"kind": {"cnn": {"conv": [2], "kernel": {"choices": [1, 2]}, "hidden": []}}},
    },
    "optimizer": {"kind": "momentum", "lr": {"low": 1e-3, "high": 0.1, "log": True}, "momentum": 0.5},
    "training": {"epochs": 2, "batch_size": 10, "precision": "float32"},
    "search": {
        "trials": 2,
        "sampler": "random",
        "population": 2,
        "points": [{"network.kind": "mlp", "dropout": 0.1, "lr": 0.01}],
    },
}

WHOLE = [0, 1, 2, 3, 7, -1, 1000, 10**7, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, 10**400]
FRACTIONS = [0.0, -0.0, 0.5, 1.0, -1.5, 1e-300, 5e-324, 1e30, 1e308, float("inf"), float("nan")]
TEXTS = ["", "a", "..", "/", "\0", "a\0b", "/dev/zero", "a" * 10_000, "\x1b[31m", "\u202e", "\ud800", "low", "auto"]
DATA = ["npz:/dev/zero", "npz:\0", "npz:" + "a" * 300, "npz:pipes/0/pipe", "folder:.", "folder:pipes", "digits"]
CODE = ["own.py:objective", "own.py:none", "\0.py:f", "a" * 5000 + ".py:f"]
WORDS = ["mlp", "cnn", "module", "grid", "cmaes", "hyperband", "float64"]
SCHEMAS = ["hpo.best/4", "hpo.best/" + "9" * 5000, "hpo.objective/1", "hpo.front/1"]

numbers, texts = st.sampled_from([*WHOLE, *FRACTIONS]), st.sampled_from([*TEXTS, *DATA, *CODE, *WORDS, *SCHEMAS])
plain = st.one_of(numbers, texts, st.booleans(), st.none())
deep = st.integers(2, 100).map(lambda depth: json.loads("[" * depth + "]" * depth))
values = st.one_of(
    plain,
    plain,
    st.lists(plain, max_size=4),
    st.tuples(plain, st.sampled_from([2, 1000, 5000])).map(lambda pair: [pair[0]] * pair[1]),
    st.dictionaries(texts, plain, max_size=2),
    st.tuples(numbers, numbers).map(lambda ends: {"low": ends[0], "high": ends[1]}),
    st.tuples(numbers, numbers, numbers).map(lambda ends: {"low": ends[0], "high": ends[1], "step": ends[2]}),
    st.lists(plain, max_size=3).map(lambda choices: {"choices": choices}),
    deep,
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield (*path, key)
        yield from places(value, (*path, key))


def mutated(tree: Any, data: st.DataObject) -> Any:
    """Return the tree with one to three changes anywhere in it."""
    tree = json.loads(json.dumps(tree))
    for _ in range(data.draw(st.integers(1, 3))):
        *top, key = data.draw(st.sampled_from(list(places(tree))))
        node = tree
        for step in top:
            node = node[step]
        match data.draw(st.sampled_from(["replace", "replace", "remove", "add", "wrap"])):
            case "replace":
                node[key] = data.draw(values)
            case "remove" if len(tree) > 1:
                del node[key]
            case "add" if isinstance(node, dict):
                node[data.draw(texts)] = data.draw(values)
            case _:
                node[key] = [node[key]]
    return tree


def write_mutation(tree: Any, data: st.DataObject, path: Path) -> None:
    """Write the tree as JSON or TOML, sometimes with a change in the text itself."""
    try:
        text = json.dumps(tree) if path.suffix == ".json" else tomli_w.dumps(without_nulls(tree))
    except (TypeError, ValueError):  # TOML has no such value
        text = json.dumps(tree)
    content = text.encode(errors="surrogatepass")
    if data.draw(st.integers(0, 3)) == 0:
        start, length = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 40))
        junk = data.draw(st.one_of(st.binary(max_size=8), st.just(content[start : start + length] * 2), st.just(b"")))
        content = content[:start] + junk + content[start + length :]
    path.write_bytes(content)


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value if each is not None] if isinstance(value, list) else value


def assert_accepted_or_refused(run: Callable[[], object]) -> None:
    """Run within the time limit; accept an HpoError of one printable line."""

    def timeout(*_: object) -> None:
        raise AssertionError(f"took more than {MAX_S} s")

    before = signal.signal(signal.SIGPROF, timeout)
    signal.setitimer(signal.ITIMER_PROF, MAX_S)
    try:
        run()
    except HpoError as error:
        message = str(error)
        assert message
        assert message.isprintable()
        assert len(message) < 12_000
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with images, a study, its storage, its export and its model folder."""
    folder = tmp_path_factory.mktemp("files")
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (60, 4, 4), dtype=np.uint8), np.arange(60) % 2
    np.savez(folder / "images.npz", x=x[:50], y=y[:50], x_test=x[50:], y_test=y[50:])
    np.save(folder / "images.npy", x[50:])
    (folder / "pipes" / "0").mkdir(parents=True)
    (folder / "pipes" / "1").mkdir(parents=True)

    os.mkfifo(folder / "pipes" / "0" / "pipe")
    (folder / "own.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    (folder / "study.json").write_text(json.dumps(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        storage = f"sqlite:///{folder}/hpo.db"
        found = hpo.launch("study.json", storage=storage, device="cpu", progress="quiet")
        (folder / "best.json").write_text(found.export_text())
        found.test(device="cpu", folder=folder / "model", say=lambda text: None)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield folder
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_BYTES


def is_small(study: Any) -> bool:
    """Return whether every network that the study can train is small."""
    if not isinstance(study, Study):
        return False
    network, training = study.first_settings.network, study.first_settings.training
    searched = {parameter.setting for parameter in study.parameters}
    sizes = [*network.hidden, *network.conv, network.padding, network.kernel, training.epochs, study.search.trials]
    return max(sizes) <= 8 and searched <= {("optimizer", "lr"), ("network", "dropout"), ("network", "kind")}


def check_and_launch(path: Path) -> None:
    """Run `hpo check`, and `hpo launch` for a small study."""
    study = hpo.read(path)
    study.check("cpu")
    if is_small(study.checked):
        study = hpo.read(path, name=f"launch {next(NUMBERS)}")
        hpo.launch(study, storage=f"sqlite:///{path.parent}/launched.db", device="cpu", progress="quiet")


NUMBERS = itertools.count()


def fuzz_a_study_file(files: Path, data: st.DataObject) -> None:
    path = files / data.draw(st.sampled_from(["a.json", "a.toml"]))
    base = data.draw(
        st.sampled_from([STUDY, {"name": "own", "objective": "own.py:objective", "search": {"trials": 2}}])
    )
    write_mutation(mutated(base, data), data, path)
    assert_accepted_or_refused(lambda: check_and_launch(path))


def fuzz_an_export(files: Path, data: st.DataObject) -> None:
    path = files / data.draw(st.sampled_from(["b.json", "b.toml"]))
    best = json.loads((files / "best.json").read_text())
    front = {"schema": "hpo.front/1", "study": "tiny", "metrics": ["val_loss", "parameters"], "front": [best]}
    objective = {"schema": "hpo.objective/1", "study": "own", "objective": "own.py:objective", "params": {"x": 0.5}}
    write_mutation(mutated(data.draw(st.sampled_from([best, best, best, front, objective])), data), data, path)
    assert_accepted_or_refused(lambda: check_and_launch(path))
    assert_accepted_or_refused(lambda: hpo.replay(path, device="cpu"))


def fuzz_enqueued_values(files: Path, data: st.DataObject) -> None:
    path = files / "enqueued.json"
    write_mutation(mutated({"network.kind": "mlp", "lr": 0.01, "dropout": 0.1}, data), data, path)
    text = path.read_text(errors="replace")
    study = parse_any_study({**STUDY, "search": {"trials": 5}}, "study.json", files)
    with closing(open_storage(f"sqlite:///{files}/hpo.db")) as storage:
        assert_accepted_or_refused(lambda: network_values(study, [text], storage))


def fuzz_a_card(files: Path, data: st.DataObject) -> None:
    card = files / "model" / "card.json"
    good = card.read_bytes()
    try:
        write_mutation(mutated(json.loads(good), data), data, card)
        assert_accepted_or_refused(lambda: str(hpo.predict(files / "model", files / "images.npy", device="cpu")))
    finally:
        card.write_bytes(good)


TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool, torch.float8_e4m3fn]


def fuzz_weights(files: Path, data: st.DataObject) -> None:
    """The card has the checksum of the fuzzed weights: their author is not trusted."""
    card, file = files / "model" / "card.json", files / "model" / "weights.safetensors"
    good, weights = card.read_bytes(), file.read_bytes()
    state, _ = read_weights(file)
    try:
        name = data.draw(st.sampled_from(sorted(state)))
        match data.draw(st.sampled_from(["value", "type", "shape", "name", "more", "bytes"])):
            case "value":
                state[name] = torch.full_like(state[name], data.draw(st.sampled_from([float("nan"), 1e38, -1e38, 0.0])))
            case "type":
                state[name] = state[name].to(data.draw(st.sampled_from(TYPES)))
            case "shape":
                state[name] = state[name].reshape(-1)[: data.draw(st.integers(0, 9))].clone()
            case "name":
                state["other"] = state.pop(name)
            case "more":
                state["more"] = torch.zeros(data.draw(st.sampled_from([0, 1, 10**6])))
        content = save(state)
        if data.draw(st.booleans()):
            start = data.draw(st.integers(0, min(400, len(content))))
            content = (
                content[:start] + data.draw(st.binary(max_size=9)) + content[start + data.draw(st.integers(0, 9)) :]
            )
        file.write_bytes(content)
        known = json.loads(good)
        known["weights"]["sha256"] = sha256(file)
        card.write_text(json.dumps(known))
        assert_accepted_or_refused(lambda: str(hpo.predict(files / "model", files / "images.npy", device="cpu")))
    finally:
        card.write_bytes(good)
        file.write_bytes(weights)


FUZZED = [fuzz_a_study_file, fuzz_an_export, fuzz_enqueued_values, fuzz_a_card, fuzz_weights]


@pytest.fixture(autouse=True)
def train_small_studies_only(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    train = replaying.retrain
    monkeypatch.setattr(replaying, "retrain", lambda study, *more: train(study, *more) if is_small(study) else [])


@pytest.mark.parametrize("fuzz", FUZZED)
@quick
@given(data=st.data())
def test_a_mutated_file_is_accepted_or_refused(files: Path, fuzz: Callable[..., None], data: st.DataObject) -> None:
    fuzz(files, data)


@pytest.mark.slow
@pytest.mark.parametrize("fuzz", FUZZED)
@thorough
@given(data=st.data())
def test_thousands_of_mutated_files(files: Path, fuzz: Callable[..., None], data: st.DataObject) -> None:
    fuzz(files, data)
