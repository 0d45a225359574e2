"""Plain torch for benchmarks: the network of "Deep Learning from Scratch", chapter 6, and one epoch of a training loop.

Imports torch alone, so that a plain process starts up as fast as one without hpo.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, HIDDEN = 100, [100] * 6


def plain_network(features: int, batch_norm: bool) -> nn.Module:
    """Return the MLP with He's initial weights, for 10 classes."""
    layers: list[nn.Module] = [nn.Flatten()]
    for units in HIDDEN:
        layers.append(nn.Linear(features, units))
        if batch_norm:
            layers.append(nn.BatchNorm1d(units))
        layers.append(nn.ReLU())
        features = units
    network = nn.Sequential(*layers, nn.Linear(features, 10))
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


def plain_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, train: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor]
) -> float:
    """Train for one epoch on examples and labels in a random order; return the accuracy on those of the validation."""
    examples, labels = train
    model.train()
    for batch in torch.split(torch.randperm(len(examples)), BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(examples[batch]), labels[batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(validation[0]).argmax(1) == validation[1]
        return float(right.float().mean())
