"""What goes through a network before it has learnt anything: each layer's outputs on a batch, and how they spread.

The network is the one that training would begin with, initial weights and all. Batch norm takes the statistics of the
batch, as in training's first step; dropout is off, which would only add zeros. Knows nothing of studies or figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpo.studyfile import NetworkSettings
from hpo.training.device_split import example_shape
from hpo.training.networks.builtin import ACTIVATIONS, build

BOUNDS: dict[str, tuple[float, float]] = {
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "elu": (-1.0, math.inf),
}
"""What an activation's outputs stay between, for those that have a bound with no gradient next to it but zero's."""

NEAR = 0.01
"""An output so close to a bound is saturated: next to no gradient goes through it."""

LayerOutputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class OutputStatistics:
    """How a layer's outputs spread. `saturated` is None for an activation without bounds."""

    mean: float
    sd: float
    zeros: float
    saturated: float | None


@torch.no_grad()
def layer_outputs(settings: NetworkSettings, images: NDArray[np.float32], classes: int, seed: int) -> LayerOutputs:
    """Return what each activation of a fresh network gives for images [N, C, H, W], in the order of the layers.

    The layers are called `conv 1`, `conv 2`, `hidden 1`, and so on.
    """
    network = build(settings, example_shape(images.shape), classes, seed).train()
    found: LayerOutputs = {}
    counts = {"conv": 0, "hidden": 0}
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        elif isinstance(module, ACTIVATIONS[settings.activation]):
            module.register_forward_hook(_noting(found, counts))
    network(torch.from_numpy(images).float())
    return found


def output_statistics(outputs: NDArray[np.float32], activation: str) -> OutputStatistics:
    """Return how a layer's outputs spread."""
    bounds = BOUNDS.get(activation)
    values = outputs.astype(np.float64)
    near = None if bounds is None else (values < bounds[0] + NEAR) | (values > bounds[1] - NEAR)
    return OutputStatistics(
        mean=float(values.mean()),
        sd=float(values.std()),
        zeros=float((values == 0).mean()),
        saturated=None if near is None else float(near.mean()),
    )


def _noting(found: LayerOutputs, counts: dict[str, int]) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        kind = "conv" if output.dim() == 4 else "hidden"  # [B, C, H, W] or [B, units]
        counts[kind] += 1
        found[f"{kind} {counts[kind]}"] = output.numpy().copy()

    return note
