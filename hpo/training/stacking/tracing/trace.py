"""Trace the members' modules with torch.fx into one graph, valid for all members, in training and in evaluation.

CannotStackError, with the name of the layer or node, is raised for a module whose Python code depends on the member,
the mode or the data. It is also raised where torch.fx would silently record something wrong: a forward that draws
random numbers, disables gradients, or stores something for its next call.

A `TraceCache` stores the graph of an architecture for members of later populations. It refers to no member. Modules are
traced each time where their graph may depend on the member: where an attribute has no comparable text, or where the
forward reads the values of tensors or creates constant tensors.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from hpo.errors import HpoError
from hpo.training.global_locks import GLOBAL_STATE_LOCK
from hpo.training.stacking.tracing.signature import MODULE_ATTRIBUTES, Signature, layer_settings, signature_of
from hpo.training.stacking.tracing.supported import ADVICE, METADATA_ARITHMETIC, TENSOR_METADATA
from hpo.training.stacking.tracing.transformer import TRANSFORMERS


class CannotStackError(HpoError):
    """A module cannot be stacked, or its stacked form gives other results than the module alone."""


@dataclass(frozen=True)
class Traced:
    """The members' graph, and its tensors that are not parameters: target -> one value per member."""

    graph: fx.Graph
    tensors: dict[str, list[Tensor]]


class TraceCache:
    """The last graph of one architecture (`architecture_of`), for further members of it.

    A graph may depend on dropout rates, which a signature leaves out: use another cache for each architecture.
    """

    def __init__(self) -> None:
        self._stored: tuple[Signature, fx.Graph] | None = None

    def graph(self, signature: Signature) -> fx.Graph | None:
        """Return the stored graph if it is that of modules of this signature."""
        return self._stored[1] if self._stored is not None and self._stored[0] == signature else None

    def store(self, signature: Signature, graph: fx.Graph) -> None:
        """Store the graph of modules of this signature; it replaces the last one."""
        self._stored = (signature, graph)


def trace(members: Sequence[nn.Module], cache: TraceCache | None = None) -> Traced:
    """Return the graph that all members share; raise CannotStackError where there is none.

    The graph is read from `cache`, or stored there if members of later calls can share it.
    """
    first = members[0]
    name = type(first).__name__
    signature = signature_of(first)
    graph = cache.graph(signature) if cache is not None and signature is not None else None
    if graph is not None:
        training = evaluation = _Recorded(graph)
    else:
        training, evaluation = _graph(first, training=True), _graph(first, training=False)
        _require_same_graph(
            training, evaluation, f"from this node on, the forward of {name} differs in evaluation mode"
        )
        if training.reads_values or evaluation.reads_values:
            signature = None
        elif cache is not None and signature is not None and not training.constants:
            cache.store(signature, training.graph)
    graphs = [training]
    for member in members[1:]:
        _require_same_layers(first, member)
        if signature is not None and signature_of(member) == signature:
            graphs.append(training)
            continue
        graphs.append(_graph(member, training=True))
        _require_same_graph(training, graphs[-1], f"from this node on, the forward of {name} differs between members")
    for layer, module in first.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        require(not any(hooks), f"layer '{layer}' ({type(module).__name__})", "it has hooks")
    for parameter, value in first.named_parameters():
        require(value.requires_grad, f"'{parameter}'", "it is frozen, but stacks train every parameter")
        require(not value._backward_hooks, f"'{parameter}'", "it has hooks")
    require(any(True for _ in first.parameters()), name, "it has no parameters")
    inputs = [node for node in training.graph.nodes if node.op == "placeholder" and node.users]
    require(len(inputs) <= 1, name, "its forward takes more arguments than the examples")
    return Traced(training.graph, _tensors(members, training, evaluation, graphs))


def architecture_of(module: nn.Module) -> str:
    """Return a module's operations and shapes as text: equal for modules that can share a stack.

    The text does not depend on the values of parameters and buffers, nor on dropout rates.
    """
    user_modules = set(map(id, _user_modules(module)))  # their attributes show in the graph
    layers = [
        (name, _type(each), layer_settings(each))
        for name, each in module.named_modules()
        if id(each) not in user_modules
    ]
    state = module.state_dict().items()  # extra state may be no tensor
    shapes = [(name, value.dtype, *value.shape) for name, value in state if isinstance(value, Tensor)]
    try:
        steps = [_text(node) for node in _graph(module, training=True).graph.nodes]
    except CannotStackError as error:
        steps = [str(error)]
    return repr((_type(module), layers, shapes, steps))


def _type(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def require(condition: bool, name: str, reason: str) -> None:
    """Raise CannotStackError with the name and reason unless the condition is true."""
    if not condition:
        raise CannotStackError(f"{name} cannot be stacked: {reason}")


def equal(tensor: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same type, shape and values."""
    return tensor.dtype == other.dtype and torch.equal(tensor, other)


def is_metadata(node: fx.Node) -> bool:
    """Return whether the node's value is tensor metadata: a size, a type, a device, or a number computed from them."""
    if node.op == "call_method":
        return node.target in TENSOR_METADATA
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in TENSOR_METADATA
    return node.target in METADATA_ARITHMETIC and all(is_metadata(used) for used in node.all_input_nodes)


def called(node: fx.Node, root: nn.Module) -> Any:
    """Return the class of the layer that a node calls, or its target: a function, or a method's name."""
    return type(root.get_submodule(str(node.target))) if node.op == "call_module" else node.target


class _Proxy(fx.Proxy):
    """Records `x += y` as an in-place operation: torch.fx alone records `x = x + y`, which is wrong if x has views."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """Traces into the user's modules, with torch's layers as leaves."""

    proxy_buffer_attributes = True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def __init__(self) -> None:
        super().__init__()
        self._autocast = _autocast()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if type(m) in TRANSFORMERS and "forward" not in vars(m):
            return TRANSFORMERS[type(m)](m, *args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        name = type(self.root).__name__
        require(torch.is_grad_enabled(), name, "its forward disables gradients; use detach() instead")
        require(_autocast() == self._autocast, name, "its forward changes the type that torch computes in (autocast)")
        return super().create_node(*args, **kwargs)


def _autocast() -> list[bool]:
    return [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda", "mps")]


@dataclass(frozen=True)
class _Recorded:
    """One module's graph, and the constant tensors that its Python code created or read: name in the graph -> value.

    `reads_values` is True if the code computed with the values of tensors, on which the graph may then depend.
    """

    graph: fx.Graph
    constants: dict[str, Tensor] = field(default_factory=dict)
    reads_values: bool = False


class _ValueReads(TorchFunctionMode):
    """Records whether Python code computes with tensors, not only with traced values and the tensors' metadata."""

    def __init__(self) -> None:
        super().__init__()
        self.any = False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in _METADATA_READS:
            self.any |= any(isinstance(each, Tensor) for each in tree_leaves((args, kwargs)))
        return function(*args, **(kwargs or {}))


_METADATA_READS = {read for name in TENSOR_METADATA for read in (getattr(Tensor, name), getattr(Tensor, name).__get__)}


def _graph(module: nn.Module, training: bool) -> _Recorded:
    tracer = _Tracer()
    name = type(module).__name__
    try:
        with GLOBAL_STATE_LOCK, _unchanged(module), torch.enable_grad(), _ValueReads() as reads:
            graph = tracer.trace(module.train(training))
            for layer, each in module.named_modules():
                layer_name = f"layer '{layer}' ({type(each).__name__})"
                require(each.training == training, layer_name, "its mode (training or evaluation) is not the network's")
            constants = {name: value for value, name in tracer.tensor_attrs.items() if isinstance(value, Tensor)}
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError) as error:
        advice = next((text for kind, text in ADVICE.items() if f"{kind!r}" in str(error)), None)
        reason = advice or (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotStackError(f"{name} cannot be stacked: {reason}") from error
    _pool_before_relu(graph, module)
    return _Recorded(graph, constants, reads.any)


def _pool_before_relu(graph: fx.Graph, root: nn.Module) -> None:
    """Move max pooling before a ReLU whose result only the pooling reads.

    The ReLU then has a fraction of the elements. Outputs and gradients are exactly the same: the largest element of a
    window is that after the ReLU, or has no gradient.
    """
    for relu in list(graph.nodes):
        pool = next(iter(relu.users), None)
        if pool is None or len(relu.users) > 1 or not _is_relu(relu, root) or not _is_max_pooling(pool, root):
            continue
        (source,) = relu.all_input_nodes
        pool.replace_all_uses_with(relu)
        pool.replace_input_with(relu, source)
        relu.replace_input_with(source, pool)
        relu.prepend(pool)


def _is_relu(node: fx.Node, root: nn.Module) -> bool:
    """Return whether the node is a ReLU that does not work in place."""
    if node.op == "call_module":
        in_place = getattr(root.get_submodule(str(node.target)), "inplace", False)
    else:
        in_place = any(node.args[1:]) or node.kwargs.get("inplace")
    return called(node, root) in (nn.ReLU, F.relu, torch.relu) and not in_place


def _is_max_pooling(node: fx.Node, root: nn.Module) -> bool:
    """Return whether the node is a max pooling of one tensor that returns no indices."""
    if node.op == "call_module":
        indices = getattr(root.get_submodule(str(node.target)), "return_indices", False)
    else:
        indices = node.kwargs.get("return_indices")
    kinds = (nn.MaxPool1d, nn.MaxPool2d, F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d)
    return called(node, root) in kinds and not indices and len(node.all_input_nodes) == 1


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Restore the module at the end; raise CannotStackError where its forward changed it.

    A graph would run such a change once, when it is traced, instead of in each call.
    """
    name = type(module).__name__
    before = {each: _contents(each) for each in module.modules()}
    versions = [
        (value, value._version) for values in before.values() for value in values.values() if isinstance(value, Tensor)
    ]
    modes = {each: each.training for each in before}
    random_states = _random_states()
    try:
        yield
        for each, values in before.items():
            after = {key: value for key, value in _contents(each).items() if not key.startswith("_tensor_constant")}
            for key in (*values, *after):
                same = key in values and key in after and values[key] is after[key]
                require(same, name, f"its forward changes '{key}', which its next call would read")
        unchanged = all(value._version == version for value, version in versions)
        require(unchanged, name, "its forward changes a tensor of the module")
        require(_random_states() == random_states, name, "its forward draws random numbers outside of a layer")
    finally:
        for each, values in before.items():
            _restore(each, values)
            each.training = modes[each]


def _contents(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes, parameters, buffers and submodules by name."""
    attributes = {name: value for name, value in vars(module).items() if name not in MODULE_ATTRIBUTES}
    return {**attributes, **module._parameters, **module._buffers, **module._modules}


def _restore(module: nn.Module, before: dict[str, Any]) -> None:
    for name in _contents(module).keys() - before.keys():
        delattr(module, name)
    for values in (module._parameters, module._buffers, vars(module)):
        for name, value in before.items():
            if name in values:
                values[name] = value


def _random_states() -> tuple[Any, ...]:
    """Return the states of torch's, Python's and NumPy's global random generators."""
    numpy_state = np.random.get_state(legacy=False)
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy_state["state"]["key"].tobytes(),
        numpy_state["state"]["pos"],
    )


def _require_same_graph(first: _Recorded, other: _Recorded, reason: str) -> None:
    for node, counterpart in zip_longest(first.graph.nodes, other.graph.nodes):
        require(_text(node) == _text(counterpart), f"'{(node or counterpart).name}'", reason)


def _tensors(
    members: Sequence[nn.Module], training: _Recorded, evaluation: _Recorded, graphs: Sequence[_Recorded]
) -> dict[str, list[Tensor]]:
    """Return the graph's tensors that are not parameters: target -> one value per member.

    Raises CannotStackError for a constant tensor, one that is no buffer, that differs between members or modes.
    """
    found: dict[str, list[Tensor]] = {}
    parameters = dict(members[0].named_parameters(remove_duplicate=False))
    for target in {str(node.target) for node in training.graph.nodes if node.op == "get_attr"} - parameters.keys():
        if target in training.constants:
            found[target] = [each.constants[target] for each in graphs]
            same = all(equal(found[target][0], other) for other in (*found[target], evaluation.constants[target]))
            name = f"a tensor of {type(members[0]).__name__}"
            require(same, name, "it is no buffer, and differs between members or calls; make it a buffer")
        else:
            owner, _, name = target.rpartition(".")
            found[target] = [getattr(member.get_submodule(owner), name) for member in members]
    return found


def _text(node: fx.Node | None) -> str:
    """Return a node's operation and arguments as text, "" for no node."""
    return "" if node is None else f"{node.name} {node.op} {node.target} {node.args} {node.kwargs}"


def _require_same_layers(first: nn.Module, member: nn.Module) -> None:
    for (name, layer), (other_name, other) in zip(first.named_modules(), member.named_modules(), strict=False):
        layer_name = f"layer '{name}' ({type(layer).__name__})"
        parametrized = is_parametrized(layer)
        require(not parametrized, layer_name, "its parameters are computed from others (torch.nn.utils.parametrize)")
        require(name == other_name and type(layer) is type(other), layer_name, "the members differ in it")
    shapes, others = ({name: value.shape for name, value in each.state_dict().items()} for each in (first, member))
    for name in [*shapes, *others]:
        require(shapes.get(name) == others.get(name), f"'{name}'", "the members differ in its shape")


def _user_modules(module: nn.Module) -> list[nn.Module]:
    """Return the submodules whose forward methods are traced into: those that are not torch's."""
    return [each for each in module.modules() if not type(each).__module__.startswith("torch.nn")]
