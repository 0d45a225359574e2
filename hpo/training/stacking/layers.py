"""What has parameters, in stacked form: one object runs the same layer of K members.

Shapes are logical: a stacked activation is [K, B, ...], whatever its strides are. In memory a linear layer's output is
[K, units, B]: the next product then reads and writes contiguous blocks, elementwise operations keep the strides, and
nothing has to be copied in between.

A layer is a `torch.autograd.Function` whose backward writes the parameters' gradients into their blocks; or, where that
does not pay, a function of parameters that do so (`PerMember`). Convolutions, batch norm and dropout have modules of
their own. Knows nothing of networks, optimizers or trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.training.stacking.functions import group_norm
from hpo.training.stacking.parameter_blocks import ParameterSlot
from hpo.training.stacking.trace import require


class StackedLayer(Protocol):
    """The stacked form of one layer."""

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Fetch the layer's parameters: at first, and again after members left."""

    def select(self, members: Tensor) -> None:
        """Keep only these members in what the layer holds itself: statistics, rates."""

    def buffers(self) -> dict[str, Tensor]:
        """Return the layer's buffers by their names in the module's state, [K, ...] each."""

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """Run the layer: `x` is [K, B, ...] if it is stacked, or [B, ...] where all members still share it."""


class Stateless:
    """What holds nothing of its own: a base of layers that are their parameters, and of what they do."""

    def select(self, members: Tensor) -> None:
        """Nothing of its own."""

    def buffers(self) -> dict[str, Tensor]:
        """None."""
        return {}


class Weighted(Stateless):
    """A layer with a weight and maybe a bias, under its module's name."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._name, self._has_bias = name, module.bias is not None

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Fetch weight and bias."""
        self._weight = slots[f"{self._name}.weight"]
        self._bias = slots[f"{self._name}.bias"] if self._has_bias else None


class _LinearFunction(torch.autograd.Function):
    """`in_rows`: the output lies in memory as [K, rows, units], which what comes after a sequence reads."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        slots: tuple[ParameterSlot, ParameterSlot | None],
        in_rows: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.slots, ctx.in_rows = slots, in_rows
        members, units, features = weight.shape
        if in_rows:
            wide = x.expand(members, *x.shape) if x.dim() == 2 else x
            turned = weight.transpose(1, 2)
            return torch.bmm(wide, turned) if bias is None else torch.baddbmm(bias.unsqueeze(1), wide, turned)
        if x.dim() == 2:  # shared: one GEMM for all members
            out = (weight.view(members * units, features) @ x.t()).view(members, units, -1)
            if bias is not None:
                out.add_(bias.unsqueeze(-1))
        elif bias is not None:
            out = torch.baddbmm(bias.unsqueeze(-1), weight, x.transpose(1, 2))
        else:
            out = torch.bmm(weight, x.transpose(1, 2))
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        x, weight = ctx.saved_tensors
        weight_slot, bias_slot = ctx.slots
        members, units, features = weight.shape
        grad = grads[0].transpose(1, 2)  # [K, units, B]
        if x.dim() == 2:
            flat = grad.reshape(members * units, -1)
            weight_slot.write(lambda into: torch.mm(flat, x, out=into.view(members * units, features)))
        else:
            weight_slot.write(lambda into: torch.bmm(grad, x, out=into))
        if bias_slot is not None:
            bias_slot.write(lambda into: torch.sum(grad, -1, out=into))
        found = None
        if ctx.needs_input_grad[0]:
            turned = ctx.in_rows and x.dim() == 3
            found = torch.bmm(grads[0], weight) if turned else torch.bmm(weight.transpose(1, 2), grad).transpose(1, 2)
        return found, None, None, None, None


class Linear(Weighted):
    """`nn.Linear` of K members."""

    def __init__(self, name: str, modules: Sequence[nn.Linear]) -> None:
        super().__init__(name, modules[0])

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """[K, ..., features] or [..., features] -> [K, ..., units]."""
        bias, between = self._bias, x.shape[stacked:-1]
        rows = x if len(between) == 1 else x.reshape(*x.shape[:stacked], -1, x.shape[-1])
        weight, in_rows = self._weight.value, len(between) > 1
        out = apply(_LinearFunction, rows, weight, bias and bias.value, (self._weight, bias), in_rows)
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


class Parameter(Stateless):
    """A parameter that is used outside of a layer, of K members."""

    def __init__(self, name: str) -> None:
        self._name = name

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Fetch the parameter."""
        self._slot = slots[self._name]

    def __call__(self, x: Tensor, stacked: bool = True, training: bool = True) -> Tensor:
        """Return the parameter, [K, ...], whatever `x` is."""
        return apply(_ParameterFunction, self._slot.value, self._slot)


class Buffer:
    """A tensor that forward reads and nobody changes, of K members: [K, ...], floating-point in the type of compute."""

    def __init__(self, values: Sequence[Tensor], compute: torch.dtype) -> None:
        value = torch.stack([each.detach() for each in values])
        self._value = value.to(compute) if value.is_floating_point() else value

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """No parameters."""

    def select(self, members: Tensor) -> None:
        """Keep these members' values."""
        self._value = self._value[members]

    def buffers(self) -> dict[str, Tensor]:
        """None: it never changes, so the module's state has it as it was."""
        return {}

    def __call__(self, x: Tensor, stacked: bool = True, training: bool = True) -> Tensor:
        """Return the values, [K, ...], whatever `x` is."""
        return self._value


class PerMember(Stateless):
    """A layer that is a function of its input and its parameters alone, run for each member through torch.vmap."""

    def __init__(self, name: str, modules: Sequence[nn.Module]) -> None:
        self._module, self._function = modules[0], PER_MEMBER[type(modules[0])]
        self._parameters = {own: Parameter(f"{name}.{own}") for own, _ in modules[0].named_parameters()}

    def bind(self, slots: dict[str, ParameterSlot]) -> None:
        """Fetch the parameters."""
        for parameter in self._parameters.values():
            parameter.bind(slots)

    def __call__(self, x: Tensor, stacked: bool, training: bool) -> Tensor:
        """[K, B, ...] or [B, ...] -> what the layer makes of it for each member."""
        values = [parameter(x) for parameter in self._parameters.values()]

        def one(x: Tensor, *values: Tensor) -> Tensor:
            return self._function(self._module, x, dict(zip(self._parameters, values, strict=True)))

        return torch.vmap(one, in_dims=(0 if stacked else None, *[0] * len(values)))(x, *values)


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
    slope = values["weight"].view(-1, *[1] * max(0, x.dim() - 2))  # of channels, or one
    return torch.where(x > 0, x, x * slope)


PER_MEMBER: dict[type[nn.Module], Callable[[Any, Tensor, Values], Tensor]] = {
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _rms_norm,
    nn.GroupNorm: _group_norm,
    nn.InstanceNorm1d: _instance_norm,
    nn.InstanceNorm2d: _instance_norm,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
}
"""Layers that PerMember runs, and what they are a function of: settings, input, parameters by name."""


def apply(function: type[torch.autograd.Function], *args: object) -> Tensor:
    """Apply an autograd function that returns one tensor."""
    out = function.apply(*args)  # type: ignore[no-untyped-call]
    assert isinstance(out, Tensor)
    return out
