"""Outputs of a trained network, as a whole and of random sub-networks, which are under random dropout masks.

A sub-network is the network under one dropout mask per dropout layer and call, the same for all examples: dropout
trains very many such networks, which share their weights (N. Srivastava et al., "Dropout: A Simple Way to Prevent
Neural Networks from Overfitting", JMLR 2014). Only layers have masks: calls of `F.dropout` drop nothing here.

Networks are plain torch modules in evaluation mode. Labels play no role.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hpo.training.device_data import input_type
from hpo.training.seeds import derive_seed
from hpo.training.stack import EVALUATION_BATCH

DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""Layers that have a mask: the first one drops single inputs, the others whole channels."""


@torch.no_grad()
def network_outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the network's outputs for examples [N, ...], [N, outputs] float64 on the CPU.

    Batch by batch, the examples are copied to the device and, unless they are integers, converted to the type of the
    network's weights. Switches the network to evaluation mode.
    """
    weight = next(network.parameters())
    dtype = input_type(inputs, weight.dtype)
    network.eval()
    batches = torch.split(inputs, EVALUATION_BATCH)
    # Copies, because a network's forward may work in place.
    return torch.cat([network(each.to(weight.device, dtype, copy=True)).cpu().double() for each in batches])


def log_probabilities(network: nn.Module, inputs: Tensor) -> Tensor:
    """Return the log-probability of each class, [N, classes], from the outputs of the network."""
    return torch.log_softmax(network_outputs(network, inputs), 1)


def subnetwork_outputs(network: nn.Module, inputs: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """Yield the outputs of `count` random sub-networks, as `network_outputs` does. The network is not changed."""
    masked = copy.deepcopy(network)
    dropouts = [_Masks(masked, layer) for layer in masked.modules() if isinstance(layer, DROPOUT_LAYERS)]
    for index in range(count):
        for layer, masks in enumerate(dropouts):
            masks.reset(derive_seed("subnetwork", seed, index, layer))
        yield network_outputs(masked, inputs)


def has_dropout(network: nn.Module) -> bool:
    """Return whether the network has a dropout layer with a rate above 0."""
    return any(isinstance(layer, DROPOUT_LAYERS) and layer.p > 0 for layer in network.modules())


class _Masks:
    """Dropout masks of one layer: one per call within a forward pass, the same for all examples until `reset`."""

    def __init__(self, network: nn.Module, layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) -> None:
        self._rate, self._channels = layer.p, not isinstance(layer, nn.Dropout)
        self._random, self._masks, self._calls = torch.Generator(), list[Tensor](), 0
        network.register_forward_pre_hook(self._begin_forward)
        layer.register_forward_hook(self._apply)

    def reset(self, seed: int) -> None:
        """Discard the masks; the layer's next calls draw new ones from `seed`."""
        self._random.manual_seed(seed)
        self._masks.clear()

    def _begin_forward(self, network: nn.Module, inputs: object) -> None:
        self._calls = 0

    def _apply(self, layer: nn.Module, inputs: object, x: Tensor) -> Tensor:
        if self._calls == len(self._masks):
            shape = (x.shape[1], *[1] * (x.dim() - 2)) if self._channels else x.shape[1:]
            keep = torch.rand(shape, generator=self._random, dtype=torch.float64) >= self._rate
            self._masks.append((keep / (1 - self._rate) if self._rate < 1 else keep).to(x.device, x.dtype))
        self._calls += 1
        return x * self._masks[self._calls - 1]
