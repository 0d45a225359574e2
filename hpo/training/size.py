"""Estimate sizes: parameters of a network, memory of a member, members of a population.

The estimates serve `hpo check` and `population = "auto"`; the trainer halves a population that is still too large. The
size of a built-in network is computed without building the network, whatever its size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from hpo.studyfile import Config, NetworkSettings
from hpo.training.device_data import Shape, zero_example
from hpo.training.global_locks import GLOBAL_STATE_LOCK
from hpo.training.member_examples import has_own_examples
from hpo.training.networks.builtin import build, built_in_layers
from hpo.training.optimizers.rules import RULES
from hpo.training.stack import DTYPES
from hpo.training.stacking.tracing.supported import SEQUENCE_LAYERS

MAX_AUTO_POPULATION = {"cpu": 32, "cuda": 256, "mps": 64}
"""Device type -> number of members from which a larger population is no faster (CPU caches; a fully occupied GPU)."""

MEMBERS_PER_CORE = 16
"""Number of members a core from which a larger population of independent trials is no faster."""

MEMORY_FRACTION = 0.25
"""Fraction of the device's memory that `population = "auto"` uses."""

FROZEN_MEMORY_FRACTION = 0.25
"""Fraction of the host memory for the states of frozen members; further states are in files."""


@dataclass(frozen=True)
class MemberSize:
    """Parameters of one network, and the memory in bytes that one member needs in training.

    `member_bytes` is an estimate for the member's batch size. `least_bytes` is a lower bound, for batches of one
    example: with less memory, training is impossible. `frozen_bytes` is an estimate for the state of a frozen member.
    """

    parameters: int
    member_bytes: int
    least_bytes: int
    frozen_bytes: int


def member_size(config: Config, shape: Shape, classes: int, precision: str, folds: int = 1) -> MemberSize:
    """Return the size of one member of `config` on examples of `shape`, trained in `precision`, a key of `DTYPES`.

    A member has a network and an optimizer for each of the `folds`; the activations are those of one fold at a time.
    """
    network = network_size(config.network, shape, classes)
    compute = DTYPES[precision].itemsize
    master = max(compute, 4)
    copies = 0 if compute == master else compute
    stored = master * (1 + RULES[config.optimizer.kind][1] + (config.training.ema > 0))
    parameters = folds * network.parameters * (stored + copies + compute)
    best = master if config.training.keep == "best" else 0
    # Each activation once for the backward pass, and about as much again for its gradient and temporaries.
    activations = 2 * network.activations * config.training.batch_size * compute
    if has_own_examples(config.training):
        activations += 2 * math.prod(shape) * config.training.batch_size * compute
    return MemberSize(
        parameters=network.parameters,
        member_bytes=parameters + activations,
        least_bytes=parameters + network.activations * compute,
        frozen_bytes=folds * network.parameters * (stored + best),
    )


@dataclass(frozen=True)
class NetworkSize:
    """Parameters of a network; for one example, its activations and the multiplications of its forward pass."""

    parameters: int
    activations: int
    products: int


def network_size(settings: NetworkSettings, shape: Shape, classes: int) -> NetworkSize:
    """Return the size of the network of these settings. Only a user-defined network is built for this.

    Raises SettingError for a built-in network that does not fit `shape`, and what a user-defined one raises.
    """
    if settings.kind == "module":
        return measure_network(build(settings, shape, classes, seed=0), shape)
    layers = built_in_layers(settings, shape, classes)
    parameters, activations, products = (
        sum(getattr(layer, name) for layer in layers) for name in ("parameters", "outputs", "products")
    )
    return NetworkSize(parameters, activations, products)


def shape_key(settings: NetworkSettings) -> str:
    """Return a text that is equal for networks with the same shapes of parameters, and mostly different for others."""
    return settings.model_dump_json(exclude={"activation", "init", "dropout"})


def count_parameters(settings: NetworkSettings, shape: Shape, classes: int) -> int:
    """Return the number of parameters of the network of these settings. User-defined ones are built, but not run."""
    if settings.kind == "module":
        return sum(parameter.numel() for parameter in build(settings, shape, classes, seed=0).parameters())
    return network_size(settings, shape, classes).parameters


def measure_network(network: nn.Module, shape: Shape) -> NetworkSize:
    """Return the size of a network, measured by running it on one example of zeros on the network's device."""
    activations: list[int] = []
    products: list[int] = []

    def count(module: nn.Module, args: object, out: object) -> None:
        if isinstance(module, SEQUENCE_LAYERS):
            assert isinstance(out, tuple)
            weights = [parameter for parameter in module.parameters() if parameter.dim() > 1]
            positions = out[0].numel() // out[0].shape[-1]
            activations.append(positions * sum(len(weight) for weight in weights))
            products.append(positions * sum(weight.numel() for weight in weights))
        if not isinstance(out, Tensor):
            return
        activations.append(out.numel())
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 1:  # each output needs all weights of its unit or channel
            products.append(weight[0].numel() * out.numel())

    counted = [each for each in network.modules() if isinstance(each, SEQUENCE_LAYERS) or not list(each.children())]
    hooks = [module.register_forward_hook(count) for module in counted]
    parameters = list(network.parameters())
    was_training = network.training
    with GLOBAL_STATE_LOCK, torch.no_grad():
        network.eval()(zero_example(shape, parameters[0].device))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    return NetworkSize(sum(parameter.numel() for parameter in parameters), sum(activations), sum(products))


def population_size(
    setting: int | str, trials: int, member_bytes: int, device: torch.device, independent: bool = False
) -> int:
    """Return the largest number of members of a population; `setting` is the study's `search.population`.

    "auto" means no more members than pay and fit on the device. Unless the trials are `independent`, these are at most
    a quarter of the trials, so that the sampler learns between populations.
    """
    if not isinstance(setting, str):
        return setting
    fits = int(device_memory(device) * MEMORY_FRACTION) // member_bytes
    most = MAX_AUTO_POPULATION[device.type]
    if not independent:
        trials = -(-trials // 4)
    elif device.type == "cpu":
        most = max(most, MEMBERS_PER_CORE * torch.get_num_threads())
    return max(1, min(trials, most, fits))


def frozen_memory() -> int:
    """Return the largest host memory for the states of frozen members, in bytes."""
    return int(psutil.virtual_memory().total * FROZEN_MEMORY_FRACTION)


def device_memory(device: torch.device) -> int:
    """Return the total memory of the device in bytes; for a CPU, that of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)
