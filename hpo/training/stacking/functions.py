"""Run the functions and methods of a traced network for K members.

A value is shared ([B, ...], the same for all members), stacked ([K, B, ...]) or tensor metadata (a size, a type). A
function with a stacked argument has a stacked result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hpo.training.stacking.tracing.in_place import changes_argument, require_not_read_later, without_in_place
from hpo.training.stacking.tracing.supported import (
    ADVICE,
    ELEMENTWISE_FUNCTIONS,
    IN_PLACE_REPLACEMENTS,
    MEMBERWISE_FUNCTIONS,
    POOLING_FUNCTIONS,
    READABLE_ATTRIBUTES,
    SIZE_CONSTRUCTORS,
)
from hpo.training.stacking.tracing.trace import CannotStackError, is_metadata, require

Values = dict[str, Any]
"""Node name -> value of the node."""

Run = Callable[[Values, Tensor, bool], Any]
"""Computation of a node: (values of earlier nodes, examples, True in training) -> value of the node."""

Step = tuple[str, Run, list[str]]
"""Name of a node, its computation, and the nodes whose values are no longer needed afterwards."""


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Compute `F.group_norm` as a layer norm of each group, because torch.vmap does not support it on images."""
    require(x.shape[1] % num_groups == 0, "'group_norm'", f"{x.shape[1]} channels are not {num_groups} equal groups")
    groups = x.reshape(len(x), num_groups, -1)
    out = F.layer_norm(groups, groups.shape[-1:], eps=eps).reshape(x.shape)
    of_channels = (-1, *[1] * (x.dim() - 2))
    out = out if weight is None else out * weight.view(of_channels)
    return out if bias is None else out + bias.view(of_channels)


_REPLACEMENTS: dict[Any, Any] = {"view": "reshape", "view_as": "reshape_as", F.group_norm: group_norm}
"""Functions run instead: a view of one member may not be a view of the stack, whose memory order differs."""


def run_function(node: fx.Node, root: torch.nn.Module, stacked: set[fx.Node]) -> Run:
    """Return the computation of a node that calls a function or method.

    `root` is the module that was traced, `stacked` the nodes with stacked values. Raises CannotStackError for a
    function or an argument without a stacked form.
    """
    target: Any = IN_PLACE_REPLACEMENTS.get(node.target, node.target)
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if is_metadata(node):
        return _metadata(node, stacked)
    if changes_argument(node):
        require_not_read_later(node, root)
    args, kwargs = without_in_place(node)
    call_name = f"'{name}'" if name == node.name else f"'{name}' at node '{node.name}'"
    require(kwargs.get("out") is None, call_name, "it writes into another tensor")
    reinterprets = name == "view" and torch.dtype in map(type, (*args, *kwargs.values()))
    require(not reinterprets, call_name, "it reinterprets the bits as another type")
    require(name != "where" or len(args) + len(kwargs) == 3, call_name, "it needs three arguments")
    if target is getattr:
        require(node.args[1] in READABLE_ATTRIBUTES, call_name, f"the attribute '{node.args[1]}' is not supported")
    function = _REPLACEMENTS.get(target, target)
    function = _method(function) if node.op == "call_method" else function
    call = _Call(function, args, kwargs, node.all_input_nodes, stacked)
    if target in ELEMENTWISE_FUNCTIONS:
        return call.elementwise
    if target in POOLING_FUNCTIONS:
        require(not kwargs.get("return_indices"), call_name, "it returns indices")
        require(len(call.used) == 1, call_name, "its sizes must be numbers")
        return partial(call.pooling, POOLING_FUNCTIONS[target])
    if target is F.scaled_dot_product_attention:
        require(not kwargs.get("dropout_p") and not any(args[4:5]), call_name, "dropout_p must be 0; use nn.Dropout")
        require("enable_gqa" not in kwargs, call_name, "enable_gqa is not supported")
        return replace(call, function=attention).elementwise
    if target in MEMBERWISE_FUNCTIONS or (target in SIZE_CONSTRUCTORS and all(map(is_metadata, node.all_input_nodes))):
        return call.memberwise
    raise CannotStackError(f"{call_name} cannot be stacked: {ADVICE.get(target, 'there is no stacked form of it')}")


def memberwise(function: Callable[..., Any], values: list[Any]) -> Any:
    """Return function(*values) of each member, stacked [K, ...]; the function works on the tensors of one member."""
    return torch.vmap(function)(*values)


def pooled(pool: Callable[[Tensor], Tensor], dims: int, x: Tensor, stacked: bool) -> Tensor:
    """Run a pooling over the last `dims` dimensions, with the members of a stacked input as further channels.

    Returns [K, B, C, ...] for a stacked `x`, else [B, C, ...].
    """
    if not stacked:
        return pool(x)
    channels = x.dim() - dims - 1  # 1 for [K, C, ...]: one example without a batch dimension, as torch allows
    require(channels in (1, 2), "a pooling", f"its input has {x.dim() - 1} dimensions")
    out = pool(x.flatten(0, 1) if channels == 1 else x.transpose(0, 1).flatten(1, 2))
    require(isinstance(out, Tensor), "a pooling", "it returns indices")
    if channels == 1:
        return torch.unflatten(out, 0, x.shape[:2])
    return torch.unflatten(out, 1, (x.shape[0], -1)).transpose(0, 1)


def _method(name: Any) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _metadata(node: fx.Node, stacked: set[fx.Node]) -> Run:
    """Return the computation of a metadata node; the metadata of a stacked tensor are those of its first member."""
    function = _method(node.target) if node.op == "call_method" else node.target
    assert callable(function)

    def run(values: Values, x: Tensor, training: bool) -> Any:
        inputs = {used: values[used.name][0] if used in stacked else values[used.name] for used in node.all_input_nodes}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
        return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class _Call:
    """A function call of the graph: arguments contain nodes in the place of their values.

    `used` are these nodes, `stacked` all nodes with stacked values. The methods are the kinds of stacked forms.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    used: list[fx.Node]
    stacked: set[fx.Node]

    def on(self, values: dict[fx.Node, Any]) -> Any:
        """Call the function with these values of the nodes."""
        args, kwargs = fx.node.map_arg((self.args, self.kwargs), values.__getitem__)
        return self.function(*args, **kwargs)

    def memberwise(self, values: Values, x: Tensor, training: bool) -> Any:
        """Call the function for each member through torch.vmap, or once if no value is stacked."""
        inputs = {node: values[node.name] for node in self.used}
        stacked = [node for node in self.used if node in self.stacked]
        if not stacked or self._takes_one_result(inputs):
            return self.on(inputs)
        return memberwise(
            lambda *parts: self.on(inputs | dict(zip(stacked, parts, strict=True))), [inputs[node] for node in stacked]
        )

    def _takes_one_result(self, inputs: dict[fx.Node, Any]) -> bool:
        """Return whether the call takes one of several results by its number."""
        return self.function is operator.getitem and isinstance(inputs[self.used[0]], tuple)

    def elementwise(self, values: Values, x: Tensor, training: bool) -> Any:
        """Call the function on the stacked values."""
        return self.on(self._aligned({node: values[node.name] for node in self.used}))

    def pooling(self, dims: int, values: Values, x: Tensor, training: bool) -> Any:
        """Call the function on a tensor with the channels of all members."""
        (node,) = self.used
        return pooled(lambda image: self.on({node: image}), dims, values[node.name], node in self.stacked)

    def _aligned(self, values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Return the values, with stacked ones reshaped to equal rank: broadcasting aligns the last dimensions."""
        ranks = {node: v.dim() - (node in self.stacked) for node, v in values.items() if isinstance(v, Tensor)}
        highest = max(ranks.values(), default=0)
        lower = {node: values[node] for node, rank in ranks.items() if node in self.stacked and rank < highest}
        return values | {
            node: value.reshape(len(value), *[1] * (highest - ranks[node]), *value.shape[1:])
            for node, value in lower.items()
        }


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute `F.scaled_dot_product_attention` with leading dimensions that broadcast.

    They are merged into two, which torch's fast kernels require.
    """
    inputs = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
    lead = torch.Size(torch.broadcast_shapes(*(each.shape[:-2] for each in inputs)))  # type: ignore[no-untyped-call]
    sizes = tuple(lead) if len(lead) < 3 else (math.prod(lead[:-1]), lead[-1])
    q, k, v = (each.expand(*lead, *each.shape[-2:]).reshape(*sizes, *each.shape[-2:]) for each in inputs[:3])
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:]).reshape(*sizes, *attn_mask.shape[-2:])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    return out.reshape(*lead, *out.shape[-2:])
