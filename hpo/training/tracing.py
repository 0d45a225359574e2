"""What the members' modules do, as one torch.fx graph, the same for all of them in training and at inference.

A module whose Python decides anything by member, by mode or by data is refused, by name where it has one: a graph is
what the module says, or there is none. Knows nothing of stacked tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import zip_longest

import torch
from torch import fx, nn

from hpo.errors import HpoError
from hpo.training.process_wide import ONE_THREAD


class CannotStackError(HpoError):
    """The module has a layer or function with no stacked form."""


VIEWS = {torch.flatten, torch.reshape, "flatten", "view", "reshape"}
VIEWING_LAYERS = (nn.Flatten, nn.Identity, nn.Dropout)
"""What may return its argument's memory, dropout at inference among them."""

AUGMENTED = {operator.iadd, operator.isub, operator.imul, operator.itruediv}
SIZE_ARITHMETIC = {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, *AUGMENTED}

_OF_TORCH = set(vars(nn.Module()))


def trace(members: Sequence[nn.Module]) -> fx.Graph:
    """Return the graph that all members' modules have; raise CannotStackError where there is none."""
    first = members[0]
    training, inference = _graph(first, training=True), _graph(first, training=False)
    name = type(first).__name__
    for node, other in zip_longest(training.nodes, inference.nodes):
        place = f"'{(node or other).name}'"
        require(_text(node) == _text(other), place, f"the forward of {name} does something else there at inference")
    for member in members[1:]:
        _require_same_layers(first, member)
        if _attributes(member) != _attributes(first):
            for node, other in zip_longest(training.nodes, _graph(member, training=True).nodes):
                place = f"'{(node or other).name}'"
                require(_text(node) == _text(other), place, f"the forward of {name} differs there between members")
    for layer, module in first.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        require(not any(hooks), f"layer '{layer}' ({type(module).__name__})", "it has hooks")
    for parameter, value in first.named_parameters():
        require(value.requires_grad, f"'{parameter}'", "it is frozen, and every parameter is trained")
    require(any(True for _ in first.parameters()), name, "it has no parameters")
    inputs = [node for node in training.nodes if node.op == "placeholder" and node.users]
    require(len(inputs) <= 1, name, "its forward takes more than the images")
    return training


def require(holds: bool, what: str, why: str) -> None:
    """Refuse `what` unless the condition holds."""
    if not holds:
        raise CannotStackError(f"{what} cannot be stacked: {why}")


def layer_settings(module: nn.Module) -> dict[str, str]:
    """Return the settings that a layer was made with, as text; a dropout rate is each member's own."""
    own = {"p"} if isinstance(module, nn.Dropout) else set()
    return {name: repr(value) for name, value in vars(module).items() if name not in _OF_TORCH | own}


def require_unread(node: fx.Node, root: nn.Module) -> None:
    """Refuse an in-place call whose argument, or another view of it, is read after it: it would be read unchanged."""
    order = {each: place for place, each in enumerate(node.graph.nodes)}
    sharing, todo = set[fx.Node](), node.all_input_nodes[:1]
    while todo:
        each = todo.pop()
        sharing.add(each)
        near = [user for user in each.users if user is not node and _shares(user, each, root)]
        near += [source for source in each.all_input_nodes[:1] if _shares(each, source, root)]
        todo += [other for other in near if other not in sharing]
    later = any(order[user] > order[node] for each in sharing for user in each.users)
    require(not later and bool(node.users), f"'{node.name}'", "what it changes in place is read again later")


def is_size(node: fx.Node) -> bool:
    """Return whether the node's value is a size (numbers), not a tensor."""
    if node.op == "call_method" and node.target == "size":
        return True
    if node.op == "call_function" and node.target is getattr:
        return True
    if node.op == "call_function" and node.target in SIZE_ARITHMETIC:
        return all(is_size(used) for used in node.all_input_nodes)
    return False


class _Proxy(fx.Proxy):
    """Records `x += y` as what it is: torch.fx alone takes it for `x = x + y`, though x may have another name."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Traces with the user's own modules opened and torch's layers as leaves."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _graph(module: nn.Module, training: bool) -> fx.Graph:
    modes = {each: each.training for each in module.modules()}
    try:
        with ONE_THREAD:
            return _Tracer().trace(module.train(training))
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotStackError(f"{type(module).__name__} cannot be stacked: {reason}") from error
    finally:
        for each, mode in modes.items():
            each.training = mode


def _text(node: fx.Node | None) -> str:
    return "" if node is None else f"{node.name} {node.op} {node.target} {node.args} {node.kwargs}"


def _require_same_layers(first: nn.Module, member: nn.Module) -> None:
    for (name, layer), (other_name, other) in zip(first.named_modules(), member.named_modules(), strict=False):
        require(name == other_name and type(layer) is type(other), f"layer '{name}'", "the members differ in it")
    shapes, others = ({name: value.shape for name, value in each.state_dict().items()} for each in (first, member))
    for name in [*shapes, *others]:
        require(shapes.get(name) == others.get(name), f"'{name}'", "the members differ in its shape")


def _attributes(module: nn.Module) -> list[dict[str, str]]:
    """Return what the forward methods of the user's own modules may depend on."""
    own = [each for each in module.modules() if not type(each).__module__.startswith("torch.nn")]
    return [{name: repr(value) for name, value in vars(each).items() if name not in _OF_TORCH} for each in own]


def _shares(node: fx.Node, source: fx.Node, root: nn.Module) -> bool:
    """Return whether the node's value may share memory with `source`, its first argument."""
    if source not in node.all_input_nodes[:1]:
        return False
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return isinstance(module, VIEWING_LAYERS) or bool(getattr(module, "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    changes = name.endswith("_") or node.target in AUGMENTED or bool(node.kwargs.get("inplace"))
    return node.target in VIEWS or changes
