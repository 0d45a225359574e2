"""hpo's own networks, mlp and cnn, as ordinary torch modules, and the initial weights that studies compare.

They are written without a thought for populations: stacking.py treats them like anybody's module. `build` makes the
network of any trial, of the user's own modules too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from hpo.errors import SettingError
from hpo.studyfile import NetworkSettings
from hpo.training.images import Shape
from hpo.training.own_networks import make
from hpo.training.process_wide import seeded

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
}


MOST_NUMBERS = 2**40
"""Weights or outputs that a layer has at most: more than any machine holds, and few enough for torch to count them."""


class MLP(nn.Module):
    """Fully connected layers, each followed by batch norm (optional), the activation and dropout; then the logits."""

    def __init__(self, shape: Shape, classes: int, settings: NetworkSettings) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(shape)
        rates = dropout_rates(settings, len(settings.hidden))
        for units, rate in zip(settings.hidden, rates, strict=True):
            layers.append(linear(features, units))
            if settings.batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers += [ACTIVATIONS[settings.activation](), nn.Dropout(rate)]
            features = units
        self.layers = nn.Sequential(*layers, linear(features, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        return self.layers(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class CNN(nn.Module):
    """Convolutions, each with batch norm (optional), activation and max pooling; then dropout and a fully connected
    layer in turn: with its defaults, dropout 0.5 and hidden = [120, 84], the classic small CIFAR-10 network."""

    def __init__(self, shape: Shape, classes: int, settings: NetworkSettings) -> None:
        super().__init__()
        channels, height, width = shape
        images: list[nn.Module] = []
        for number, filters in enumerate(settings.conv):
            sides = [side + 2 * settings.padding - settings.kernel + 1 for side in (height, width)]
            height, width = (side // settings.pool for side in sides)
            if min(height, width) < 1:
                raise SettingError(
                    "network.conv",
                    f"nothing is left of a {shape[1]}x{shape[2]} image after convolution {number + 1} "
                    f"(kernel {settings.kernel}, padding {settings.padding}, pool {settings.pool}); "
                    "use fewer convolutions, a smaller kernel or more padding",
                )
            _check_numbers("network.conv", "weights", channels * filters * settings.kernel**2)
            _check_numbers("network.conv", "outputs", filters * math.prod(sides))
            images.append(nn.Conv2d(channels, filters, settings.kernel, padding=settings.padding))
            if settings.batch_norm:
                images.append(nn.BatchNorm2d(filters))
            images.append(ACTIVATIONS[settings.activation]())
            if settings.pool > 1:
                images.append(nn.MaxPool2d(settings.pool))
            channels = filters
        self.images = nn.Sequential(*images)
        layers: list[nn.Module] = [nn.Flatten()]
        features = channels * height * width
        *rates, last_rate = dropout_rates(settings, len(settings.hidden) + 1)
        for units, rate in zip(settings.hidden, rates, strict=True):
            layers += [nn.Dropout(rate), linear(features, units)]
            if settings.batch_norm:
                layers.append(nn.BatchNorm1d(units))
            layers.append(ACTIVATIONS[settings.activation]())
            features = units
        self.layers = nn.Sequential(*layers, nn.Dropout(last_rate), linear(features, classes))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        return self.layers(self.images(x))  # type: ignore[no-any-return]  # nn.Module's call is untyped


def linear(features: int, units: int) -> nn.Linear:
    """Return a fully connected layer. Raises SettingError for one that no machine holds."""
    _check_numbers("network.hidden", "weights", features * units)
    return nn.Linear(features, units)


def _check_numbers(key: str, what: str, count: int) -> None:
    if count > MOST_NUMBERS:
        raise SettingError(key, f"makes a layer of 2^{count.bit_length() - 1} {what} or more, too many for any machine")


def dropout_rates(settings: NetworkSettings, places: int) -> list[float]:
    """Return the dropout rate of each place: one rate stands for all of them."""
    if isinstance(settings.dropout, Sequence):
        return list(settings.dropout)
    return [settings.dropout] * places


def build(settings: NetworkSettings, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return one member's network, exactly as torch builds it alone under `seed`, with its initial weights.

    The global generators are left as they were.
    """
    with seeded(seed):
        if settings.kind == "module":
            return make(settings, shape, classes)
        network = (MLP if settings.kind == "mlp" else CNN)(shape, classes, settings)
        initialize(network, settings.init)
    return network


def outline(settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return the network to be asked for its size, or to be given weights: its own have no values and no memory.

    A module of the user's own is built whole: it may keep tensors that are not among its weights, or look at values.
    """
    with nullcontext() if settings.kind == "module" else torch.device("meta"):
        return build(settings, shape, classes, seed=0)


@torch.no_grad()
def initialize(network: nn.Module, init: str | float) -> None:
    """Give every linear and convolutional layer Gaussian weights and zero biases.

    The standard deviation is `init` if that is a number; "he" is sqrt(2 / fan_in) (K. He et al., "Delving deep into
    rectifiers", ICCV 2015), "xavier" sqrt(2 / (fan_in + fan_out)) (X. Glorot, Y. Bengio, AISTATS 2010).
    """
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if init == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            elif init == "xavier":
                nn.init.xavier_normal_(layer.weight)
            else:
                nn.init.normal_(layer.weight, std=float(init))
            if layer.bias is not None:
                layer.bias.zero_()
