"""How large a population is: parameters of a network, memory of a member, members that fit.

Estimates, for `hpo check` and for `population = "auto"`; the trainer halves a population that proves too large.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from torch import nn

from hpo.studyfile import Config
from hpo.training.images import Shape
from hpo.training.networks import build
from hpo.training.optimizers import RULES
from hpo.training.population import DTYPES

MOST = {"cpu": 32, "cuda": 256, "mps": 64}
"""Members beyond which a larger population is no faster: caches on a CPU, and a GPU that is full."""

MEMORY_SHARE = 0.25
"""How much of the device's memory "auto" plans with."""


@dataclass(frozen=True)
class Size:
    """Parameters of one network, and bytes that one member needs while it trains."""

    parameters: int
    member_bytes: int


def size_of(config: Config, shape: Shape, classes: int, precision: str) -> Size:
    """Return the size of one member of `config` on images of `shape`."""
    network = build(config.network, shape, classes, seed=0)
    outputs: list[int] = []
    hooks = [
        module.register_forward_hook(lambda module, args, out: outputs.append(out.numel()))
        for module in network.modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    parameters = _count(network)
    compute = DTYPES[precision].itemsize
    master = max(compute, 4)
    copies = 0 if compute == master else compute
    per_parameter = master * (1 + RULES[config.optimizer.kind][1]) + copies + compute
    # Each activation once for the backward pass, and about as much again for its gradient and temporaries.
    activations = 2 * sum(outputs) * config.training.batch_size * compute
    return Size(parameters, parameters * per_parameter + activations)


def population_size(wanted: int | str, trials: int, member_bytes: int, device: torch.device) -> int:
    """Return how many members a population has at most.

    "auto" leaves the sampler at least four populations to learn between, up to what pays and fits on the device.
    """
    if not isinstance(wanted, str):
        return wanted
    fits = int(memory(device) * MEMORY_SHARE) // member_bytes
    return max(1, min(-(-trials // 4), MOST[device.type], fits))


def memory(device: torch.device) -> int:
    """Return the device's memory in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
