"""What a trained network says of images: log-probabilities by plain torch in evaluation mode, image by image.

A sub-network is the network with a random set of its dropout layers' inputs left out, the same for all images and the
others scaled as in training: dropout trains very many of them that share their weights (N. Srivastava et al., "Dropout:
A Simple Way to Prevent Neural Networks from Overfitting", JMLR 2014).

Knows nothing of labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hpo.training.seeds import derive_seed
from hpo.training.stack import EVALUATION_BATCH


@torch.no_grad()
def log_probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logarithm of each class's probability, [N, classes] float64 on the CPU, of images [N, C, H, W].

    The images are brought to the device and into the type of the network's weights, a batch at a time.
    """
    weight = next(network.parameters())
    wide = torch.float32 if weight.device.type == "mps" else torch.float64  # mps has no wider type
    network.eval()
    parts = []
    for some in torch.split(images, EVALUATION_BATCH):
        logits = network(some.to(weight.device, weight.dtype, copy=True))  # its forward may change its own
        parts.append(torch.log_softmax(logits.to(wide), 1).cpu().double())
    return torch.cat(parts)


@torch.no_grad()
def of_subnetworks(network: nn.Module, images: Tensor, count: int, seed: int, each: Callable[[Tensor], None]) -> Tensor:
    """Return the logarithm of the mean of `count` random sub-networks' probabilities, [N, classes].

    `each` is told every sub-network's log-probabilities.
    """
    thinned, masks = _thinned(network)
    mean: Tensor | None = None
    for index in range(count):
        for place, mask in enumerate(masks):
            mask.draw(derive_seed("subnetwork", seed, index, place))
        scores = log_probabilities(thinned, images)
        each(scores)
        mean = scores if mean is None else torch.logaddexp(mean, scores)
    assert mean is not None, "there is a sub-network"
    return mean - math.log(count)


def drops_out(network: nn.Module) -> bool:
    """Return whether the network has sub-networks: a dropout layer that leaves anything out."""
    return any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in network.modules())


class _Mask(nn.Module):
    """A dropout layer that leaves out the same inputs for every image until the next draw."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self._rate, self._seed = rate, 0
        self._mask: Tensor | None = None

    def draw(self, seed: int) -> None:
        self._seed, self._mask = seed, None

    def forward(self, x: Tensor) -> Tensor:
        if self._mask is None:
            generator = torch.Generator().manual_seed(self._seed)
            stays = torch.rand(x.shape[1:], generator=generator, dtype=torch.float64) >= self._rate
            self._mask = (stays / (1 - self._rate)).to(x.device, x.dtype)
        return x * self._mask


def _thinned(network: nn.Module) -> tuple[nn.Module, list[_Mask]]:
    """Return a copy of the network with masks in the place of its dropout layers."""
    copied, masks = copy.deepcopy(network), []
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                masks.append(_Mask(child.p))
                setattr(parent, name, masks[-1])
    return copied, masks
