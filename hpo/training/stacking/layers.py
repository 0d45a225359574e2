"""Stacked layers: the interface, linear layers, parameters, buffers, and layers run through torch.vmap.

One object runs the same layer of K members. Shapes are logical: a stacked activation is [K, B, ...], whatever its
strides. In memory, a linear layer's output is [K, units, B]: the next product then reads and writes contiguous blocks,
elementwise operations keep the strides, and nothing is copied in between.

A layer is a `torch.autograd.Function` whose backward writes the gradients of parameters into their blocks. Where that
does not pay, `VmapLayer` computes a function of `Parameter`s, whose gradients are written in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.training.stacking.functions import group_norm
from hpo.training.stacking.parameter_blocks import ParameterSlot
from hpo.training.stacking.tracing.trace import require


class Keyed(Protocol):
    """A source of random numbers that needs a key in each step."""

    def set_keys(self, keys: Tensor) -> None:
        """Set the keys of the members' next step, [K, 1] int64."""
        ...


class StackedLayer:
    """Base class of stacked layers: one without parameters, buffers and other state per member."""

    @property
    def dropouts(self) -> Sequence[Keyed]:
        """Return what draws the layer's random numbers."""
        return []

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Store the slots of the layer's parameters. Called at first, and again after members were removed."""

    def select(self, members: Tensor) -> None:
        """Reduce the layer's own state, such as statistics, to these members: ascending indices, [n] int64."""

    def buffers(self) -> dict[str, Tensor]:
        """Return the layer's buffers, [K, ...] each, by their names in the module's state."""
        return {}

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """Run the layer: `x` is [K, B, ...] if it is stacked, else [B, ...], shared by all members."""
        raise NotImplementedError


class WeightedLayer(StackedLayer):
    """Base class of layers with a weight and an optional bias; `name` is the module's name in the network.

    `is_normalized` says that only batch norms read the layer's output. They subtract its bias again, so the gradient of
    the bias is 0. A sum would have rounding errors instead, which the updates of Adam and Lion would turn into steps.
    """

    is_normalized = False

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._has_bias = name, module.bias is not None

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Store the slots of weight and bias."""
        self.weight = slots[f"{self._name}.weight"]
        self.bias = slots[f"{self._name}.bias"] if self._has_bias else None


class _LinearFunction(torch.autograd.Function):
    """Linear layer of K members, [K, B, features] or [B, features] -> [K, B, units].

    With `in_rows`, the output's memory order is [K, B, units], which the functions after a sequence layer read, and not
    [K, units, B].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slots: tuple[ParameterSlot, ParameterSlot | None],
        in_rows: bool,
        is_normalized: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slots, ctx.in_rows, ctx.cancels = slots, in_rows, is_normalized and not in_rows
        if in_rows:
            rows = x.expand(len(weight), *x.shape) if x.dim() == 2 else x
            transposed = weight.transpose(1, 2)
            return torch.bmm(rows, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, transposed)
        if bias is not None and x.dim() == 3:
            return torch.baddbmm(bias.unsqueeze(-1), weight, x.transpose(1, 2)).transpose(1, 2)
        out = linear_product(x, weight)
        return (out if bias is None else out.add_(bias.unsqueeze(-1))).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        grad = grads[0].transpose(1, 2)  # [K, units, B]
        write_weight_gradient(weight_slot, grad, x)
        if bias_slot is not None:
            bias_slot.write(Tensor.zero_ if ctx.cancels else lambda into: torch.sum(grad, -1, out=into))
        input_grad = None
        if ctx.needs_input_grad[0]:
            if ctx.in_rows and x.dim() == 3:
                input_grad = torch.bmm(grads[0], weight)
            else:
                input_grad = torch.bmm(weight.transpose(1, 2), grad).transpose(1, 2)
        return input_grad, None, None, None, None, None


def linear_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return the products [K, units, B] of `x`, [K, B, features] or [B, features], and weights [K, units, features]."""
    if x.dim() == 3:
        return torch.bmm(weight, x.transpose(1, 2))
    return torch.unflatten(weight.flatten(0, 1) @ x.t(), 0, weight.shape[:2])  # shared: one GEMM for all members


def write_weight_gradient(slot: ParameterSlot, grad: Tensor, x: Tensor) -> None:
    """Write the gradient of a linear layer's weights, for that of its output [K, units, B] and its input `x`."""
    if x.dim() == 3:
        slot.write(lambda into: torch.bmm(grad, x, out=into))
    else:
        slot.write(lambda into: torch.mm(grad.flatten(0, 1), x, out=into.view(-1, into.shape[-1])))


class Linear(WeightedLayer):
    """Stacked form of `nn.Linear`."""

    def __init__(self, name: str, modules: Sequence[nn.Linear]) -> None:
        super().__init__(name, modules[0])

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """Return [K, ..., units] for [K, ..., features] or [..., features]."""
        bias, between = self.bias, x.shape[stacked:-1]
        rows = x if len(between) == 1 else x.reshape(*x.shape[:stacked], -1, x.shape[-1])
        weight, in_rows, slots = self.weight.value, len(between) > 1, (self.weight, bias)
        out = apply(_LinearFunction, rows, weight, bias and bias.value, slots, in_rows, self.is_normalized)
        return out if len(between) == 1 else out.reshape(len(out), *between, out.shape[-1])


class _ParameterFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, slot: ParameterSlot) -> Tensor:
        ctx.slot = slot
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        ctx.slot.write(lambda into: into.copy_(grads[0]))
        return None, None


class Parameter(StackedLayer):
    """A parameter that a forward uses outside of a layer."""

    def __init__(self, name: str) -> None:
        self._name = name

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Store the parameter's slot."""
        self.slot = slots[self._name]

    def __call__(self, x: Tensor, stacked: bool = True, training: bool = True) -> Tensor:
        """Return the parameter, [K, ...]; `x` is ignored."""
        return apply(_ParameterFunction, self.slot.value, self.slot)


class SequenceLayer(StackedLayer):
    """Base class of layers with several arguments or results, which drop elements themselves.

    `call(training, ...)` takes the arguments of the module's forward, stacked, and returns its results, stacked.
    """

    def __init__(self, name: str, module: nn.Module, dropouts: Sequence[StackedLayer]) -> None:
        self._name, self._dropouts = f"layer '{name}'", dropouts
        self._parameters = {key: Parameter(f"{name}.{key}") for key, _ in module.named_parameters()}

    @property
    def dropouts(self) -> Sequence[Keyed]:
        """Return the dropouts."""
        return [each for dropout in self._dropouts for each in dropout.dropouts]

    @property
    def members(self) -> int:
        """Return the number of members."""
        return len(next(iter(self._parameters.values())).slot.value)

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Store the parameters' slots."""
        for parameter in self._parameters.values():
            parameter.bind(slots)

    def select(self, members: Tensor) -> None:
        """Reduce the dropout rates to these members."""
        for dropout in self._dropouts:
            dropout.select(members)

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Return the parameters of all members by their names in the module; `x` is ignored."""
        return {key: parameter(x) for key, parameter in self._parameters.items()}


class Buffer(StackedLayer):
    """A constant tensor that a forward reads, [K, ...]; floating-point values are converted to the type `compute`."""

    def __init__(self, values: Sequence[Tensor], compute: torch.dtype) -> None:
        value = torch.stack([each.detach() for each in values])
        self._value = value.to(compute) if value.is_floating_point() else value

    def select(self, members: Tensor) -> None:
        """Reduce the values to these members."""
        self._value = self._value[members]

    def __call__(self, x: Tensor, stacked: bool = True, training: bool = True) -> Tensor:
        """Return the values, [K, ...]; `x` is ignored."""
        return self._value


class VmapLayer(StackedLayer):
    """A layer that depends on its input and parameters only, run for each member through torch.vmap."""

    def __init__(self, name: str, modules: Sequence[nn.Module]) -> None:
        self._module, self._function = modules[0], VMAP_LAYERS[type(modules[0])]
        self._parameters = {key: Parameter(f"{name}.{key}") for key, _ in modules[0].named_parameters()}

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Store the parameters' slots."""
        for parameter in self._parameters.values():
            parameter.bind(slots)

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """Return the layer's output for each member, [K, B, ...], for [K, B, ...] or [B, ...]."""
        values = [parameter(x) for parameter in self._parameters.values()]

        def run_member(x: Tensor, *values: Tensor) -> Tensor:
            return self._function(self._module, x, dict(zip(self._parameters, values, strict=True)))

        return torch.vmap(run_member, in_dims=(0 if stacked else None, *[0] * len(values)))(x, *values)


def is_shared(x: Tensor) -> bool:
    """Return whether all members have the same values, because `x` [K, ...] was expanded."""
    return len(x) > 1 and x.stride(0) == 0


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the products [K, ..., units] of `x` [K, ..., features] and the weights [K, units, features]."""
    between = x.shape[1:-1]
    if is_shared(x):  # one product for all members
        out = torch.unflatten(F.linear(x[0].reshape(-1, x.shape[-1]), weight.flatten(0, 1)), 1, weight.shape[:2])
        out = out.transpose(0, 1) if bias is None else out.transpose(0, 1) + bias.unsqueeze(1)
    else:
        rows, transposed = x.flatten(1, -2), weight.transpose(1, 2)
        out = torch.bmm(rows, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), rows, transposed)
    return torch.unflatten(out, 1, between)


Values = dict[str, Tensor]


def _layer_norm(layer: Any, x: Tensor, values: Values) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, values.get("weight"), values.get("bias"), layer.eps)


def _rms_norm(layer: Any, x: Tensor, values: Values) -> Tensor:
    return F.rms_norm(x, layer.normalized_shape, values.get("weight"), layer.eps)


def _group_norm(layer: Any, x: Tensor, values: Values) -> Tensor:
    return group_norm(x, layer.num_groups, values.get("weight"), values.get("bias"), layer.eps)


def _instance_norm(layer: Any, x: Tensor, values: Values) -> Tensor:
    layer._check_input_dim(x)
    require(x.dim() > layer._get_no_batch_dim(), type(layer).__name__, "its input must be a batch")
    return F.instance_norm(x, weight=values.get("weight"), bias=values.get("bias"), eps=layer.eps)


def _embedding(layer: Any, x: Tensor, values: Values) -> Tensor:
    return F.embedding(x, values["weight"], layer.padding_idx)


def _prelu(layer: Any, x: Tensor, values: Values) -> Tensor:
    slope = values["weight"].view(-1, *[1] * max(0, x.dim() - 2))  # one per channel, or one
    return torch.where(x > 0, x, x * slope)


VMAP_LAYERS: dict[type[nn.Module], Callable[[Any, Tensor, Values], Tensor]] = {
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
}
"""Layers that `VmapLayer` runs, and their functions: (layer, input of one member, parameters by name) -> output."""


def apply(function: type[torch.autograd.Function], *args: object) -> Tensor:
    """Call an autograd function that returns one tensor."""
    out = function.apply(*args)  # type: ignore[no-untyped-call]
    assert isinstance(out, Tensor)
    return out
