"""`hpo predict`: its predictions equal those of the test, and invalid folders and images are errors of one line."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from tiny import sealed_digits, search, study_of

from hpo.errors import HpoError
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.model_card import CARD_FILE
from hpo.results.final_test.model_folder import WEIGHTS_FILE, sha256
from hpo.results.final_test.predict import predictions
from hpo.search.plan import member_of, plan, to_planned_device
from hpo.storage import Storage, open_storage
from hpo.training.networks.builtin import build
from hpo.training.networks.weights_file import State, read_weights, weights_to_bytes
from hpo.training.population import train


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hpo test` wrote of a study of the digits."""
    place = tmp_path_factory.mktemp("tested")
    storage = open_storage(f"sqlite:///{place}/hpo.db")
    search(study_of(), storage)
    evaluate_test_set(
        storage, "tiny", EvaluationOptions(device="cpu", folder=place / "tested"), threading.Event(), lambda text: None
    )
    storage.close()
    return place / "tested"


@pytest.fixture
def model(tested: Path, tmp_path: Path) -> Path:
    """The same in a folder of the test's own."""
    (tmp_path / "model").mkdir()
    for name in (CARD_FILE, WEIGHTS_FILE):
        (tmp_path / "model" / name).write_bytes((tested / name).read_bytes())
    return tmp_path / "model"


def predict(model: Path, images: NDArray[Any]) -> list[dict[str, str]]:
    path = model.parent / "images.npy"
    np.save(path, images)
    return list(csv.DictReader(io.StringIO(str(predictions(model, path, "cpu")))))


def test_the_test_images_get_the_answers_that_were_counted(tested: Path, model: Path) -> None:
    images, labels = sealed_digits().inputs, sealed_digits().targets
    rows = predict(model, images)
    assert [int(row["image"]) for row in rows] == list(range(len(labels)))
    answers = np.array([int(row["class"]) for row in rows])
    result = json.loads((tested / "result.json").read_text())
    assert (answers == labels).mean() == result["test"]["accuracy"]
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_the_averaged_weights_of_the_best_epoch_predict(storage: Storage, tmp_path: Path) -> None:
    study = study_of(
        optimizer={"kind": "momentum", "lr": {"choices": [1.5]}},
        training={"epochs": 6, "ema": 0.7, "keep": "best"},
        search={"trials": 1},
    )
    search(study, storage)
    options = EvaluationOptions(device="cpu", folder=tmp_path / "tested", from_checkpoint=True)
    result, folder = evaluate_test_set(storage, "tiny", options, threading.Event(), lambda text: None)
    best = result["weights"]["epochs"]
    assert 1 < best < 6
    member = member_of(study, 0, study.config({"lr": 1.5}))
    with closing(train([member], to_planned_device(study, plan(study, "cpu"))[0], "float64")) as epochs:
        state = next(each.freeze([0])[0] for each in epochs if each.epoch == best)
    assert state.averages is not None
    found = [float(row["probability"]) for row in predict(folder, sealed_digits().inputs)]

    def largest(weights: State) -> list[float]:
        network = build(member.config.network, (1, 8, 8), 10, 0).double()
        network.load_state_dict({**state.network, **weights})
        with torch.no_grad():
            outputs = network.eval()(torch.from_numpy(sealed_digits().inputs).double())
        return torch.softmax(outputs, 1).amax(1).tolist()

    assert found == pytest.approx(largest(state.averages), abs=2e-6)  # printed with six decimals
    assert found != pytest.approx(largest(state.network), abs=1e-3)


def test_bytes_are_as_the_data_set_has_them_and_floats_from_0_to_1(model: Path) -> None:
    """The white of the digits is 16."""
    raw = load_digits().images[:30].astype(np.uint8)
    assert raw.max() == 16
    expected = predict(model, raw)
    scaled = (raw / 16).astype(np.float32)
    for images in (raw[:, None], scaled, scaled[:, None].astype(np.float64)):
        assert predict(model, images) == expected
    assert len(predict(model, scaled.astype(np.float16))) == 30
    assert predict(model, raw[:0]) == []


def test_many_images_are_numbered_through(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = sealed_digits().inputs[:25]
    whole = predict(model, images)
    monkeypatch.setattr("hpo.results.final_test.predict.AT_ONCE", 10)
    assert predict(model, images) == whole


F8 = torch.float8_e4m3fn
ZEROS = np.zeros((2, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.full((2, 8, 8), 17, np.uint8), "contains bytes outside 0 to 16 .white"),
        (ZEROS + 1.5, "contains numbers outside 0 to 1"),
        (ZEROS - 1, "contains numbers outside 0 to 1"),
        (ZEROS * np.nan, "contains numbers outside 0 to 1"),
        (ZEROS.astype(np.int64), "contains int64, but this network takes uint8, or floats from 0 to 1"),
        (ZEROS.astype(bool), "contains bool"),
        (ZEROS.astype(complex), "contains complex128"),
        (
            np.zeros((2, 28, 28)),
            r"its shape is \[2, 28, 28\], but this network takes \[N, 1, 8, 8\] or \[N, 8, 8, 1\] or \[N, 8, 8\]",
        ),
        (np.zeros((8, 8)), r"its shape is \[8, 8\]"),
        (np.zeros((2, 3, 8, 8)), r"its shape is \[2, 3, 8, 8\]"),
        (np.float32(0.5), r"its shape is \[\]"),
        (np.array([None, {}]), "is not a .npy file of numbers"),
    ],
)
def test_what_is_no_image_for_the_network_is_refused(images: Any, said: str, model: Path) -> None:
    with pytest.raises(HpoError, match=said):
        predict(model, images)


def test_a_file_that_is_no_array_is_refused(model: Path) -> None:
    path = model.parent / "images.npy"
    np.save(path, ZEROS)
    content = path.read_bytes()
    for damaged in (b"", b"hello", content[:50], content[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(HpoError, match=r"images\.npy: is not a \.npy file of numbers, or is truncated"):
            predictions(model, path, "cpu")
    with pytest.raises(HpoError, match="cannot be read"):
        predictions(model, model.parent / "none.npy", "cpu")
    np.savez(path.with_suffix(".npz"), a=ZEROS, b=ZEROS)
    with pytest.raises(HpoError, match="archive of several arrays"):
        predictions(model, path.with_suffix(".npz"), "cpu")


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Change the card of a folder."""

    def write(model: Path) -> None:
        card = json.loads((model / CARD_FILE).read_text())
        change(card)
        (model / CARD_FILE).write_text(json.dumps(card))

    return write


def network(**settings: Any) -> Callable[[Path], None]:
    """Let the card describe another network."""
    return changed(lambda card: card["config"]["network"].update(settings))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the weights of a folder, and the card with them."""

    def write(model: Path) -> None:
        file = model / WEIGHTS_FILE
        state, _ = read_weights(file)
        change(state)
        file.write_bytes(weights_to_bytes(state, {}))
        changed(lambda card: card["weights"].update(sha256=sha256(file)))(model)

    return write


def at_its_place(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in the place of the file of weights."""

    def put(model: Path) -> None:
        (model / WEIGHTS_FILE).rename(model.parent / "moved")
        make(model / WEIGHTS_FILE)

    return put


def cut_short(model: Path) -> None:
    weights = model / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-1])


def flipped(model: Path) -> None:
    content = bytearray((model / WEIGHTS_FILE).read_bytes())
    content[-5] ^= 1
    (model / WEIGHTS_FILE).write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut_short, "is not the file that card.json describes"),
        (flipped, "is not the file that card.json describes"),
        (lambda model: (model / WEIGHTS_FILE).unlink(), "cannot be read"),
        (lambda model: (model / CARD_FILE).unlink(), "cannot be read .*: name a folder that `hpo test` wrote"),
        (lambda model: (model / CARD_FILE).write_text("{"), "is not JSON"),
        (lambda model: (model / CARD_FILE).write_bytes(b"\xff"), "is not UTF-8 text"),
        (
            lambda model: (model / CARD_FILE).write_text("[]"),
            "has the schema None, but this version",
        ),
        (
            changed(lambda card: card.update(schema="hpo.card/3")),
            "has the schema 'hpo.card/3', but this version of hpo reads",
        ),
        (changed(lambda card: card.pop("config")), "is damaged: something that"),
        (changed(lambda card: card["input"].update(shape=[])), "is damaged: something that"),
        (changed(lambda card: card["input"].update(shape=[1, 8])), "do not match the described network"),
        (
            changed(lambda card: card["input"].update(shape=[64], integers=True)),
            "mlp and cnn take bytes or floats, but",
        ),
        (changed(lambda card: card["input"].update(shape=7)), "is damaged: something that"),
        (changed(lambda card: card["input"].update(white=0)), "is damaged: something that"),
        (changed(lambda card: card["weights"].update(file="../weights.safetensors")), "is damaged: something"),
        (changed(lambda card: card["config"]["network"].update(kind="rnn")), "is damaged: something that"),
        (network(hidden=[9]), "do not match the described network"),
        (network(hidden=[2**40]), "network.hidden: makes a layer of at least 2.46 weights, too many for any machine"),
        (network(hidden=[10**6, 10**6]), "its network does not fit into the memory of cpu"),
        (network(hidden=[1] * 1001), "is damaged: something that"),
        (network(kind="cnn", kernel=10**9), "network.conv: no pixel is left of a 8x8 image"),
        (network(kind="cnn", kernel=10**9, padding=10**9), "network.conv: makes a layer of at least 2.6. weights"),
        (network(kind="cnn", kernel=1, padding=10**5, pool=10**5), "its network does not fit into the memory of cpu"),
        (network(kind="cnn", kernel=1, padding=10**15), "network.conv: makes a layer of at least 2.10. outputs"),
        (
            changed(lambda card: card["input"].update(shape=[2**30] * 3)),
            "network.hidden: makes a layer of at least 2.9",
        ),
        (changed(lambda card: card["input"].update(classes=10**7)), "is damaged: something that"),
        (changed(lambda card: card["input"].update(classes=10**7) or card["data"].pop("classes")), "do not match"),
        (changed(lambda card: card["data"].update(classes=["\x1b[31mred", *"123456789"])), "is damaged: something"),
        (changed(lambda card: card["data"].update(classes=["\u202eder", *"123456789"])), "is damaged: something"),
        (changed(lambda card: card["data"].update(classes=["1", *"123456789"])), "is damaged: something"),
        (changed(lambda card: card["weights"].update(file="a\0b")), "cannot be read .is not a valid file name"),
        (changed(lambda card: card["weights"].update(file="..")), "cannot be read .Is a directory"),
        (at_its_place(os.mkfifo), "cannot be read .is not a regular file"),
        (at_its_place(lambda file: file.symlink_to("/dev/zero")), "cannot be read .is not a regular file"),
        (at_its_place(lambda file: file.symlink_to("../moved")), "leads to .*moved, outside the folder"),
        (at_its_place(lambda file: os.truncate(os.open(file, os.O_CREAT | os.O_RDWR), 2**40)), "do not match"),
        (lambda model: os.truncate(model / CARD_FILE, 2**30), "cannot be read .is larger than 4,194,304 bytes"),
        (lambda model: (model / CARD_FILE).write_text('{"a": 1, "a": 2}'), "duplicate key 'a'"),
        (lambda model: (model / CARD_FILE).write_text('{"a": ' * 40 + "1" + "}" * 40), "is nested too deeply"),
        (
            weights(lambda state: state["layers.1.weight"].fill_(math.nan)),
            "its weights are NaN or infinite .layers",
        ),
        (weights(lambda state: state["layers.1.bias"].fill_(-math.inf)), "its weights are NaN or infinite .layers.1.b"),
        (weights(lambda state: state["layers.1.weight"].fill_(1e308)), "output for example 0 of .* is NaN or infinite"),
        (
            weights(lambda state: state.update({"layers.1.bias": state["layers.1.bias"].int()})),
            "not have the described network.s type",
        ),
        (
            weights(lambda state: state.update({"layers.1.bias": state["layers.1.bias"].to(F8)})),
            "not have the described network.s type",
        ),
        (weights(lambda state: state.pop("layers.1.bias")), "do not match the described network"),
        (weights(lambda state: state.update(more=torch.zeros(2**17))), "do not match the described network"),
    ],
)
def test_a_folder_that_is_not_what_was_written_is_refused(
    damage: Callable[[Path], None], said: str, model: Path
) -> None:
    damage(model)
    with pytest.raises(HpoError, match=said) as caught:
        predict(model, ZEROS + 1)
    assert str(caught.value).isprintable()
