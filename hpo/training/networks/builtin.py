"""hpo's own networks, mlp and cnn, as ordinary torch modules, and the initial weights that studies compare.

They are written without a thought for populations: stacking.py treats them like anybody's module. `build` makes the
network of any trial, of the user's own modules too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hpo.errors import SettingError
from hpo.studyfile import NetworkSettings
from hpo.training.device_split import Shape
from hpo.training.global_state import seeded
from hpo.training.networks.user_defined import construct

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


@dataclass(frozen=True)
class Layer:
    """A layer before it is made: its parameters, and for one image its outputs and the products that make them."""

    make: Callable[[], nn.Module]
    parameters: int
    outputs: int
    products: int = 0


def mlp_layers(shape: Shape, classes: int, settings: NetworkSettings) -> list[Layer]:
    """Return the layers of an MLP. Raises SettingError for one that no machine holds."""
    features = math.prod(shape)
    layers = [Layer(nn.Flatten, 0, features)]
    for units, rate in zip(settings.hidden, dropout_rates(settings, len(settings.hidden)), strict=True):
        layers.append(_linear(features, units))
        if settings.batch_norm:
            layers.append(Layer(partial(nn.BatchNorm1d, units), 2 * units, units))
        layers += [Layer(ACTIVATIONS[settings.activation], 0, units), Layer(partial(nn.Dropout, rate), 0, units)]
        features = units
    return [*layers, _linear(features, classes)]


def cnn_layers(shape: Shape, classes: int, settings: NetworkSettings) -> tuple[list[Layer], list[Layer]]:
    """Return the layers of a CNN, those of images and those of features.

    Raises SettingError where nothing is left of an image, and for a layer that no machine holds.
    """
    channels, *sides = shape
    images: list[Layer] = []
    for number, filters in enumerate(settings.conv):
        sides = [side + 2 * settings.padding - settings.kernel + 1 for side in sides]
        if min(sides) < settings.pool:
            raise SettingError(
                "network.conv",
                f"nothing is left of a {shape[1]}x{shape[2]} image after convolution {number + 1} "
                f"(kernel {settings.kernel}, padding {settings.padding}, pool {settings.pool}); "
                "use fewer convolutions, a smaller kernel or more padding",
            )
        images.append(_convolution(channels, filters, settings, filters * math.prod(sides)))
        outputs = images[-1].outputs
        if settings.batch_norm:
            images.append(Layer(partial(nn.BatchNorm2d, filters), 2 * filters, outputs))
        images.append(Layer(ACTIVATIONS[settings.activation], 0, outputs))
        if settings.pool > 1:
            sides = [side // settings.pool for side in sides]
            images.append(Layer(partial(nn.MaxPool2d, settings.pool), 0, filters * math.prod(sides)))
        channels = filters
    features = channels * math.prod(sides)
    layers = [Layer(nn.Flatten, 0, features)]
    *rates, last_rate = dropout_rates(settings, len(settings.hidden) + 1)
    for units, rate in zip(settings.hidden, rates, strict=True):
        layers += [Layer(partial(nn.Dropout, rate), 0, features), _linear(features, units)]
        if settings.batch_norm:
            layers.append(Layer(partial(nn.BatchNorm1d, units), 2 * units, units))
        layers.append(Layer(ACTIVATIONS[settings.activation], 0, units))
        features = units
    return images, [*layers, Layer(partial(nn.Dropout, last_rate), 0, features), _linear(features, classes)]


def built_in_layers(settings: NetworkSettings, shape: Shape, classes: int) -> list[Layer]:
    """Return all layers of a network of hpo's own."""
    if settings.kind == "mlp":
        return mlp_layers(shape, classes, settings)
    images, features = cnn_layers(shape, classes, settings)
    return images + features


def _linear(features: int, units: int) -> Layer:
    weights = _bearable("network.hidden", "weights", features * units)
    return Layer(partial(nn.Linear, features, units), weights + units, units, weights)


def _convolution(channels: int, filters: int, settings: NetworkSettings, outputs: int) -> Layer:
    key, field = "network.conv", channels * settings.kernel**2
    weights, outputs = _bearable(key, "weights", filters * field), _bearable(key, "outputs", outputs)
    make = partial(nn.Conv2d, channels, filters, settings.kernel, padding=settings.padding)
    return Layer(make, weights + filters, outputs, outputs * field)


def _bearable(key: str, what: str, count: int) -> int:
    if count > MOST_NUMBERS:
        raise SettingError(key, f"makes a layer of 2^{count.bit_length() - 1} {what} or more, too many for any machine")
    return count


def _made(layers: Iterable[Layer]) -> nn.Sequential:
    return nn.Sequential(*(layer.make() for layer in layers))


class MLP(nn.Module):
    """Fully connected layers, each followed by batch norm (optional), the activation and dropout; then the logits."""

    def __init__(self, shape: Shape, classes: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.layers = _made(mlp_layers(shape, classes, settings))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        return self.layers(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class CNN(nn.Module):
    """Convolutions, each with batch norm (optional), activation and max pooling; then dropout and a fully connected
    layer in turn: with its defaults, dropout 0.5 and hidden = [120, 84], the classic small CIFAR-10 network."""

    def __init__(self, shape: Shape, classes: int, settings: NetworkSettings) -> None:
        super().__init__()
        images, features = cnn_layers(shape, classes, settings)
        self.images, self.layers = _made(images), _made(features)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> logits [B, classes]."""
        return self.layers(self.images(x))  # type: ignore[no-any-return]  # nn.Module's call is untyped


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
            return construct(settings, shape, classes)
        network = _own(settings, shape, classes)
        initialize(network, settings.init)
    return network


def _own(settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    return (MLP if settings.kind == "mlp" else CNN)(shape, classes, settings)


def build_uninitialized(settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return the network to be given weights: its own have no values and no memory.

    A module of the user's own is built whole: it may keep tensors that are not among its weights, or look at values.
    """
    if settings.kind == "module":
        return build(settings, shape, classes, seed=0)
    with torch.device("meta"):
        return _own(settings, shape, classes)


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
