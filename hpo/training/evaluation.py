"""What a trained network says of images: log-probabilities by plain torch in evaluation mode, image by image.

A sub-network is the network with a random set of its dropout layers' inputs left out, the same for all images and the
others scaled as in training; a layer that is called several times leaves out others each time. So dropout
trains very many of them that share their weights (N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural
Networks from Overfitting", JMLR 2014). Calls of `F.dropout` are no layers, and leave nothing out.

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

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
"""The layers that make sub-networks: the first leaves out single inputs, the others whole channels."""


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
def subnetwork_log_probabilities(
    network: nn.Module, images: Tensor, count: int, seed: int, each: Callable[[Tensor], None]
) -> Tensor:
    """Return the logarithm of the mean of `count` random sub-networks' probabilities, [N, classes].

    `each` is told every sub-network's log-probabilities.
    """
    thinned = copy.deepcopy(network)
    dropouts = [_Masks(thinned, layer) for layer in thinned.modules() if isinstance(layer, DROPOUT)]
    mean: Tensor | None = None
    for index in range(count):
        for place, masks in enumerate(dropouts):
            masks.draw(derive_seed("subnetwork", seed, index, place))
        scores = log_probabilities(thinned, images)
        each(scores)
        mean = scores if mean is None else torch.logaddexp(mean, scores)
    assert mean is not None, "there is a sub-network"
    return mean - math.log(count)


def has_dropout(network: nn.Module) -> bool:
    """Return whether the network has sub-networks: a dropout layer that leaves anything out."""
    return any(isinstance(layer, DROPOUT) and layer.p > 0 for layer in network.modules())


class _Masks:
    """What a dropout layer leaves out until the next draw: the same of every image, and others at each of its calls."""

    def __init__(self, network: nn.Module, layer: nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d) -> None:
        self._rate, self._channels = layer.p, not isinstance(layer, nn.Dropout)
        self._random, self._drawn, self._calls = torch.Generator(), list[Tensor](), 0
        network.register_forward_pre_hook(self._begin)
        layer.register_forward_hook(self._leave_out)

    def draw(self, seed: int) -> None:
        """Forget the masks: others are drawn when the layer is called."""
        self._random.manual_seed(seed)
        self._drawn.clear()

    def _begin(self, network: nn.Module, given: object) -> None:
        self._calls = 0

    def _leave_out(self, layer: nn.Module, given: object, x: Tensor) -> Tensor:
        if self._calls == len(self._drawn):
            shape = (x.shape[1], *[1] * (x.dim() - 2)) if self._channels else x.shape[1:]
            stays = torch.rand(shape, generator=self._random, dtype=torch.float64) >= self._rate
            self._drawn.append((stays / (1 - self._rate) if self._rate < 1 else stays).to(x.device, x.dtype))
        self._calls += 1
        return x * self._drawn[self._calls - 1]
