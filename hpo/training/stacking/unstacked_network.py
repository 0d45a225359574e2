"""One member's network in plain torch, where it cannot be stacked.

Optimizers and metrics are those of stacks. The random numbers that the forward draws from the global generators of
torch, Python or NumPy depend on the member's seed, the epoch and the step; other users of these generators are not
affected. For bfloat16, parameters stay in float32 and torch's autocast chooses the operations to run in bfloat16.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from hpo.errors import HpoError
from hpo.training.device_data import input_type
from hpo.training.global_locks import seeded
from hpo.training.networks.user_defined import copied_values, values_of
from hpo.training.stacking.parameter_blocks import ParameterBlocks, ParameterSlot


class ForwardSeed:
    """Seed of the random numbers of the next forward, with the interface of a stacked dropout layer."""

    def __init__(self) -> None:
        self.seed = 0

    def set_keys(self, keys: Tensor) -> None:
        """Use this key, [1, 1], as the seed of the following forward passes."""
        self.seed = int(keys)


class UnstackedNetwork:
    """A module with the interface of a StackedNetwork of one member. The module is changed: pass a copy to keep it.

    `compute` is the type to compute in: float32, float64 or, through autocast, bfloat16. The module's parameters have
    this type, or float32 for bfloat16. With `own_examples`, examples are [1, B, ...].
    """

    def __init__(self, module: nn.Module, compute: torch.dtype, own_examples: bool = False) -> None:
        self._own_examples = own_examples
        self._type = torch.float64 if compute == torch.float64 else torch.float32
        self._autocast_type = compute if compute != self._type else None
        self._module = module
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.blocks = ParameterBlocks(
            {name: value.detach().unsqueeze(0) for name, value in trained.items()}, self._type
        )
        self.device = next(iter(trained.values())).device
        self._forward_seed = ForwardSeed()
        self._frozen = {name: value for name, value in module.named_parameters() if not value.requires_grad}
        for name, parameter in trained.items():
            slot = self.blocks.slots[name]
            parameter.data = slot.value.detach()[0]
            parameter.register_post_accumulate_grad_hook(partial(_move_gradient, slot))  # type: ignore[no-untyped-call]

    @property
    def dropouts(self) -> Sequence[ForwardSeed]:
        """Return what needs a key in each step: the seed of the forward."""
        return [self._forward_seed]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """Run the module on the examples `x` [B, ...]; return [1, B, classes].

        Raises HpoError where a parameter that was frozen at construction requires a gradient now.
        """
        if self._module.training != training:
            self._module.train(training)
        autocast = nullcontext() if self._autocast_type is None else torch.autocast(x.device.type, self._autocast_type)
        with seeded(self._forward_seed.seed, x.device), autocast:
            x = x[0] if self._own_examples else x
            # A copy: its forward may work in place.
            out: Tensor = self._module(x.to(input_type(x, self._type), copy=True))
        unfrozen = [name for name, value in self._frozen.items() if value.requires_grad]
        if unfrozen:  # no optimizer updates it
            problem = f"'{unfrozen[0]}' is frozen in a new module and unfrozen later"
            raise HpoError(f"{problem}, so it would not be trained: freeze it in forward instead")
        return out.unsqueeze(0)

    def of_all(self, x: Tensor) -> Tensor:
        """Return examples [B, ...] as the network takes them."""
        return x.unsqueeze(0) if self._own_examples else x

    def select(self, members: Tensor) -> None:
        """Do nothing: there is one member."""

    def state_dict(self, member: int) -> dict[str, Tensor]:
        """Return a copy of the module's state. `member` is ignored."""
        return copied_values(self._module.state_dict())

    def values(self, member: int) -> dict[str, Tensor]:
        """Return a copy of all that training may change in the module. `member` is ignored."""
        return values_of(self._module)


def _move_gradient(slot: ParameterSlot, parameter: Tensor) -> None:
    """Move the gradient that autograd accumulated to the parameter's slot."""
    gradient = parameter.grad
    assert gradient is not None, "the hook runs after accumulation"
    slot.write(lambda into: into.copy_(gradient.to_dense().unsqueeze(0)))
    parameter.grad = None
