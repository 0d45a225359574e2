"""Outputs of the layers of untrained networks are those of plain torch, and their statistics are correct."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch_reference import config

from hpo.training.networks.activation_statistics import layer_outputs, output_statistics
from hpo.training.networks.builtin import build


def images(count: int = 400, side: int = 8, channels: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(0).random((count, channels, side, side), dtype=np.float32)


def test_the_outputs_of_each_layer_are_those_of_plain_torch() -> None:
    settings = config(hidden=[20, 10], dropout=0.9, init="he").network
    found = layer_outputs(settings, images(), 10, seed=3)
    linear = [each for each in build(settings, (1, 8, 8), 10, 3).modules() if isinstance(each, nn.Linear)]
    with torch.no_grad():
        first = F.relu(linear[0](torch.from_numpy(images()).flatten(1)))
        second = F.relu(linear[1](first))  # without dropout
    assert list(found) == ["hidden 1", "hidden 2"]
    np.testing.assert_allclose(found["hidden 1"], first.numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["hidden 2"], second.numpy(), rtol=1e-5, atol=1e-7)


def test_batch_norm_uses_the_statistics_of_the_batch() -> None:
    settings = config(hidden=[20], batch_norm=True, activation="leaky_relu", init=0.1).network
    outputs = layer_outputs(settings, images(), 10, seed=0)["hidden 1"]
    before = np.where(outputs < 0, outputs / 0.01, outputs)
    np.testing.assert_allclose(before.mean(axis=0), 0, atol=1e-3)
    assert before.std() == pytest.approx(1, abs=1e-3)  # with its initial statistics it would be a quarter


def test_a_cnns_convolutions_come_first() -> None:
    settings = config("cnn", conv=[3, 4], kernel=3, hidden=[5]).network
    found = layer_outputs(settings, images(7, 16), 10, seed=0)
    shapes = {layer: outputs.shape for layer, outputs in found.items()}
    assert shapes == {"conv 1": (7, 3, 14, 14), "conv 2": (7, 4, 5, 5), "hidden 1": (7, 5)}


def test_a_network_without_hidden_layers_has_no_outputs() -> None:
    assert layer_outputs(config(hidden=[]).network, images(), 10, seed=0) == {}


def test_global_random_generators_are_restored() -> None:
    settings = config(dropout=0.5).network
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = layer_outputs(settings, images(), 10, seed=0)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_equal(layer_outputs(settings, images(), 10, seed=0), first)


def test_the_signal_vanishes_with_small_weights_but_not_with_he() -> None:
    deep = {"hidden": [100] * 5}
    by_init = {}
    for init in (0.01, "xavier", "he"):
        found = layer_outputs(config(init=init, **deep).network, images(), 10, seed=0)
        by_init[init] = [output_statistics(outputs, "relu").sd for outputs in found.values()]
    # A relu halves the variance, and a layer of 100 weights of sd 0.01 divides it by 100.
    assert by_init[0.01][4] < 1e-3 * by_init[0.01][0]
    assert 0.5 < by_init["he"][4] / by_init["he"][0] < 2
    assert by_init["xavier"][4] < 0.5 * by_init["xavier"][0]


@pytest.mark.parametrize(
    ("activation", "values", "zeros", "saturated"),
    [
        ("relu", [0.0, 0.0, 1.0, 3.0], 0.5, None),
        ("sigmoid", [0.005, 0.02, 0.5, 0.995], 0.0, 0.5),
        ("tanh", [-0.995, 0.0, 0.98, 0.999], 0.25, 0.5),
        ("elu", [-0.999, -0.9, 7.0, 100.0], 0.0, 0.25),
        ("gelu", [-0.1, 0.0, 1.0, 2.0], 0.25, None),
    ],
)
def test_output_statistics(activation: str, values: list[float], zeros: float, saturated: float | None) -> None:
    found = output_statistics(np.array(values, dtype=np.float32).reshape(2, 2), activation)
    assert (found.zeros, found.saturated) == (zeros, saturated)
    assert found.mean == pytest.approx(sum(values) / 4, rel=1e-6)
    assert found.sd == pytest.approx(math.sqrt(sum((v - found.mean) ** 2 for v in values) / 4), rel=1e-6)
