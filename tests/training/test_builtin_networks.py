"""Built-in networks have the layers and initial weights that the study file describes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch_reference import config

from hpo.errors import HpoError
from hpo.training.networks.builtin import ACTIVATIONS, build


def kinds(network: nn.Module) -> list[str]:
    leaves = (module for module in network.modules() if not list(module.children()))
    return [type(module).__name__ for module in leaves if not isinstance(module, nn.ModuleList)]


def test_the_classic_cifar_network() -> None:
    own = config("cnn", conv=[6, 16], kernel=5, hidden=[120, 84], dropout=[0.1, 0.2, 0.3]).network
    network = build(own, (3, 32, 32), 10, seed=0)
    convolutions = ["Conv2d", "ReLU", "MaxPool2d"] * 2
    assert kinds(network) == [*convolutions, "Flatten", *["Dropout", "Linear", "ReLU"] * 2, "Dropout", "Linear"]
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert [(each.in_features, each.out_features) for each in linear] == [(400, 120), (120, 84), (84, 10)]
    assert [each.p for each in network.modules() if isinstance(each, nn.Dropout)] == [0.1, 0.2, 0.3]


def test_an_mlp_with_all_options() -> None:
    own = config(hidden=[9, 7], batch_norm=True, dropout=0.4, activation="tanh").network
    network = build(own, (1, 8, 8), 10, seed=0)
    assert kinds(network) == ["Flatten", *["Linear", "BatchNorm1d", "Tanh", "Dropout"] * 2, "Linear"]
    assert [each.p for each in network.modules() if isinstance(each, nn.Dropout)] == [0.4, 0.4]


def test_an_mlp_without_hidden_layers_and_a_cnn_without_pooling() -> None:
    assert kinds(build(config(hidden=[]).network, (1, 8, 8), 10, 0)) == ["Flatten", "Linear"]
    own = config("cnn", conv=[2], kernel=3, pool=1, hidden=[], batch_norm=True).network
    assert kinds(build(own, (1, 8, 8), 10, 0)) == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Dropout", "Linear"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_the_layer_of_torch(activation: str) -> None:
    assert ACTIVATIONS[activation].__name__.lower() == activation.replace("_", "")
    assert isinstance(
        build(config(activation=activation).network, (1, 8, 8), 10, 0)(torch.zeros(2, 1, 8, 8)), torch.Tensor
    )


@pytest.mark.parametrize(
    ("init", "deviations"),
    [
        ("he", [(2 / 64) ** 0.5, (2 / 400) ** 0.5]),
        ("xavier", [(2 / 464) ** 0.5, (2 / 800) ** 0.5]),
        (0.01, [0.01, 0.01]),
    ],
)
def test_initial_weights(init: str | float, deviations: list[float]) -> None:
    """The sample deviation of n Gaussian numbers has a relative error of 1 / sqrt(2n); the limits are 5 times that."""
    network = build(config(hidden=[400, 400], init=init).network, (1, 8, 8), 10, seed=1)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    for layer, expected in zip(linear, deviations, strict=False):
        count = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * count))
        assert abs(layer.weight.mean().item()) < 5 * expected / math.sqrt(count)
        assert not layer.bias.any()


def test_he_counts_the_kernel_of_a_convolution() -> None:
    network = build(config("cnn", conv=[64], kernel=5).network, (3, 32, 32), 10, seed=1)
    weight = next(module for module in network.modules() if isinstance(module, nn.Conv2d)).weight
    assert weight.std().item() == pytest.approx((2 / 75) ** 0.5, rel=5 / math.sqrt(2 * weight.numel()))


def test_a_seed_determines_a_network_and_the_global_generator_is_restored() -> None:
    own = config(batch_norm=True).network
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (build(own, (1, 8, 8), 10, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["layers.1.weight"], other["layers.1.weight"])


def test_initial_weights_do_not_depend_on_the_dropout_rate() -> None:
    one, other = (build(config(dropout=rate).network, (1, 8, 8), 10, 5).state_dict() for rate in (0.0, 0.5))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("more", [{"kernel": 9}, {"kernel": 5, "conv": [2, 2, 2]}, {"kernel": 1, "pool": 9}])
def test_no_pixel_left_of_an_image(more: dict[str, object]) -> None:
    with pytest.raises(
        HpoError, match=r"^network\.conv: no pixel is left of a 8x8 image after convolution \d"
    ) as caught:
        build(config("cnn", **{"conv": [2], **more}).network, (1, 8, 8), 10, 0)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
