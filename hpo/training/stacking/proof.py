"""One stacked step against the same step of each member alone, in float64: for networks that are not hpo's own.

What tracing cannot see (Python that asks a value for its class, a function that torch.vmap does not know) shows here,
before anything is trained. Knows nothing of trials: a caller that gets CannotStackError trains one at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.supported import DROPOUT_LAYERS
from hpo.training.stacking.trace import CannotStackError, require

TOLERANCE = 1e-6
"""Of the largest number compared: far above rounding in float64, far below any mistake."""


def prove(members: Sequence[nn.Module], images: Tensor) -> None:
    """Raise CannotStackError unless the stack gives each member its own outputs, gradients and buffers for `images`.

    A batch of one image, as the last of an evaluation may be, is compared, too. Dropout is left out, whose masks differ
    from torch's. Modules and images are copied, not changed; the modules' own errors, such as images of the wrong
    shape, are raised as they are. A few members and images are enough.
    """
    alone = [_without_dropout(copy.deepcopy(member).cpu().double()) for member in members]
    few = images.detach().cpu().double()
    network = StackedNetwork(alone, torch.float64)
    with torch.random.fork_rng(devices=[]):
        for training, x in ((True, few), (False, few), (False, few[:1])):
            expected = [module.train(training)(x.clone()) for module in alone]
            out = _run(network, x, training)
            for number, module in enumerate(alone):
                _require_close(out[number], expected[number], type(module).__name__, "outputs")
            if training:
                network.blocks.begin_step()
                _loss(out).backward()  # type: ignore[no-untyped-call]
                for number, module in enumerate(alone):
                    _require_same_step(network, number, module, expected[number])


def _run(network: StackedNetwork, x: Tensor, training: bool) -> Tensor:
    try:
        return network(x, training)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:  # each member alone had none
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotStackError(f"the network cannot be stacked: {reason}") from error


def _loss(out: Tensor) -> Tensor:
    """Something that every output has a share of its own in."""
    return out.sin().sum()


def _require_same_step(network: StackedNetwork, number: int, module: nn.Module, expected: Tensor) -> None:
    module.zero_grad()
    _loss(expected).backward()  # type: ignore[no-untyped-call]
    for name, parameter in module.named_parameters():
        slot = network.blocks.slots[name]
        require(
            slot.has_gradient == (parameter.grad is not None),
            f"'{name}'",
            "it has a gradient only in a stack, or only alone",
        )
        if parameter.grad is not None:
            _require_close(slot.grad[number], parameter.grad, f"'{name}'", "gradients")
    state = network.state_dict(number)
    for name, buffer in module.state_dict().items():
        _require_close(state[name].double(), buffer.double(), f"'{name}'", "values after a step")


def _require_close(ours: Tensor, alone: Tensor, what: str, which: str) -> None:
    ours, alone = ours.detach(), alone.detach()
    most = alone.nan_to_num().abs().max() if alone.numel() else 0.0
    near = ours.shape == alone.shape and torch.allclose(ours, alone, 0.0, float(TOLERANCE * (1 + most)), equal_nan=True)
    require(near, what, f"its {which} in a stack are not those that it has alone")


def _without_dropout(module: nn.Module) -> nn.Module:
    for each in module.modules():
        if isinstance(each, DROPOUT_LAYERS):
            each.p = 0.0
    return module
