"""How large a population is: parameters of a network, memory of a member, members that fit.

Estimates, for `hpo check` and for `population = "auto"`; the trainer halves a population that proves too large. hpo's
own networks are measured without being built, so that one of any size can be asked about.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from hpo.studyfile import Config, NetworkSettings
from hpo.training.device_split import Shape
from hpo.training.global_state import GLOBAL_STATE_LOCK
from hpo.training.networks.builtin import build, built_in_layers
from hpo.training.optimizers import RULES
from hpo.training.stack import DTYPES

MAX_AUTO_POPULATION = {"cpu": 32, "cuda": 256, "mps": 64}
"""Members beyond which a larger population is no faster: caches on a CPU, and a GPU that is full."""

MEMORY_SHARE = 0.25
"""How much of the device's memory "auto" plans with."""


@dataclass(frozen=True)
class MemberSize:
    """Parameters of one network, and bytes that one member needs while it trains: about, and in batches of one image.

    Where there is not even memory for these least bytes, there is no use in trying.
    """

    parameters: int
    member_bytes: int
    least_bytes: int


def member_size(config: Config, shape: Shape, classes: int, precision: str) -> MemberSize:
    """Return the size of one member of `config` on images of `shape`."""
    extent = network_size(config.network, shape, classes)
    compute = DTYPES[precision].itemsize
    master = max(compute, 4)
    copies = 0 if compute == master else compute
    per_parameter = master * (1 + RULES[config.optimizer.kind][1]) + copies + compute
    parameters = extent.parameters * per_parameter
    # Each activation once for the backward pass, and about as much again for its gradient and temporaries.
    activations = 2 * extent.activations * config.training.batch_size * compute
    return MemberSize(extent.parameters, parameters + activations, parameters + extent.activations * compute)


@dataclass(frozen=True)
class NetworkSize:
    """One network's parameters, and for one image its activations and the products of its forward pass."""

    parameters: int
    activations: int
    products: int


def network_size(settings: NetworkSettings, shape: Shape, classes: int) -> NetworkSize:
    """Return the extent of the network of these settings; one of hpo's own is not built for that."""
    if settings.kind == "module":
        return measure_network(build(settings, shape, classes, seed=0), shape)
    layers = built_in_layers(settings, shape, classes)
    parameters, activations, products = (
        sum(getattr(layer, what) for layer in layers) for what in ("parameters", "outputs", "products")
    )
    return NetworkSize(parameters, activations, products)


def count_parameters(settings: NetworkSettings, shape: Shape, classes: int) -> int:
    """Return how many parameters the network of these settings has; one of the user's own need not run for that."""
    if settings.kind == "module":
        return sum(parameter.numel() for parameter in build(settings, shape, classes, seed=0).parameters())
    return network_size(settings, shape, classes).parameters


def measure_network(network: nn.Module, shape: Shape) -> NetworkSize:
    """Return the extent of a network, from one black image sent through it on its device."""
    activations: list[int] = []
    products: list[int] = []

    def count(module: nn.Module, args: object, out: object) -> None:
        if not isinstance(out, Tensor):
            return
        activations.append(out.numel())
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1:  # each unit or channel is made from all of its weights
            products.append(weight[0].numel() * out.numel())

    hooks = [module.register_forward_hook(count) for module in network.modules() if not list(module.children())]
    parameters = list(network.parameters())
    was_training = network.training
    with GLOBAL_STATE_LOCK, torch.no_grad():
        network.eval()(torch.zeros(1, *shape, device=parameters[0].device))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return NetworkSize(sum(parameter.numel() for parameter in parameters), sum(activations), sum(products))


def population_size(wanted: int | str, trials: int, member_bytes: int, device: torch.device) -> int:
    """Return how many members a population has at most.

    "auto" leaves the sampler at least four populations to learn between, up to what pays and fits on the device.
    """
    if not isinstance(wanted, str):
        return wanted
    fits = int(device_memory(device) * MEMORY_SHARE) // member_bytes
    return max(1, min(-(-trials // 4), MAX_AUTO_POPULATION[device.type], fits))


def device_memory(device: torch.device) -> int:
    """Return the device's memory in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
