"""Pad members of different sizes with zeros to one size, and cut their own values back out.

The networks of a stack differ in the sizes of their tensors, or lack the layers of deeper ones. `template` is a network
that has every layer in its largest size. A member's values lie in the first rows and columns of the template's tensors,
and zeros in the others. Outside of this module and the stack, a member has its own names and shapes only.

Zeros stay zero: a padded unit has weights, bias and batch-norm parameters of 0, so its activation is f(0). The next
layer's weights of that unit are 0, so nothing of it reaches the member's own units, forward or backward. A gradient in
the padding arises only where f(0) is not 0, as with sigmoid; `clears` says that it must be set to 0.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d)

ZERO_AT_ZERO = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.Embedding),
    *(*DROPOUTS, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity),
)
"""Layers that return zeros in a padded unit or channel."""


@dataclass(frozen=True)
class OwnShape:
    """A member's own tensors: `shapes`, and `names`, the names of its modules and tensors in the template.

    `dropouts` are the shapes of one example in its dropout layers, in the order in which they run.
    """

    shapes: Mapping[str, torch.Size]
    names: Mapping[str, str]
    dropouts: Sequence[tuple[int, ...]]


class Padding:
    """The own shapes of K members in a stack. `clears` says whether gradients in the padding may be other than 0.

    They may in a `user_defined` network, whose forward calls functions that are no layers.
    """

    def __init__(self, members: Sequence[OwnShape], template: nn.Module, user_defined: bool = False) -> None:
        self.members = list(members)
        self._shapes = {name: value.shape for name, value in template.state_dict().items()}
        paths = [{each.names.get(path, path) for path in each.names} for each in members]
        self._present = [{path for path, _ in template.named_modules()} & own for own in paths]
        self._counts: dict[str, int] = {}
        leaves = [each for each in template.modules() if not list(each.children())]
        self.clears = user_defined or any(type(each) not in ZERO_AT_ZERO for each in leaves)

    @property
    def differ_in_depth(self) -> bool:
        """Return whether some members lack layers that the first one has."""
        return any(len(own.names) != len(self.members[0].names) for own in self.members)

    def count(self, layer: str) -> int:
        """Return the number of members, the first ones, that have a layer of the template."""
        if layer not in self._counts:
            self._counts[layer] = sum(layer in present for present in self._present)
        return self._counts[layer]

    def modules(self, members: Sequence[nn.Module], template: nn.Module) -> list[nn.Module]:
        """Return networks of the template's sizes with the members' values and dropout rates."""
        joined = self.join([member.state_dict() for member in members])
        padded = []
        for index, (own, member) in enumerate(zip(self.members, members, strict=True)):
            module = copy.deepcopy(template)
            module.load_state_dict({name: value[index] for name, value in joined.items()})
            rates = {own.names[path]: each.p for path, each in member.named_modules() if isinstance(each, DROPOUTS)}
            for path, layer in module.named_modules():
                if isinstance(layer, DROPOUTS):
                    layer.p = rates.get(path, 0.0)
            padded.append(module)
        return padded

    def join(self, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return values by own names as values of the template's names and shapes, [K, ...] each.

        `states` may lack tensors, such as the buffers, but all lack the same ones.
        """
        joined: dict[str, Tensor] = {}
        for index, (own, state) in enumerate(zip(self.members, states, strict=True)):
            for name, value in state.items():
                into = own.names[name]
                if into not in joined:
                    joined[into] = value.new_zeros(len(states), *self._shapes[into])
                joined[into][_corner(index, value.shape)] = value
        return joined

    def split(self, member: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one member's own values of tensors [K, ...] by the template's names; `member` is an index."""
        own = self.members[member]
        return {
            name: values[into][_corner(member, own.shapes[name])] for name, into in own.names.items() if into in values
        }

    def masks(self, names: Iterable[str], like: Tensor) -> dict[str, Tensor]:
        """Return tensors [K, ...] of the type of `like`, by the template's names: 1 for own elements, 0 for padding."""
        masks = {name: like.new_zeros(len(self.members), *self._shapes[name]) for name in names}
        for index, own in enumerate(self.members):
            for name, into in own.names.items():
                if into in masks:
                    masks[into][_corner(index, own.shapes[name])] = 1
        return masks

    def select(self, members: Sequence[int]) -> None:
        """Reduce to these members, ascending indices."""
        self.members = [self.members[index] for index in members]
        self._present = [self._present[index] for index in members]
        self._counts.clear()


def _corner(member: int, shape: torch.Size) -> tuple[int | slice, ...]:
    """Return the index of one member's own elements in a tensor [K, ...]."""
    return (member, *(slice(size) for size in shape))


def joined_units(values: Sequence[Tensor], units: int) -> Tensor:
    """Return values [K, B, units] of several groups of members as one tensor of so many units.

    Units beyond are padding of all members that remain. The memory order is [K, units, B], as after a linear layer.
    """
    padded = [F.pad(value.transpose(1, 2), (0, 0, 0, units - value.shape[2])) for value in values]
    return torch.cat(padded).transpose(1, 2)
