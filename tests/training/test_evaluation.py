"""Trained networks: log-probabilities, means over sub-networks, and weights files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_reference import config, made_images

from hpo.errors import HpoError
from hpo.training.evaluation import log_probabilities, subnetwork_outputs
from hpo.training.networks.builtin import build
from hpo.training.networks.weights_file import TYPES, load_network, read_weights, weights_to_bytes
from hpo.training.stack import EVALUATION_BATCH
from hpo.training.tasks.averaging import mean_outputs
from hpo.training.tasks.task import Task

SPLIT = made_images(train=10, validation=EVALUATION_BATCH + 30)
IMAGES = SPLIT.validation
RATE = 0.4


def network(**more: object) -> nn.Module:
    settings = config(**{"hidden": [4, 3], "dropout": RATE, "batch_norm": True, **more}).network  # type: ignore[arg-type]
    module = build(settings, SPLIT.shape, SPLIT.task.outputs, seed=3).double()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        module(IMAGES.double())  # changes the running statistics
    return module


def test_log_probabilities_are_those_of_evaluation_mode() -> None:
    module = network()
    with torch.no_grad():
        expected = torch.log_softmax(module.eval()(IMAGES.double()), 1)
    found = log_probabilities(module.train(), IMAGES)
    torch.testing.assert_close(found, expected)
    single = log_probabilities(network().float(), IMAGES)
    assert single.dtype == torch.float64
    torch.testing.assert_close(single, expected, rtol=1e-4, atol=1e-4)


def every_mask(module: nn.Module) -> Tensor:
    """Return the mean of all sub-networks' probabilities, weighted by the probabilities of their masks."""
    layers = list(module.eval().layers)  # type: ignore[arg-type]
    places = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Dropout)]
    mean = torch.zeros(len(IMAGES), SPLIT.task.outputs, dtype=torch.float64)
    for masks in itertools.product(itertools.product((0, 1), repeat=4), itertools.product((0, 1), repeat=3)):
        x, kept = IMAGES.double(), sum(map(sum, masks))
        for index, layer in enumerate(layers):
            mask = torch.tensor(masks[places.index(index)]) if index in places else None
            x = layer(x) if mask is None else x * mask / (1 - RATE)
        mean += (1 - RATE) ** kept * RATE ** (7 - kept) * torch.softmax(x, 1)
    return mean


def test_the_mean_of_many_subnetworks_is_near_the_mean_of_all() -> None:
    module = network()
    with torch.no_grad():
        expected = every_mask(module)
    outputs = list(subnetwork_outputs(module, IMAGES, 400, 7))
    singles, found = [torch.softmax(each, 1) for each in outputs], mean_outputs(SPLIT.task, outputs).exp()
    torch.testing.assert_close(found, torch.stack(singles).mean(0))
    deviation = torch.stack(singles).std(0) / 20
    assert ((found - expected).abs() <= 5 * deviation + 1e-12).all()
    assert (found - log_probabilities(module, IMAGES).exp()).abs().mean() > 0.001


def test_a_subnetwork_has_the_same_mask_for_all_images_and_others_differ() -> None:
    twice = torch.cat([IMAGES[:1]] * (EVALUATION_BATCH + 1))
    singles = list(subnetwork_outputs(network(), twice, 6, 7))
    assert all(torch.allclose(each, each[:1]) for each in singles)
    assert len({round(each[0, 0].item(), 9) for each in singles}) > 1
    again = subnetwork_outputs(network(), twice, 6, 7)
    assert all(one.equal(other) for one, other in zip(singles, again, strict=True))


class Thrice(nn.Module):
    """A network that calls one dropout layer for inputs of two sizes, and a dropout layer of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.spread, self.join, self.out = nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(2, 3)
        self.dropout, self.again = [nn.Dropout(RATE)] * 2  # one layer with two names
        self.channels = nn.Dropout1d(RATE)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)[:, :2]
        x = self.again(self.join(self.dropout(self.spread(self.dropout(x)))))
        return self.out(self.channels(x[:, :2, None].expand(-1, 2, 2)).mean(2))


def test_every_call_of_a_dropout_layer_has_its_own_mask() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Thrice().double()
    singles = [torch.log_softmax(each, 1) for each in subnetwork_outputs(module, IMAGES, 40, 7)]
    expected, masks = [], itertools.product((0.0, 1 / (1 - RATE)), repeat=10)
    with torch.no_grad():
        for first, second, third, channels in (
            map(torch.tensor, (mask[:2], mask[2:5], mask[5:8], mask[8:])) for mask in masks
        ):
            x = module.spread(IMAGES.double().flatten(1)[:, :2] * first) * second
            expected.append(torch.log_softmax(module.out((module.join(x) * third)[:, :2] * channels), 1)[:9])
    every = torch.stack(expected)
    for single in singles:
        assert (every - single[:9]).abs().amax((1, 2)).min() < 1e-12
    assert len({single[0, 0].item() for single in singles}) > 20
    assert not torch.equal(singles[0], log_probabilities(module, IMAGES))
    module.dropout.p = 1.0  # drops all inputs
    assert all(each.isfinite().all() for each in subnetwork_outputs(module, IMAGES, 2, 7))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_network_itself_is_not_changed(kind: str) -> None:
    module = network(kind=kind, kernel=3, padding=1)
    before = log_probabilities(module, IMAGES)
    assert len(list(subnetwork_outputs(module, IMAGES, 2, 7))) == 2
    assert any(isinstance(each, nn.Dropout) for each in module.modules())
    assert log_probabilities(module, IMAGES).equal(before)


def test_without_dropout_every_subnetwork_equals_the_network() -> None:
    module = network(dropout=0.0)
    found = mean_outputs(SPLIT.task, subnetwork_outputs(module, IMAGES, 3, 7))
    torch.testing.assert_close(found, log_probabilities(module, IMAGES))


def test_the_mean_of_networks_is_that_of_their_predictions() -> None:
    outputs = torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0)).double()
    labels = mean_outputs(Task("multilabel", 4, "bce"), outputs)
    torch.testing.assert_close(labels.sigmoid(), outputs.sigmoid().mean(0))
    torch.testing.assert_close(mean_outputs(Task("regression", 4, "mse"), outputs), outputs.mean(0))
    center, variance = outputs[:, :, :2], outputs[:, :, 2:].exp()
    mixture = mean_outputs(Task("regression", 4, "gaussian_nll"), outputs)
    torch.testing.assert_close(mixture[:, :2], center.mean(0))
    # the law of total variance
    torch.testing.assert_close(mixture[:, 2:].exp(), variance.mean(0) + center.var(0, correction=0))


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_weights_are_read_as_they_were_written(kind: str, tmp_path: Path) -> None:
    module, path = network(kind=kind, kernel=3, padding=1), tmp_path / "weights.safetensors"
    path.write_bytes(weights_to_bytes(module.state_dict(), {"schema": "x", "trial": "3"}))
    state, about = read_weights(path)
    assert about == {"schema": "x", "trial": "3"}
    settings = config(kind, hidden=[4, 3], dropout=RATE, batch_norm=True, kernel=3, padding=1).network
    again = load_network(path, state, settings, SPLIT.shape, SPLIT.task.outputs)
    assert not again.training
    assert log_probabilities(again, IMAGES).equal(log_probabilities(module, IMAGES))


def test_tensors_of_every_type_are_read_as_they_were_written(tmp_path: Path) -> None:
    matrix = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    state = {
        "transposed": matrix.t(),
        "every second": matrix[:, ::2],
        "expanded": matrix[:1].expand(4, 3),
        "the whole": matrix,
        "the same": matrix,
        "empty": torch.zeros(0, 3),
        "a number": torch.tensor(2.0),
        "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "negative": torch.tensor([1 + 2j]).conj().imag,
        **{str(dtype): torch.tensor([0, 1]).to(dtype) for dtype in TYPES},
    }
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights_to_bytes(state, {}))
    again, _ = read_weights(path)
    assert again.keys() == state.keys()
    for name, value in again.items():
        assert value.dtype == state[name].dtype, name
        assert value.tolist() == state[name].tolist(), name


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (torch.eye(2).to_sparse(), "'own' has type torch.float32, torch.sparse_coo, which no weights file stores"),
        (torch.ones(2, dtype=torch.complex128), "'own' has type torch.complex128, which no weights file stores"),
        ({"no": "tensor"}, "'own' is a dict: a weights file stores tensors only"),
    ],
)
def test_the_error_names_a_value_that_no_weights_file_stores(value: Any, problem: str) -> None:
    with pytest.raises(HpoError, match=problem):
        weights_to_bytes({"own": value}, {})


def test_damaged_or_wrong_weights_raise_an_error(tmp_path: Path) -> None:
    module, path = network(), tmp_path / "weights.safetensors"
    content = weights_to_bytes(module.state_dict(), {})
    for damaged in (b"", content[:5], content[:-1], b"\x80\x04" + content):
        path.write_bytes(damaged)
        with pytest.raises(HpoError, match=r"weights\.safetensors: its weights cannot be read: damaged or truncated"):
            read_weights(path)
    with pytest.raises(HpoError, match="no such file"):
        read_weights(tmp_path / "none")
    path.write_bytes(content)
    state, _ = read_weights(path)
    other = config(hidden=[5, 3], batch_norm=True).network
    settings = config(hidden=[4, 3], batch_norm=True).network
    missing = {name: value for name, value in state.items() if "bias" not in name}
    for wrong, described in ((state, other), (missing, settings), ({**state, "more": torch.ones(1)}, settings)):
        with pytest.raises(HpoError, match="do not match the described network"):
            load_network(path, wrong, described, SPLIT.shape, SPLIT.task.outputs)
    whole = {name: value.long() for name, value in state.items()}
    with pytest.raises(HpoError, match="do not have the described network's type"):
        load_network(path, whole, settings, SPLIT.shape, SPLIT.task.outputs)
