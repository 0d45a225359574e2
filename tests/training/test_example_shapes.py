"""Rows of a table and integer inputs in networks: their shapes, types, precisions and errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_reference import assert_same_curves, config, curves, made_images, member

from hpo.errors import SettingError
from hpo.studyfile import Config, NetworkSettings
from hpo.training.device_data import DeviceSplit, IntegerShape, describe, extreme_examples
from hpo.training.evaluation import log_probabilities
from hpo.training.grouping import Grouping, why_not_stackable
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import check_trainable
from hpo.training.networks.weights_file import load_network
from hpo.training.size import measure_network
from hpo.training.trainer import Trainer

CODE = """
import torch
import torch.nn.functional as F
from torch import nn


class Rows(nn.Module):
    def __init__(self, shape, classes, width=6):
        super().__init__()
        (features,) = shape
        self.norm, self.fc, self.head = nn.BatchNorm1d(features), nn.Linear(features, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(F.relu(self.fc(self.norm(x))))


class Flat(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, classes))

    def forward(self, x):
        return self.layers(x)


class Words(nn.Module):
    def __init__(self, classes, ids=20, pad=None):
        super().__init__()
        self.embed, self.drop = nn.Embedding(ids, 5, padding_idx=pad), nn.Dropout(0.2)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        return self.head(self.drop(self.embed(x).mean(1)))


class Unstacked(Words):
    def forward(self, x):
        assert x.dtype == torch.int64
        return super().forward(x if x.sum() > -1 else x + 1)


class Functional(Words):
    def forward(self, x):
        return self.head(F.embedding(x, self.embed.weight).mean(1))


class Lazy(Words):
    def __init__(self, classes):
        super().__init__(classes)
        self.head = nn.LazyLinear(classes)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(CODE)
    return tmp_path


def own(folder: Path, name: str, **args: Any) -> NetworkSettings:
    network = config("module", module=f"nets.py:{name}", args=args).network
    return network.with_folder(folder)


def settings(folder: Path, name: str, args: dict[str, Any] | None = None, **more: Any) -> Config:
    whole = config("module", module=f"nets.py:{name}", args=args or {}, **more)
    return whole.model_copy(update={"network": whole.network.with_folder(folder)})


def table() -> DeviceSplit:
    images = made_images()
    return replace(images, train=images.train.flatten(1), validation=images.validation.flatten(1))


def words(largest: int = 19) -> DeviceSplit:
    """Return sequences of ten words each, in which words of the example's class are frequent."""
    images = made_images()
    generator = torch.Generator().manual_seed(1)
    parts = []
    for targets in (images.train_targets, images.validation_targets):
        noise = torch.randint(0, largest + 1, (len(targets), 10), generator=generator)
        parts.append(torch.where(torch.rand(noise.shape, generator=generator) < 0.5, targets.unsqueeze(1), noise))
    parts[1][2, 3] = largest
    return replace(images, train=parts[0], validation=parts[1])


def test_the_shape_of_an_example_is_that_of_its_data() -> None:
    assert (made_images().shape, table().shape, words().shape) == ((1, 8, 8), (64,), (10,))
    assert [isinstance(each.shape, IntegerShape) for each in (made_images(), table(), words())] == [False, False, True]
    assert [describe(each.shape) for each in (made_images(), table(), words())] == [
        "1 x 8 x 8 pixels",
        "64 features",
        "10 integers",
    ]


def test_a_table_reaches_a_module_as_rows_of_features(folder: Path) -> None:
    network = build(own(folder, "Rows"), table().shape, 10, 0)
    check_trainable(network, own(folder, "Rows"), table().train[:4], 10)
    modules = [build(own(folder, "Rows"), table().shape, 10, seed) for seed in (0, 1)]
    assert why_not_stackable(modules, table().train) is None
    found, reasons = curves([member(number, settings(folder, "Rows")) for number in (0, 1)], table())
    assert not reasons
    assert found[0][-1]["train_loss"] < found[0][0]["train_loss"]


@pytest.mark.parametrize("name", ["Flat", "mlp"])
def test_a_network_that_flattens_trains_on_rows_as_on_images_of_one_row(name: str, folder: Path) -> None:
    """Earlier versions of hpo gave rows of a table as [B, 1, 1, features]."""
    rows = table()
    as_images = replace(rows, train=rows.train[:, None, None], validation=rows.validation[:, None, None])
    one = config(batch_norm=True, dropout=0.2) if name == "mlp" else settings(folder, name)
    members = [member(number, one) for number in (0, 1)]
    assert curves(members, rows)[0] == curves(members, as_images)[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["Words", "Unstacked"])
def test_integers_reach_an_embedding_in_every_precision(name: str, precision: str, folder: Path) -> None:
    split, warnings = words(), list[str]()
    trainer = Trainer(split, "float32", warnings.append)
    members = [member(number, settings(folder, name, precision=precision, lr=0.5, epochs=4)) for number in (0, 1)]
    losses = []
    for group in trainer.groups(members):
        assert len(group) == (2 if name == "Words" else 1)
        for result in trainer.train(group):
            assert not result.failed
            losses.append(result.metrics[group[0].number]["train_loss"])
    assert losses[3] < losses[0]
    assert bool(warnings) == (name == "Unstacked")


def test_a_network_of_integers_has_the_same_curve_alone_and_in_company(folder: Path) -> None:
    members = [member(number, settings(folder, "Words", {"pad": 0})) for number in range(3)]
    together = curves(members, words())[0]
    for each in members:
        assert_same_curves(together[each.number], curves([each], words())[0][each.number], rtol=1e-9)


def test_integers_are_never_converted(folder: Path) -> None:
    """2^53 + 1 is no float64."""
    large = torch.tensor([[2**53 + 1, 0]])
    split = replace(words(), train=large, validation=large)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        typed = split.in_type(dtype)
        assert typed.compute == dtype
        assert typed.train.equal(large)
        assert typed.validation.equal(large)
    assert made_images().in_type(torch.float64).train.dtype == torch.float64


def test_lazy_layers_and_measurements_get_integers(folder: Path) -> None:
    network = build(own(folder, "Lazy"), words().shape, 10, 0)
    assert measure_network(network, words().shape).parameters == 20 * 5 + 60
    assert log_probabilities(network.double(), words().validation).shape == (30, 10)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_built_in_networks_refuse_integers_and_a_cnn_refuses_rows(kind: str) -> None:
    with pytest.raises(SettingError, match="take bytes or floats, but the examples are integers; save x as") as caught:
        build(config(kind).network, words().shape, 10, 0)
    assert caught.value.key == "network.kind"
    if kind == "cnn":
        with pytest.raises(SettingError, match="cnn takes images, but the examples are rows of 64 features; use mlp"):
            build(config(kind).network, table().shape, 10, 0)


def test_an_id_out_of_range_is_an_error_that_names_the_largest(folder: Path) -> None:
    split = words(largest=20)
    assert not (split.train == 20).all(1).any()
    for given in (settings(folder, "Words"), settings(folder, "Unstacked")):
        grouping, one = Grouping(split, lambda text: None), member(0, given)
        grouping.key(one)
        with pytest.raises(
            SettingError, match=r"layer 'embed' has the ids 0 to 19 \(num_embeddings\), but gets ids up to 20"
        ):
            grouping.can_stack(one)
    grouping, one = Grouping(split, lambda text: None), member(0, settings(folder, "Functional"))
    grouping.key(one)
    with pytest.raises(IndexError) as caught:
        grouping.can_stack(one)
    assert "integers 0 to 20" in caught.value.__notes__[0]
    grouping, one = Grouping(split, lambda text: None), member(0, settings(folder, "Words", {"ids": 21}))
    grouping.key(one)
    assert grouping.can_stack(one)


def test_a_tested_network_checks_the_ids_that_it_gets(folder: Path) -> None:
    network = build(own(folder, "Words"), words().shape, 10, 0)
    loaded = load_network(Path("weights"), network.state_dict(), own(folder, "Words"), words().shape, 10)
    assert log_probabilities(loaded, torch.full((2, 10), 19)).shape == (2, 10)
    for wrong, problem in ((20, "gets ids up to 20"), (-1, "gets id -1")):
        with pytest.raises(SettingError, match=problem):
            log_probabilities(loaded, torch.full((2, 10), wrong))


def test_the_extreme_examples_have_the_extremes_of_each_position() -> None:
    inputs = torch.randint(-50, 50, (300, 2, 3), generator=torch.Generator().manual_seed(0))
    found = extreme_examples(inputs)
    assert len(found) <= 12
    assert found.amin(0).equal(inputs.amin(0))
    assert found.amax(0).equal(inputs.amax(0))


def test_an_error_of_a_module_names_the_shape_of_its_inputs(folder: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        check_trainable(build(own(folder, "Flat"), (30,), 10, 0), own(folder, "Flat"), torch.zeros(4, 30), 10)
    assert caught.value.__notes__ == ["for inputs of shape [4, 30]"]
