"""Proof of user-defined networks: compare one stacked training step with the same step of each member alone.

The comparison, in float64, finds what tracing cannot see, such as Python code that depends on a value's class or a
function that torch.vmap does not support. It runs before training; after CannotStackError, the caller trains the
members one at a time. `prove_padded` compares members of different sizes in one stack with a stack for each.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpo.training.device_data import input_type
from hpo.training.shapes.padding import OwnShape, Padding
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.tracing.supported import DROPOUT_LAYERS, SEQUENCE_LAYERS
from hpo.training.stacking.tracing.trace import CannotStackError, require

TOLERANCE = 1e-6
"""Tolerance relative to the largest number compared: far above rounding errors of float64, far below any mistake."""


def prove(members: Sequence[nn.Module], examples: Tensor, own_examples: bool = False) -> None:
    """Raise CannotStackError unless stacked and unstacked training give equal outputs, gradients and buffers.

    `examples` are [N, ...]; a few members and examples are enough. A batch of one example, which can be the last
    batch of an evaluation, is compared too. With `own_examples`, the stack takes examples of each member's own. Dropout
    is off, because stacked masks differ from torch's. Modules and examples are copied, not changed. Exceptions that the
    modules raise alone are raised as they are.
    """
    alone = [_without_dropout(copy.deepcopy(member).cpu().double()) for member in members]
    batch = examples.detach().cpu()
    batch = batch.to(input_type(batch, torch.float64))
    network = StackedNetwork(alone, torch.float64, own_examples=own_examples)
    with torch.random.fork_rng(devices=[]):
        for training, x in ((True, batch), (False, batch), (False, batch[:1])):
            expected = [module.train(training)(x.clone()) for module in alone]
            out = _run(network, x, training)
            for number, module in enumerate(alone):
                _require_close(out[number], expected[number], type(module).__name__, "outputs")
            if training:
                network.blocks.begin_step()
                _loss(out).backward()  # type: ignore[no-untyped-call]
                for number, module in enumerate(alone):
                    _require_same_step(network, number, module, expected[number])


def prove_padded(
    members: Sequence[nn.Module],
    template: nn.Module,
    shapes: Sequence[OwnShape],
    examples: Tensor,
    own_examples: bool = False,
) -> None:
    """Raise CannotStackError unless members trained in one stack, padded to a template, train as each in its own stack.

    Their parameters get random values, because zeros such as the initial biases would hide a mistake. Dropout is on.
    Two further passes have all units far above 0, or far below: padding is 0, never the largest of many units around 0.
    With `own_examples`, the stacks take examples of each member's own.
    """
    _require_paddable(members, template)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        own = [_randomized(copy.deepcopy(member).cpu().double()) for member in members]
        padding = Padding(shapes, template, user_defined=True)
        padded = padding.modules(own, template.cpu().double())
        stack = StackedNetwork(padded, torch.float64, padding=padding, own_examples=own_examples)
        alone = [StackedNetwork([module], torch.float64, own_examples=own_examples) for module in own]
        batch = examples.detach().cpu()
        batch = batch.to(input_type(batch, torch.float64))
        for index, dropout in enumerate(stack.dropouts):
            keys = torch.randint(2**62, (len(own), 1))
            dropout.set_keys(keys)
            for number, network in enumerate(alone):
                network.dropouts[index].set_keys(keys[number : number + 1])
        for training, x, shift in ((True, batch, 0), (False, batch, 0), (False, batch[:1], 9), (False, batch, -18)):
            for network in (stack, *alone):
                _shift_biases(network, shift)
            out, expected = _run(stack, x, training), [_run(network, x, training) for network in alone]
            for number, module in enumerate(own):
                _require_close(out[number], expected[number][0], type(module).__name__, "outputs")
            if training:
                _backward(stack, out)
                for number, network in enumerate(alone):
                    _backward(network, expected[number])
                    _require_same_padded_step(stack, number, network)


def _require_paddable(members: Sequence[nn.Module], template: nn.Module) -> None:
    """Raise CannotStackError unless the template has the members' tensors, each at least as large."""
    name, largest = type(template).__name__, template.state_dict()
    for module in (*members, template):
        for path, layer in module.named_modules():
            layer_name = f"layer '{path}' ({type(layer).__name__})"
            require(not isinstance(layer, SEQUENCE_LAYERS), layer_name, "there is no padded form of it")
        state, buffers = module.state_dict(), dict(module.named_buffers())
        require(buffers.keys() <= state.keys(), name, "it has a buffer that is not persistent")
        require(state.keys() == largest.keys(), name, "the members differ in their layers")
        for key, value in state.items():
            fits = isinstance(value, Tensor) and value.dim() == largest[key].dim()
            fits = fits and all(own <= size for own, size in zip(value.shape, largest[key].shape, strict=True))
            require(fits, f"'{key}'", "the largest arguments do not make its largest shape")


@torch.no_grad()
def _randomized(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return module


@torch.no_grad()
def _shift_biases(network: StackedNetwork, shift: float) -> None:
    """Add a number to each bias and norm parameter, without the padding; this overwrites the gradients."""
    for block in network.blocks.blocks:
        block.grad.fill_(shift)
    network.blocks.clear_padding()
    for block in network.blocks.blocks:
        if not block.decayed:
            block.master.add_(block.grad)


def _backward(network: StackedNetwork, out: Tensor) -> None:
    network.blocks.begin_step()
    _loss(out).backward()  # type: ignore[no-untyped-call]
    network.blocks.clear_padding()


def _require_same_padded_step(stack: StackedNetwork, number: int, alone: StackedNetwork) -> None:
    gradients = stack.blocks.of_member(number, {name: slot.grad for name, slot in stack.blocks.slots.items()})
    for name, slot in alone.blocks.slots.items():
        have_gradients = stack.blocks.slots[name].has_gradient == slot.has_gradient
        require(have_gradients, f"'{name}'", "it has a gradient only in a stack, or only alone")
        if slot.has_gradient:
            _require_close(gradients[name], slot.grad[0], f"'{name}'", "gradients")
    state = stack.state_dict(number)
    for name, value in alone.state_dict(0).items():
        _require_close(state[name].double(), value.double(), f"'{name}'", "values after a step")


def _run(network: StackedNetwork, x: Tensor, training: bool) -> Tensor:
    try:
        return network(network.of_all(x), training)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:  # each member alone ran without one
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotStackError(f"the network cannot be stacked: {reason}") from error


def _loss(out: Tensor) -> Tensor:
    """Return a loss with a different gradient for every output."""
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


def _require_close(stacked: Tensor, alone: Tensor, name: str, quantity: str) -> None:
    stacked, alone = stacked.detach(), alone.detach()
    largest = alone.nan_to_num().abs().max() if alone.numel() else 0.0
    close = stacked.shape == alone.shape and torch.allclose(
        stacked, alone, 0.0, float(TOLERANCE * (1 + largest)), equal_nan=True
    )
    require(close, name, f"its {quantity} in a stack differ from those alone")


def _without_dropout(module: nn.Module) -> nn.Module:
    for each in module.modules():
        if isinstance(each, DROPOUT_LAYERS):
            each.p = 0.0
        elif isinstance(each, SEQUENCE_LAYERS):
            each.dropout = 0.0
    return module
