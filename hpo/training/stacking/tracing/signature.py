"""Describe all that the graph of a module depends on, so that modules of one description can share a graph.

Dropout rates, in which members may differ, and Python code outside of the module are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import FunctionType

import torch
from torch import nn

from hpo.training.stacking.tracing.supported import DROPOUT_LAYERS, SEQUENCE_LAYERS

MODULE_ATTRIBUTES = set(vars(nn.Module()))
"""Attributes that every torch module has."""


@dataclass(frozen=True)
class Signature:
    """Layers, attributes and shapes of a module.

    `functions` are those among the attributes. While they exist, no other function has their text, which is an address.
    """

    layers: list[tuple[str, type[nn.Module], dict[str, str]]]
    shapes: list[tuple[str, torch.Size]]
    functions: list[FunctionType] = field(compare=False)


def signature_of(module: nn.Module) -> Signature | None:
    """Return the module's signature, or None where an attribute has no comparable text."""
    layers, functions = [], list[FunctionType]()
    for name, layer in module.named_modules():
        ignored = _ignored_attributes(layer)
        attributes = [value for key, value in vars(layer).items() if key not in ignored]
        if not all(_is_plain(value, functions) for value in attributes):
            return None
        layers.append((name, type(layer), layer_settings(layer)))
    tensors = (*module.named_parameters(), *module.named_buffers())  # a tensor with two names is listed once
    return Signature(layers, [(name, value.shape) for name, value in tensors], functions)


def _is_plain(value: object, functions: list[FunctionType]) -> bool:
    """Return whether equal text means an equal value; append the value's functions to `functions`.

    A function that was defined in another function is not plain: it may refer to a member.
    """
    if type(value) in (tuple, list, set):
        return all(_is_plain(each, functions) for each in value)  # type: ignore[attr-defined]  # one of the three
    if isinstance(value, FunctionType):
        functions.append(value)
        return "<locals>" not in value.__qualname__
    return value is None or type(value) in (bool, int, float, str)


def layer_settings(module: nn.Module) -> dict[str, str]:
    """Return a layer's constructor settings as text, without dropout rates, in which members may differ."""
    ignored = _ignored_attributes(module)
    return {name: repr(value) for name, value in vars(module).items() if name not in ignored}


def _ignored_attributes(module: nn.Module) -> set[str]:
    if type(module) in DROPOUT_LAYERS:
        return MODULE_ATTRIBUTES | {"p"}
    if type(module) in SEQUENCE_LAYERS:
        return MODULE_ATTRIBUTES | {"dropout", "_flat_weights", "_flat_weight_refs"}  # the last two repeat parameters
    return MODULE_ATTRIBUTES
