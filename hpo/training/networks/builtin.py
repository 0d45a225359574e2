"""Built-in networks (mlp, cnn) as plain torch modules, and the construction of any trial's network (`build`).

The networks contain no code for populations: hpo/training/stacking/ stacks them like any other module.
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
from hpo.training.device_data import IndexedShape, IntegerShape, Shape
from hpo.training.global_locks import seeded
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


MAX_LAYER_ELEMENTS = 2**40
"""Upper limit of a layer's weights and of its outputs: more than fit on any machine, within the range of torch."""


@dataclass(frozen=True)
class Layer:
    """A layer to construct: its number of parameters and, for one example, of outputs and multiplications."""

    make: Callable[[], nn.Module]
    parameters: int
    outputs: int
    products: int = 0


def embedding_layers(shape: Shape) -> list[Layer]:
    """Return the embedding of each column of indices of a table. Its width is fastai's rule, `embedding_width`."""
    counts = shape.indices if isinstance(shape, IndexedShape) else ()
    widths = map(embedding_width, counts)
    return [
        Layer(partial(nn.Embedding, count, width), _limited("data.categorical", "weights", count * width), width)
        for count, width in zip(counts, widths, strict=True)
    ]


def embedding_width(indices: int) -> int:
    """Return the width of an embedding of so many indices.

    It is `emb_sz_rule` of fastai, found by trial and error (https://docs.fast.ai/tabular.model.html#emb_sz_rule), where
    the index of missing categories counts, too.
    """
    return min(600, round(1.6 * math.pow(indices, 0.56)))


def mlp_layers(shape: Shape, classes: int, settings: NetworkSettings) -> list[Layer]:
    """Return the layers of an MLP for examples of `shape`, those after its embeddings.

    Raises SettingError for integers, and for a layer above `MAX_LAYER_ELEMENTS`.
    """
    _require_numbers(shape)
    embeddings = embedding_layers(shape)
    features = math.prod(shape) - len(embeddings) + sum(each.outputs for each in embeddings)
    layers = [Layer(nn.Flatten, 0, features)]
    for units, rate in zip(settings.hidden, dropout_rates(settings, len(settings.hidden)), strict=True):
        layers.append(_linear(features, units))
        if settings.batch_norm:
            layers.append(Layer(partial(nn.BatchNorm1d, units), 2 * units, units))
        layers += [Layer(ACTIVATIONS[settings.activation], 0, units), Layer(partial(nn.Dropout, rate), 0, units)]
        features = units
    return [*layers, _linear(features, classes)]


def cnn_layers(shape: Shape, classes: int, settings: NetworkSettings) -> tuple[list[Layer], list[Layer]]:
    """Return the layers of a CNN: those before flattening, which work on images, and those after it.

    Raises SettingError for examples that are not images, where convolutions and pooling leave no pixel, and for a layer
    above `MAX_LAYER_ELEMENTS`.
    """
    _require_numbers(shape)
    if len(shape) != 3:
        problem = f"cnn takes images, but the examples are rows of {math.prod(shape)} features; use mlp"
        raise SettingError("network.kind", problem)
    channels, *sides = shape
    images: list[Layer] = []
    for number, filters in enumerate(settings.conv):
        sides = [side + 2 * settings.padding - settings.kernel + 1 for side in sides]
        if min(sides) < settings.pool:
            raise SettingError(
                "network.conv",
                f"no pixel is left of a {shape[1]}x{shape[2]} image after convolution {number + 1} "
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
    """Return all layers of a built-in network. Raises SettingError as `mlp_layers` and `cnn_layers` do."""
    if settings.kind == "mlp":
        return embedding_layers(shape) + mlp_layers(shape, classes, settings)
    images, features = cnn_layers(shape, classes, settings)
    return images + features


def _require_numbers(shape: Shape) -> None:
    if isinstance(shape, IntegerShape):
        problem = (
            "mlp and cnn take bytes or floats, but the examples are integers; save x as uint8 or floats, or use ids"
        )
        raise SettingError("network.kind", f"{problem} in a user-defined network with nn.Embedding")


def _linear(features: int, units: int) -> Layer:
    weights = _limited("network.hidden", "weights", features * units)
    return Layer(partial(nn.Linear, features, units), weights + units, units, weights)


def _convolution(channels: int, filters: int, settings: NetworkSettings, outputs: int) -> Layer:
    key, field = "network.conv", channels * settings.kernel**2
    weights, outputs = _limited(key, "weights", filters * field), _limited(key, "outputs", outputs)
    make = partial(nn.Conv2d, channels, filters, settings.kernel, padding=settings.padding)
    return Layer(make, weights + filters, outputs, outputs * field)


def _limited(key: str, what: str, count: int) -> int:
    """Return the count; raise SettingError for one above `MAX_LAYER_ELEMENTS`."""
    if count > MAX_LAYER_ELEMENTS:
        size = f"2^{count.bit_length() - 1}"
        raise SettingError(key, f"makes a layer of at least {size} {what}, too many for any machine")
    return count


def _sequential(layers: Iterable[Layer]) -> nn.Sequential:
    return nn.Sequential(*(layer.make() for layer in layers))


class MLP(nn.Module):
    """Fully connected layers, each followed by batch norm (optional), the activation and dropout; then the logits.

    Columns of indices of a table, the last ones, go through an embedding each, whose outputs follow the other columns.
    """

    def __init__(self, shape: Shape, classes: int, settings: NetworkSettings) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(layer.make() for layer in embedding_layers(shape))
        self.numbers = shape[-1] - len(self.embeddings)
        self.layers = _sequential(mlp_layers(shape, classes, settings))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of examples [B, ...]."""
        if self.embeddings:
            embedded = [embedding(x[:, self.numbers + i].long()) for i, embedding in enumerate(self.embeddings)]
            x = torch.cat([x[:, : self.numbers].type_as(embedded[0]), *embedded], 1)
        return self.layers(x)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class CNN(nn.Module):
    """Convolutions, each with batch norm (optional), activation and max pooling; then dropout and linear layers.

    With the defaults, dropout 0.5 and hidden = [120, 84], it is the classic small CIFAR-10 network.
    """

    def __init__(self, shape: Shape, classes: int, settings: NetworkSettings) -> None:
        super().__init__()
        images, features = cnn_layers(shape, classes, settings)
        self.images, self.layers = _sequential(images), _sequential(features)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, classes] of images [B, C, H, W]."""
        return self.layers(self.images(x))  # type: ignore[no-any-return]  # nn.Module's call is untyped


def dropout_rates(settings: NetworkSettings, layers: int) -> list[float]:
    """Return the rate of each dropout layer; a single rate in the settings applies to all of them."""
    if isinstance(settings.dropout, Sequence):
        return list(settings.dropout)
    return [settings.dropout] * layers


def build(settings: NetworkSettings, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Return a network with its initial weights, exactly as torch builds it under the global seed `seed`.

    `shape` is that of an example. Restores the global random generators. Raises SettingError where the settings do not
    fit, and what a user-defined network raises.
    """
    with seeded(seed):
        if settings.kind == "module":
            return construct(settings, shape, classes)
        network = _build_builtin(settings, shape, classes)
        initialize(network, settings.init)
    return network


def _build_builtin(settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    return (MLP if settings.kind == "mlp" else CNN)(shape, classes, settings)


def build_uninitialized(settings: NetworkSettings, shape: Shape, classes: int) -> nn.Module:
    """Return a network to load weights into: a built-in one has parameters without memory (device "meta").

    A user-defined network is built as usual: it may have tensors besides its weights, or depend on their values.
    """
    if settings.kind == "module":
        return build(settings, shape, classes, seed=0)
    with torch.device("meta"):
        return _build_builtin(settings, shape, classes)


@torch.no_grad()
def initialize(network: nn.Module, init: str | float) -> None:
    """Initialize every linear and convolutional layer with Gaussian weights and zero biases.

    An embedding keeps torch's weights, Gaussian of standard deviation 1 as standardized numbers, but zeros at index 0:
    without training on it, an unknown category is the mean of all.

    The standard deviation is `init` if that is a number. "he" means sqrt(2 / fan_in) (K. He et al., "Delving deep into
    rectifiers", ICCV 2015), "xavier" means sqrt(2 / (fan_in + fan_out)) (X. Glorot, Y. Bengio, "Understanding the
    difficulty of training deep feedforward neural networks", AISTATS 2010).
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
        elif isinstance(layer, nn.Embedding):
            layer.weight[0] = 0
