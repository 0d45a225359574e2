"""One member's module as it is, for those that cannot be stacked: torch runs its forward, and autograd its backward.

What is around it is what stacks have: the same optimizers over blocks of parameters, the same metrics, and random
numbers that belong to the trial: all that the forward draws from torch's, Python's or NumPy's global generator comes
from the member's seed, the epoch and the step, and nobody else who draws from them is disturbed. In bfloat16 the
parameters stay in float32, and torch's autocast chooses where to compute in less.

Knows nothing of populations: it has one member.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from hpo.errors import HpoError
from hpo.training.global_state import seeded
from hpo.training.networks.user_defined import in_type
from hpo.training.stacking.parameter_blocks import ParameterBlocks, ParameterSlot


class ForwardSeed:
    """What the forward draws, as one dropout layer is asked for: by a key a step."""

    def __init__(self) -> None:
        self.seed = 0

    def set_keys(self, keys: Tensor) -> None:
        """Draw by this key, [1, 1], until the next one comes."""
        self.seed = int(keys)


class UnstackedNetwork:
    """A module with the face of a StackedNetwork of one member; the module becomes this network's own."""

    def __init__(self, module: nn.Module, compute: torch.dtype) -> None:
        self._type = torch.float64 if compute == torch.float64 else torch.float32
        self._lower = compute if compute != self._type else None
        self._module = in_type(module, self._type)
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.blocks = ParameterBlocks(
            {name: value.detach().unsqueeze(0) for name, value in trained.items()}, self._type
        )
        self.device = next(iter(trained.values())).device
        self._draws = ForwardSeed()
        self._frozen = {name: value for name, value in module.named_parameters() if not value.requires_grad}
        for name, parameter in trained.items():
            slot = self.blocks.slots[name]
            parameter.data = slot.value.detach()[0]
            parameter.register_post_accumulate_grad_hook(partial(_hand_over, slot))  # type: ignore[no-untyped-call]

    @property
    def dropouts(self) -> Sequence[ForwardSeed]:
        """What needs a key in each step."""
        return [self._draws]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """Run the module on the images `x` [B, ...]; returns [1, B, classes]."""
        if self._module.training != training:
            self._module.train(training)
        lower = nullcontext() if self._lower is None else torch.autocast(x.device.type, self._lower)
        with seeded(self._draws.seed, x.device), lower:
            out: Tensor = self._module(x.to(self._type, copy=True))  # its forward may change its own
        if thawed := [name for name, value in self._frozen.items() if value.requires_grad]:  # no optimizer has it
            raise HpoError(f"'{thawed[0]}' is frozen in a new module, and trained later; freeze it in forward instead")
        return out.unsqueeze(0)

    def select(self, members: Tensor) -> None:
        """Keep the one member."""

    def state_dict(self, member: int) -> dict[str, Tensor]:
        """Return the module's state: a copy. What a module keeps as extra state may be no tensor."""
        state = self._module.state_dict()
        return {n: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for n, v in state.items()}


def _hand_over(slot: ParameterSlot, parameter: Tensor) -> None:
    """Put the gradient that autograd has summed up where the optimizer looks for it."""
    gradient = parameter.grad
    assert gradient is not None, "the hook comes after it"
    slot.write(lambda place: place.copy_(gradient.to_dense().unsqueeze(0)))
    parameter.grad = None
