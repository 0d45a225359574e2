"""How a function or method of a traced network runs for K members.

A value is shared ([B, ...], the same for all members), stacked ([K, B, ...]) or a fact (a size, a type: no tensor).
Whatever a function is given that is stacked makes its result stacked. Knows nothing of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from hpo.training.stacking.in_place import changes_argument, require_unread, without_in_place
from hpo.training.stacking.supported import (
    ADVICE,
    ELEMENTWISE_FUNCTIONS,
    IN_PLACE_REPLACEMENTS,
    MEMBERWISE_FUNCTIONS,
    POOLING_FUNCTIONS,
    READABLE_ATTRIBUTES,
    SIZE_CONSTRUCTORS,
)
from hpo.training.stacking.trace import CannotStackError, is_metadata, require

Values = dict[str, Any]
"""The values of nodes, by the node's name."""

Run = Callable[[Values, Tensor, bool], Any]
"""What a node does: the values so far, the images, whether it is training -> the node's value."""


def group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """`F.group_norm` as a layer norm of each group, because torch.vmap does not know its own on images."""
    require(x.shape[1] % num_groups == 0, "'group_norm'", f"{x.shape[1]} channels are not {num_groups} equal groups")
    groups = x.reshape(len(x), num_groups, -1)
    out = F.layer_norm(groups, groups.shape[-1:], eps=eps).reshape(x.shape)
    of_channels = (-1, *[1] * (x.dim() - 2))
    out = out if weight is None else out * weight.view(of_channels)
    return out if bias is None else out + bias.view(of_channels)


_INSTEAD: dict[Any, Any] = {"view": "reshape", "view_as": "reshape_as", F.group_norm: group_norm}
"""What runs in place of some: a view of one member may be none in the stack, where memory has another order."""


def run_function(node: fx.Node, root: torch.nn.Module, stacked: set[fx.Node]) -> Run:
    """Return how to run the function or method that `node` calls; raise CannotStackError where there is no way."""
    target: Any = IN_PLACE_REPLACEMENTS.get(node.target, node.target)
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if is_metadata(node):
        return _fact(node, stacked)
    if changes_argument(node):
        require_unread(node, root)
    args, fixed = without_in_place(node)
    what = f"'{name}'" if name == node.name else f"'{name}' at node '{node.name}'"
    require(fixed.get("out") is None, what, "it writes into another tensor")
    bits = name == "view" and torch.dtype in map(type, (*args, *fixed.values()))
    require(not bits, what, "it takes the bits for another type")
    require(name != "where" or len(args) + len(fixed) == 3, what, "without two tensors to choose from")
    if target is getattr:
        require(node.args[1] in READABLE_ATTRIBUTES, what, f"the attribute '{node.args[1]}' is not known")
    function = _INSTEAD.get(target, target)
    function = _method(function) if node.op == "call_method" else function
    call = _Call(function, args, fixed, node.all_input_nodes, stacked)
    if target in ELEMENTWISE_FUNCTIONS:
        return call.elementwise
    if target in POOLING_FUNCTIONS:
        require(not fixed.get("return_indices"), what, "it returns indices")
        require(len(call.used) == 1, what, "its sizes must be numbers")
        return partial(call.pooling, POOLING_FUNCTIONS[target])
    if target is F.scaled_dot_product_attention:
        require(not fixed.get("dropout_p") and not any(args[4:5]), what, "dropout_p must be 0; use nn.Dropout")
        require("enable_gqa" not in fixed, what, "enable_gqa is not known")
        return replace(call, function=_attention).elementwise
    if target in MEMBERWISE_FUNCTIONS or (target in SIZE_CONSTRUCTORS and all(map(is_metadata, node.all_input_nodes))):
        return call.memberwise
    raise CannotStackError(f"{what} cannot be stacked: {ADVICE.get(target, 'there is no stacked form of it')}")


def memberwise(function: Callable[..., Any], values: list[Any]) -> Any:
    """Return function(*values) of each member, stacked: all dimensions in it are those of one member."""
    return torch.vmap(function)(*values)


def pooled(pool: Callable[[Tensor], Tensor], dims: int, x: Tensor, stacked: bool) -> Tensor:
    """Run a pooling over the last `dims` dimensions: members are folded into channels, where convolutions have them."""
    if not stacked:
        return pool(x)
    channels = x.dim() - dims - 1  # [K, C, ...] is one image a member, as torch takes it
    require(channels in (1, 2), "a pooling", f"its input has {x.dim() - 1} dimensions")
    out = pool(x.flatten(0, 1) if channels == 1 else x.transpose(0, 1).flatten(1, 2))
    require(isinstance(out, Tensor), "a pooling", "it returns indices")
    if channels == 1:
        return torch.unflatten(out, 0, x.shape[:2])
    return torch.unflatten(out, 1, (x.shape[0], -1)).transpose(0, 1)


def _method(name: Any) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs)


def _fact(node: fx.Node, stacked: set[fx.Node]) -> Run:
    """A fact about a stacked tensor is one about its first member's."""
    function = _method(node.target) if node.op == "call_method" else node.target
    assert callable(function)

    def run(values: Values, x: Tensor, training: bool) -> Any:
        given = {used: values[used.name][0] if used in stacked else values[used.name] for used in node.all_input_nodes}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class _Call:
    """A function with its arguments, in which nodes stand for their values; and the ways to run it for all members."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    used: list[fx.Node]
    stacked: set[fx.Node]

    def on(self, values: dict[fx.Node, Any]) -> Any:
        """Call the function with these values."""
        args, kwargs = fx.node.map_arg((self.args, self.kwargs), values.__getitem__)
        return self.function(*args, **kwargs)

    def memberwise(self, values: Values, x: Tensor, training: bool) -> Any:
        """Call it on each member's own values, through torch.vmap; once where all of them are shared."""
        known = {node: values[node.name] for node in self.used}
        own = [node for node in self.used if node in self.stacked]
        if not own:
            return self.on(known)
        return memberwise(lambda *parts: self.on(known | dict(zip(own, parts, strict=True))), [known[n] for n in own])

    def elementwise(self, values: Values, x: Tensor, training: bool) -> Any:
        """Call it on the stacked values."""
        return self.on(self._aligned({node: values[node.name] for node in self.used}))

    def pooling(self, dims: int, values: Values, x: Tensor, training: bool) -> Any:
        """Call it on images or sequences that have all members' channels."""
        (node,) = self.used
        return pooled(lambda image: self.on({node: image}), dims, values[node.name], node in self.stacked)

    def _aligned(self, values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        """Return the values with the members' dimension in line: broadcasting lines shapes up from the last one."""
        ranks = {node: v.dim() - (node in self.stacked) for node, v in values.items() if isinstance(v, Tensor)}
        most = max(ranks.values(), default=0)
        low = {node: values[node] for node, rank in ranks.items() if node in self.stacked and rank < most}
        return values | {
            node: value.reshape(len(value), *[1] * (most - ranks[node]), *value.shape[1:])
            for node, value in low.items()
        }


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Attention over values whose leading dimensions broadcast: brought to two, as torch's fast kernels want them."""
    given = [query, key, value] if attn_mask is None else [query, key, value, attn_mask]
    lead = torch.Size(torch.broadcast_shapes(*(each.shape[:-2] for each in given)))  # type: ignore[no-untyped-call]
    sizes = tuple(lead) if len(lead) < 3 else (math.prod(lead[:-1]), lead[-1])
    q, k, v = (each.expand(*lead, *each.shape[-2:]).reshape(*sizes, *each.shape[-2:]) for each in given[:3])
    if attn_mask is not None and attn_mask.dim() > 2:
        attn_mask = attn_mask.expand(*lead, *attn_mask.shape[-2:]).reshape(*sizes, *attn_mask.shape[-2:])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, scale=scale)
    return out.reshape(*lead, *out.shape[-2:])
