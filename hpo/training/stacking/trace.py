"""What the members' modules do, as one torch.fx graph, the same for all of them in training and at inference.

A module whose Python decides anything by member, by mode or by data is refused, by name where it has one; so is one
that torch.fx would record wrongly without a word, because it draws random numbers, switches gradients off, or keeps
something for its next call. A graph is what the module says, or there is none. Knows nothing of stacked tensors.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from hpo.errors import HpoError
from hpo.training.global_state import GLOBAL_STATE_LOCK
from hpo.training.stacking.supported import ADVICE, DROPOUT_LAYERS, METADATA_ARITHMETIC, TENSOR_METADATA


class CannotStackError(HpoError):
    """The module has a layer or function with no stacked form."""


_OF_TORCH = set(vars(nn.Module()))


@dataclass(frozen=True)
class Traced:
    """The members' graph, and the values of the tensors in it that are no parameters: target -> a value a member."""

    graph: fx.Graph
    tensors: dict[str, list[Tensor]]


def trace(members: Sequence[nn.Module]) -> Traced:
    """Return what all members' modules do; raise CannotStackError where there is no one graph of it."""
    first = members[0]
    training, inference = _graph(first, training=True), _graph(first, training=False)
    _require_same(training, inference, f"the forward of {type(first).__name__} does something else there at inference")
    graphs = [training]
    for member in members[1:]:
        _require_same_layers(first, member)
        plain = _comparable(first) and _comparable(member) and _attributes(first) == _attributes(member)
        graphs.append(training if plain else _graph(member, training=True))
        _require_same(training, graphs[-1], f"the forward of {type(first).__name__} differs there between members")
    for layer, module in first.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        require(not any(hooks), f"layer '{layer}' ({type(module).__name__})", "it has hooks")
    for parameter, value in first.named_parameters():
        require(value.requires_grad, f"'{parameter}'", "it is frozen, and every parameter is trained")
        require(not value._backward_hooks, f"'{parameter}'", "it has hooks")
    require(any(True for _ in first.parameters()), type(first).__name__, "it has no parameters")
    inputs = [node for node in training.graph.nodes if node.op == "placeholder" and node.users]
    require(len(inputs) <= 1, type(first).__name__, "its forward takes more than the images")
    return Traced(training.graph, _tensors(members, training, inference, graphs))


def architecture_of(module: nn.Module) -> str:
    """Return what a module does and in which shapes, as text: equal for modules that can share a stack.

    Not the values of its parameters and buffers, nor its dropout rates.
    """
    own = set(map(id, _own(module)))  # what these hold shows in the steps
    layers = [(n, _type(each), layer_settings(each)) for n, each in module.named_modules() if id(each) not in own]
    state = module.state_dict().items()  # what a module keeps as extra state may be no tensor
    shapes = [(name, value.dtype, *value.shape) for name, value in state if isinstance(value, Tensor)]
    try:
        steps = [_text(node) for node in _graph(module, training=True).graph.nodes]
    except CannotStackError as error:
        steps = [str(error)]
    return repr((_type(module), layers, shapes, steps))


def _type(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def require(holds: bool, what: str, why: str) -> None:
    """Refuse `what` unless the condition holds."""
    if not holds:
        raise CannotStackError(f"{what} cannot be stacked: {why}")


def equal(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same: type, shape and values."""
    return tensor.dtype == other.dtype and torch.equal(tensor, other)


def layer_settings(module: nn.Module) -> dict[str, str]:
    """Return the settings that a layer was made with, as text; a dropout rate is each member's own."""
    own = {"p"} if isinstance(module, DROPOUT_LAYERS) else set()
    return {name: repr(value) for name, value in vars(module).items() if name not in _OF_TORCH | own}


def is_metadata(node: fx.Node) -> bool:
    """Return whether the node's value is no tensor: a size, a type, a device, or a number made of them."""
    if node.op == "call_method":
        return node.target in TENSOR_METADATA
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in TENSOR_METADATA
    return node.target in METADATA_ARITHMETIC and all(is_metadata(used) for used in node.all_input_nodes)


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

    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def __init__(self) -> None:
        super().__init__()
        self._autocast = _autocast()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        name = type(self.root).__name__
        require(torch.is_grad_enabled(), name, "its forward switches gradients off; use detach() where it does")
        require(_autocast() == self._autocast, name, "its forward changes the type that torch computes in (autocast)")
        return super().create_node(*args, **kwargs)


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")]


@dataclass(frozen=True)
class _Recorded:
    """One module's graph, and the tensors that its Python made or took from elsewhere: name in the graph -> value."""

    graph: fx.Graph
    made: dict[str, Tensor]


def _graph(module: nn.Module, training: bool) -> _Recorded:
    tracer = _Tracer()
    name = type(module).__name__
    try:
        with GLOBAL_STATE_LOCK, _unchanged(module), torch.enable_grad():
            graph = tracer.trace(module.train(training))
            for layer, each in module.named_modules():
                what = f"layer '{layer}' ({type(each).__name__})"
                require(each.training == training, what, "it is in another mode than the network")
            made = {name: value for value, name in tracer.tensor_attrs.items() if isinstance(value, Tensor)}
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        advice = next((text for kind, text in ADVICE.items() if f"{kind!r}" in str(error)), None)
        reason = advice or (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotStackError(f"{name} cannot be stacked: {reason}") from error
    return _Recorded(graph, made)


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Leave the module as it is, and refuse it where its forward changed it: the graph would say so only once."""
    name = type(module).__name__
    before = {each: _held(each) for each in module.modules()}
    versions = [
        (value, value._version) for held in before.values() for value in held.values() if isinstance(value, Tensor)
    ]
    modes = {each: each.training for each in before}
    drawn = _random_states()
    try:
        yield
        for each, held in before.items():
            after = {key: value for key, value in _held(each).items() if not key.startswith("_tensor_constant")}
            for key in (*held, *after):
                same = key in held and key in after and held[key] is after[key]
                require(same, name, f"its forward changes '{key}', which its next call would see")
        require(all(value._version == v for value, v in versions), name, "its forward changes a tensor that it keeps")
        require(_random_states() == drawn, name, "its forward draws random numbers outside of a layer")
    finally:
        for each, held in before.items():
            _restore(each, held)
            each.training = modes[each]


def _held(module: nn.Module) -> dict[str, Any]:
    """Return what a module holds, by name: attributes, parameters, buffers and modules."""
    own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH}
    return {**own, **module._parameters, **module._buffers, **module._modules}


def _restore(module: nn.Module, held: dict[str, Any]) -> None:
    for name in _held(module).keys() - held.keys():
        delattr(module, name)
    for values in (module._parameters, module._buffers, vars(module)):
        for name, value in held.items():
            if name in values:
                values[name] = value


def _random_states() -> tuple[Any, ...]:
    numpys = np.random.get_state(legacy=False)  # the one that users' code may draw from
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpys["state"]["key"].tobytes(),
        numpys["state"]["pos"],
    )


def _require_same(first: _Recorded, other: _Recorded, why: str) -> None:
    for node, counterpart in zip_longest(first.graph.nodes, other.graph.nodes):
        require(_text(node) == _text(counterpart), f"'{(node or counterpart).name}'", why)


def _tensors(
    members: Sequence[nn.Module], training: _Recorded, inference: _Recorded, graphs: Sequence[_Recorded]
) -> dict[str, list[Tensor]]:
    """Return the values of the graph's tensors that are no parameters; those that Python made are equal for all."""
    found: dict[str, list[Tensor]] = {}
    parameters = dict(members[0].named_parameters(remove_duplicate=False))
    for target in {str(node.target) for node in training.graph.nodes if node.op == "get_attr"} - parameters.keys():
        if target in training.made:
            found[target] = [each.made[target] for each in graphs]
            same = all(equal(found[target][0], other) for other in (*found[target], inference.made[target]))
            what = f"a tensor of {type(members[0]).__name__}"
            require(same, what, "it is no buffer, and differs between members or calls; make it a buffer")
        else:
            owner, _, name = target.rpartition(".")
            found[target] = [getattr(member.get_submodule(owner), name) for member in members]
    return found


def _text(node: fx.Node | None) -> str:
    return "" if node is None else f"{node.name} {node.op} {node.target} {node.args} {node.kwargs}"


def _require_same_layers(first: nn.Module, member: nn.Module) -> None:
    for (name, layer), (other_name, other) in zip(first.named_modules(), member.named_modules(), strict=False):
        what = f"layer '{name}' ({type(layer).__name__})"
        require(not is_parametrized(layer), what, "its parameters are made of others (torch.nn.utils.parametrize)")
        require(name == other_name and type(layer) is type(other), what, "the members differ in it")
    shapes, others = ({name: value.shape for name, value in each.state_dict().items()} for each in (first, member))
    for name in [*shapes, *others]:
        require(shapes.get(name) == others.get(name), f"'{name}'", "the members differ in its shape")


def _own(module: nn.Module) -> list[nn.Module]:
    """Return the modules whose forward methods were opened."""
    return [each for each in module.modules() if not type(each).__module__.startswith("torch.nn")]


def _attributes(module: nn.Module) -> list[dict[str, str]]:
    """Return what the forward methods of the user's own modules may depend on."""
    own = _own(module)
    return [{name: repr(value) for name, value in vars(each).items() if name not in _OF_TORCH} for each in own]


def _comparable(module: nn.Module) -> bool:
    """Return whether the text of every attribute says all of it."""
    held = (value for each in _own(module) for name, value in vars(each).items() if name not in _OF_TORCH)
    return all(_is_plain(value) for value in held)


def _is_plain(value: object) -> bool:
    if type(value) in (tuple, list, set):
        return all(_is_plain(each) for each in value)  # type: ignore[attr-defined]  # one of the three
    return value is None or type(value) in (bool, int, float, str, FunctionType)
