"""Parameters of K members in contiguous blocks, read by stacked layers and updated by optimizers.

A weight (a parameter of two dimensions or more) is a block of its own, [K, elements], contiguous for the GEMMs. All
vectors (biases, batch-norm parameters) share one block. Weight decay acts on weights and not on vectors, and therefore
on whole blocks.

Each block has master values, which the optimizer updates, a gradient, and the values that the layers compute with: the
master values themselves, or for bfloat16 a copy in that type, which the optimizer updates, too.

A parameter that does not contribute to a step's loss has no gradient in that step (in torch, None). Members cannot
differ in this: a stack is one graph for all of them, and modules with data-dependent control flow are not stacked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpo.training.shapes.padding import Padding


class ParameterSlot:
    """One parameter of all members, as a layer uses it: `value` [K, *shape] and `grad` of the same shape.

    `value` is a leaf that requires a gradient, so that autograd calls the layer's backward. The gradient itself is not
    accumulated by autograd: the layer's backward writes it into the block. `grad` is valid in a step only once
    `has_gradient` is True.
    """

    def __init__(self, value: Tensor, grad: Tensor) -> None:
        self.value, self.grad = value.detach().requires_grad_(), grad
        self.has_gradient = False

    def write(self, compute: Callable[[Tensor], object]) -> None:
        """Call `compute` with a tensor to write the gradient into; a second gradient in one step is added."""
        if not self.has_gradient:
            compute(self.grad)
            self.has_gradient = True
        else:
            further = torch.empty_like(self.grad)
            compute(further)
            self.grad.add_(further)


@dataclass
class Block:
    """Parameters of K members in one tensor each: `master` [K, elements], and `compute` and `grad` of the same shape.

    `compute` and `grad` have the type that the layers compute in. `decayed` says whether weight decay applies.
    `parameters` lists the block's parameters, each with its columns.
    """

    master: Tensor
    compute: Tensor
    grad: Tensor
    decayed: bool
    parameters: list[tuple[slice, ParameterSlot]] = field(default_factory=list)


class ParameterBlocks:
    """All parameters of K members.

    `values` are the stacked master values, name -> [K, *shape]; `compute` is the type that the layers compute in.
    `padding` has the members' own shapes, where these differ. The slot of a parameter that only the first members have
    is one of these members.
    """

    def __init__(self, values: Mapping[str, Tensor], compute: torch.dtype, padding: Padding | None = None) -> None:
        self._padding, self._masks = padding, list[Tensor]()
        self._shapes = {name: value.shape[1:] for name, value in values.items()}
        self._weights = [name for name, shape in self._shapes.items() if len(shape) > 1]
        self._vectors = [name for name, shape in self._shapes.items() if len(shape) <= 1]
        self._compute = compute
        self._make_blocks(self.join(values))

    def _make_blocks(self, masters: Sequence[Tensor]) -> None:
        self.blocks = []
        for number, master in enumerate(masters):
            compute = master if master.dtype == self._compute else master.to(self._compute)
            self.blocks.append(Block(master, compute, torch.zeros_like(compute), number < len(self._weights)))
        self.slots = {n: self._slot(block, 0, n) for block, n in zip(self.blocks, self._weights, strict=False)}
        offset = 0
        for name in self._vectors:
            self.slots[name] = self._slot(self.blocks[-1], offset, name)
            offset += math.prod(self._shapes[name])
        if self._padding is not None and self._padding.clears:
            self._masks = self.join(self._padding.masks(self._shapes, self.blocks[0].compute))

    def _slot(self, block: Block, offset: int, name: str) -> ParameterSlot:
        shape = self._shapes[name]
        part = slice(offset, offset + math.prod(shape))
        have = self.members if self._padding is None else self._padding.count(name.rpartition(".")[0])
        value, grad = (_shaped(each[:, part], shape)[:have] for each in (block.compute, block.grad))
        slot = ParameterSlot(value, grad)
        block.parameters.append((part, slot))
        return slot

    @property
    def members(self) -> int:
        """Return the number of members."""
        return self.blocks[0].master.shape[0]

    def begin_step(self) -> None:
        """Discard the gradients of the last step."""
        for slot in self.slots.values():
            slot.has_gradient = False

    def clear_padding(self) -> None:
        """Set the gradients of padding to 0. Call it before the optimizer's step."""
        for block, mask in zip(self.blocks, self._masks, strict=False):
            block.grad.mul_(mask)

    def refresh(self) -> None:
        """Copy the master values into the values that the layers compute with. Call it after a change of those."""
        for block in self.blocks:
            if block.compute is not block.master:
                block.compute.copy_(block.master)

    def select(self, members: Tensor) -> None:
        """Reduce the blocks to these members: ascending indices, [n] int64. Makes new slots: layers must bind again."""
        self._make_blocks([block.master[members] for block in self.blocks])

    def join_members(self, states: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """Return the members' tensors, by their own names of parameters, as one tensor a block, [K, elements]."""
        if self._padding is not None:
            return self.join(self._padding.join(states))
        return self.join({name: torch.stack([state[name] for state in states]) for name in states[0]})

    def of_member(self, member: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return one member's part of tensors [K, *shape] by parameter, by its own names and in its own shapes."""
        if self._padding is not None:
            return self._padding.split(member, values)
        return {name: value[member] for name, value in values.items()}

    def own_names(self, member: int) -> dict[str, str]:
        """Return one member's own names of its parameters, each with the parameter's name here."""
        if self._padding is not None:
            return {own: name for own, name in self._padding.members[member].names.items() if name in self._shapes}
        return {name: name for name in self._shapes}

    def master_values(self) -> dict[str, Tensor]:
        """Return the master values of every parameter, name -> [K, *shape]."""
        return self.split([block.master for block in self.blocks])

    def join(self, values: Mapping[str, Tensor]) -> list[Tensor]:
        """Return a tensor of each parameter, name -> [K, *shape], as one tensor a block, [K, elements]."""
        joined = [_flat(values[name]) for name in self._weights]
        return [*joined, torch.cat([_flat(values[name]) for name in self._vectors], 1)] if self._vectors else joined

    def split(self, joined: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return one tensor a block, [K, elements], as views of each parameter, name -> [K, *shape]."""
        values = {name: _shaped(joined[number], self._shapes[name]) for number, name in enumerate(self._weights)}
        offset = 0
        for name in self._vectors:
            size = math.prod(self._shapes[name])
            values[name] = _shaped(joined[-1][:, offset : offset + size], self._shapes[name])
            offset += size
        return values


def _flat(values: Tensor) -> Tensor:
    """Return [K, *shape] as [K, elements]."""
    return values.reshape(len(values), -1)


def _shaped(values: Tensor, shape: torch.Size) -> Tensor:
    """Return a view of [K, elements] as [K, *shape]."""
    return values.view(len(values), *shape)
