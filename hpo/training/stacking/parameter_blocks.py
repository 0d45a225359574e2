"""The parameters of all members, in blocks that layers read and optimizers walk.

A weight (a parameter of two dimensions or more) is a block of its own, [K, elements], so that it is contiguous for
the GEMMs. All vectors (biases, batch-norm parameters) share one block. Weight decay acts on weights and not on
vectors: on whole blocks, that is.

Each block has a master copy, which the optimizer updates, a gradient, and the value the layers compute with: the
master itself, or under bfloat16 a copy in that type that `refresh` makes again after each step.

A parameter that a step's loss does not depend on has no gradient in that step, as torch's would be None. Members cannot
differ in it: a stack is one graph, the same for all of them, and whatever decides by its data is no stack.

Knows nothing of layers, optimizers or random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


class Slot:
    """One parameter of all members, as a layer sees it: `value` [K, *shape] and the place for its gradient.

    `value` is a leaf that requires a gradient, so that autograd comes by; the gradient itself is not accumulated by
    autograd but written by the layer's backward straight into the block. It is `fresh` until a step has written one:
    what lies in the place until then is no gradient.
    """

    def __init__(self, value: Tensor, grad: Tensor) -> None:
        self.value, self.grad = value.detach().requires_grad_(), grad
        self.fresh = True

    def write(self, compute: Callable[[Tensor], object]) -> None:
        """Have `compute` write the gradient into the tensor it is given; a second use in one step adds to the first."""
        if self.fresh:
            compute(self.grad)
            self.fresh = False
        else:
            further = torch.empty_like(self.grad)
            compute(further)
            self.grad.add_(further)


@dataclass
class Block:
    """`master` [K, elements], `compute` and `grad` of the same shape in the type the layers compute in.

    `parameters` are those that it holds, each with its columns.
    """

    master: Tensor
    compute: Tensor
    grad: Tensor
    decayed: bool
    parameters: list[tuple[slice, Slot]] = field(default_factory=list)


class Blocks:
    """All parameters of K members. `values`: name -> [K, *shape], stacked, in the master's type."""

    def __init__(self, values: Mapping[str, Tensor], compute: torch.dtype) -> None:
        self._shapes = {name: value.shape[1:] for name, value in values.items()}
        self._weights = [name for name, shape in self._shapes.items() if len(shape) > 1]
        self._vectors = [name for name, shape in self._shapes.items() if len(shape) <= 1]
        parts = [(_flat(values[name]), True) for name in self._weights]
        if self._vectors:
            parts.append((torch.cat([_flat(values[name]) for name in self._vectors], 1), False))
        self._compute = compute
        self._lay(parts)

    def _lay(self, parts: list[tuple[Tensor, bool]]) -> None:
        self.blocks = []
        for master, decayed in parts:
            compute = master if master.dtype == self._compute else master.to(self._compute)
            self.blocks.append(Block(master, compute, torch.zeros_like(compute), decayed))
        self.slots = dict(zip(self._weights, (self._slot(b, 0, n) for b, n in self._zip_weights()), strict=True))
        offset = 0
        for name in self._vectors:
            self.slots[name] = self._slot(self.blocks[-1], offset, name)
            offset += math.prod(self._shapes[name])

    def _zip_weights(self) -> list[tuple[Block, str]]:
        return list(zip(self.blocks, self._weights, strict=False))

    def _slot(self, block: Block, offset: int, name: str) -> Slot:
        shape = self._shapes[name]
        part = slice(offset, offset + math.prod(shape))
        slot = Slot(_shaped(block.compute[:, part], shape), _shaped(block.grad[:, part], shape))
        block.parameters.append((part, slot))
        return slot

    @property
    def members(self) -> int:
        """How many members there are."""
        return self.blocks[0].master.shape[0]

    def begin_step(self) -> None:
        """Forget the last step's gradients: the next one that is written takes their place."""
        for slot in self.slots.values():
            slot.fresh = True

    def refresh(self) -> None:
        """Copy the master values to the type the layers compute in, after the optimizer's step."""
        for block in self.blocks:
            if block.compute is not block.master:
                block.compute.copy_(block.master)

    def keep(self, members: Tensor) -> None:
        """Keep only these members ([n] int64, ascending). Slots are new afterwards: layers fetch theirs again."""
        self._lay([(block.master[members], block.decayed) for block in self.blocks])

    def master_values(self) -> dict[str, Tensor]:
        """Return the master copy of every parameter, name -> [K, *shape]."""
        values = {name: _shaped(block.master, self._shapes[name]) for block, name in self._zip_weights()}
        offset = 0
        for name in self._vectors:
            size = math.prod(self._shapes[name])
            values[name] = _shaped(self.blocks[-1].master[:, offset : offset + size], self._shapes[name])
            offset += size
        return values


def _flat(values: Tensor) -> Tensor:
    return values.reshape(len(values), -1)


def _shaped(values: Tensor, shape: torch.Size) -> Tensor:
    """Return [K, elements] as [K, *shape], a view."""
    return values.view(len(values), *shape)
