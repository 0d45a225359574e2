"""Describe the shapes of members' networks, and construct the network that they are padded to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from hpo.studyfile import NetworkSettings
from hpo.training.device_data import Shape, input_type, zero_example
from hpo.training.global_locks import GLOBAL_STATE_LOCK
from hpo.training.networks.builtin import MLP, build
from hpo.training.shapes.padding import DROPOUTS, OwnShape


@dataclass(frozen=True)
class NetworkShape:
    """The shape of a member's network: names and shapes of its tensors, and what it computes for one example.

    `positions` has the number of outputs of each unit or channel, such as the pixels of a convolution, by weight.
    """

    settings: NetworkSettings
    modules: tuple[str, ...]
    tensors: Mapping[str, torch.Size]
    positions: Mapping[str, int]
    dropouts: tuple[tuple[int, ...], ...]

    @property
    def weights(self) -> dict[str, tuple[torch.Size, int]]:
        """Return shape and positions of each weight; the same layer of a deeper network has the same name."""
        return {
            self._name_in(name, "last"): (self.tensors[name], positions) for name, positions in self.positions.items()
        }

    def own_shape(self, template: NetworkSettings) -> OwnShape:
        """Return the shape relative to a template of these settings."""
        last = str(_last_layer(template))
        names = {name: self._name_in(name, last) for name in (*self.modules, *self.tensors)}
        return OwnShape(self.tensors, names, self.dropouts)

    def _name_in(self, name: str, last: str) -> str:
        """Return a name with the number of the last layer replaced, if the network is an MLP."""
        prefix = f"layers.{_last_layer(self.settings)}"
        if self.settings.kind == "mlp" and (name == prefix or name.startswith(f"{prefix}.")):
            return f"layers.{last}{name[len(prefix) :]}"
        return name


def _last_layer(settings: NetworkSettings) -> int:
    """Return the number of an MLP's last layer: after a flattening and, per hidden layer, three or four modules."""
    return 1 + (3 + settings.batch_norm) * len(settings.hidden)


def network_shape(settings: NetworkSettings, network: nn.Module, shape: Shape) -> NetworkShape:
    """Return the shape of a network, measured by running it on one example of zeros on the network's device."""
    dropouts: list[tuple[int, ...]] = []
    positions: dict[str, int] = {}
    paths = {module: path for path, module in network.named_modules()}

    def count(module: nn.Module, args: object, out: object) -> None:
        if isinstance(out, Tensor):
            if isinstance(module, DROPOUTS):
                dropouts.append(tuple(out.shape[1:]))
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() > 1:
                positions[f"{paths[module]}.weight"] = max(1, out.numel() // weight.shape[0])

    hooks = [module.register_forward_hook(count) for module in network.modules() if not list(module.children())]
    was_training = network.training
    first = next(network.parameters())
    example = zero_example(shape, first.device)
    with GLOBAL_STATE_LOCK, torch.no_grad():
        network.eval()(example.to(input_type(example, first.dtype)))
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    tensors = {name: value.shape for name, value in network.state_dict().items()}
    return NetworkShape(settings, tuple(path for path in paths.values()), tensors, positions, tuple(dropouts))


def largest_network(settings: Sequence[NetworkSettings], shape: Shape, classes: int) -> nn.Module:
    """Return a network that has each layer of the networks of these settings in its largest size."""
    network = build(largest_settings(settings), shape, classes, 0)
    if isinstance(network, MLP) and len({len(each.hidden) for each in settings}) > 1:
        network.layers[-1] = nn.Linear(max(each.hidden[-1] for each in settings), classes)
    return network


def largest_settings(settings: Sequence[NetworkSettings]) -> NetworkSettings:
    """Return the settings of a network that has each layer of these networks in its largest size."""
    first = settings[0]
    if first.kind == "module":
        return first.model_copy(update={"args": _largest([each.args for each in settings])})
    lists = {key: _largest([getattr(each, key) for each in settings]) for key in ("hidden", "conv")}
    return first.model_copy(update={**lists, "dropout": 0.0})


def _largest(values: Sequence[Any]) -> Any:
    """Return the largest of whole numbers, also inside of lists and tables; of other values, the first one."""
    first = values[0]
    if all(isinstance(each, list) for each in values):
        columns = zip_longest(*values)
        return [_largest([each for each in column if each is not None]) for column in columns]
    if all(isinstance(each, dict) for each in values):
        return {key: _largest([each[key] for each in values if key in each]) for key in first}
    whole = all(isinstance(each, int) and not isinstance(each, bool) for each in values)
    return max(values) if whole else first
