"""Outputs of each activation layer of an untrained network on one batch, and their statistics.

The network has the initial weights of training. Batch norm uses the statistics of the batch, as in the first training
step. Dropout is off, because it would only add zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpo.studyfile import NetworkSettings
from hpo.training.device_data import Shape, example_shape
from hpo.training.networks.builtin import ACTIVATIONS, build

BOUNDS: dict[str, tuple[float, float]] = {
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "elu": (-1.0, math.inf),
}
"""Bounds of an activation's outputs near which its gradient vanishes; relu is left out, whose bound 0 is exact."""

SATURATION_MARGIN = 0.01
"""Distance from a bound within which an output counts as saturated: its gradient is almost 0."""

LayerOutputs = dict[str, NDArray[np.float32]]
"""Layer name -> outputs of the layer, [N, units] or [N, C, H, W]."""


@dataclass(frozen=True)
class OutputStatistics:
    """Mean, standard deviation and fractions of zeros and of saturated outputs of a layer.

    `saturated` is None for an activation without `BOUNDS`.
    """

    mean: float
    sd: float
    zeros: float
    saturated: float | None


@torch.no_grad()
def layer_outputs(
    settings: NetworkSettings, inputs: NDArray[Any], classes: int, seed: int, shape: Shape | None = None
) -> LayerOutputs:
    """Return the outputs of each activation layer of an untrained built-in network for examples [N, ...].

    The layers are in their order in the network, named `conv 1`, `conv 2`, `hidden 1`, and so on. `seed` is the seed of
    the initial weights, `shape` that of an example if its inputs do not tell it.
    """
    network = build(settings, shape or example_shape(inputs), classes, seed).train()
    found: LayerOutputs = {}
    counts = {"conv": 0, "hidden": 0}
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        elif isinstance(module, ACTIVATIONS[settings.activation]):
            module.register_forward_hook(_recording_hook(found, counts))
    network(torch.from_numpy(inputs).float())
    return found


def output_statistics(outputs: NDArray[np.float32], activation: str) -> OutputStatistics:
    """Return the statistics of a layer's outputs; `activation` is a key of `ACTIVATIONS`."""
    bounds = BOUNDS.get(activation)
    values = outputs.astype(np.float64)
    near = (
        None if bounds is None else (values < bounds[0] + SATURATION_MARGIN) | (values > bounds[1] - SATURATION_MARGIN)
    )
    return OutputStatistics(
        mean=float(values.mean()),
        sd=float(values.std()),
        zeros=float((values == 0).mean()),
        saturated=None if near is None else float(near.mean()),
    )


def _recording_hook(
    found: LayerOutputs, counts: dict[str, int]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        kind = "conv" if output.dim() == 4 else "hidden"  # [B, C, H, W] or [B, units]
        counts[kind] += 1
        found[f"{kind} {counts[kind]}"] = output.numpy().copy()

    return record
