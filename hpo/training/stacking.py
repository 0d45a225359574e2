"""K modules of one architecture, run as one stacked tensor program.

The first module is traced once with torch.fx. Every node is then known to be shared (its value is [B, ...], the same
for all members) or stacked ([K, B, ...]): the input is shared, and what a layer with parameters returns is stacked.
Each known layer or function gets its stacked form; a module with any other is refused by the name of that layer, so
what runs is what the module says or nothing.

Knows no particular network: hpo's own mlp and cnn come through here like anybody's.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hpo.errors import HpoError
from hpo.training.blocks import Blocks
from hpo.training.layers import BatchNorm, Conv2d, Dropout, Linear, StackedLayer

LAYERS: dict[type[nn.Module], Callable[[str, Sequence[Any]], StackedLayer]] = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    nn.BatchNorm1d: BatchNorm,
    nn.BatchNorm2d: BatchNorm,
    nn.Dropout: Dropout,
}
"""Layers with parameters or random numbers, and their stacked forms."""

ELEMENTWISE_LAYERS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Identity,
)
"""Layers that act on each element alone: their stacked form is the layer itself."""

POOLING_LAYERS = (nn.MaxPool2d, nn.AvgPool2d)

ELEMENTWISE_FUNCTIONS = {
    function
    for function in (
        *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.neg),
        *(torch.add, torch.sub, torch.mul, torch.neg, torch.abs, torch.square),
        *(torch.relu, torch.sigmoid, torch.tanh),
        *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.sigmoid, F.tanh),
        *(F.hardtanh, F.hardswish),
    )
}
ELEMENTWISE_METHODS = {"relu", "sigmoid", "tanh", "add", "sub", "mul", "neg", "abs", "square"}
IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    F.relu_: F.relu,
    torch.relu_: torch.relu,
    "relu_": "relu",
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
}
"""In-place functions, and the ones that are run in their place: the stacked program overwrites nothing."""
POOLING_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, torch.max_pool2d}
ALIKE = ("eps", "momentum", "stride", "padding", "dilation", "groups", "kernel_size", "padding_mode")
"""Attributes in which the members' layers must not differ: only a dropout rate may."""


class CannotStackError(HpoError):
    """The module has a layer or function with no stacked form."""


class StackedNetwork:
    """K members' modules as one network: `network(x, training)` is [K, B, classes] for shared images `x` [B, ...].

    `members` are modules of one architecture, each built as torch builds it alone; they may differ in their values
    and in dropout rates. Their parameters are copied; the modules themselves are not changed.
    """

    def __init__(self, members: Sequence[nn.Module], compute: torch.dtype = torch.float32) -> None:
        states = [dict(module.named_parameters()) for module in members]
        master = torch.float64 if compute == torch.float64 else torch.float32
        device = next(iter(states[0].values())).device
        self.blocks = Blocks({n: torch.stack([s[n].detach() for s in states]).to(master) for n in states[0]}, compute)
        self.device, self.compute = device, compute
        self._layers: list[StackedLayer] = []
        self._steps = _program(members, self._layers)
        self._bind()

    @property
    def members(self) -> int:
        """How many members there are."""
        return self.blocks.members

    @property
    def dropouts(self) -> list[Dropout]:
        """The dropout layers, in the order in which they run."""
        return [layer for layer in self._layers if isinstance(layer, Dropout)]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """Run all members on the shared images `x` [B, ...]; returns [K, B, classes]."""
        values: dict[str, Any] = {}
        for name, run, used in self._steps:
            values[name] = run(values, x, training)
            for last in used:
                del values[last]
        out = values["output"]
        assert isinstance(out, Tensor)
        return out

    def keep(self, members: Tensor) -> None:
        """Keep only these members (ascending indices): parameters, statistics and rates, all together."""
        self.blocks.keep(members)
        for layer in self._layers:
            layer.keep(members)
        self._bind()

    def state_dict(self, member: int) -> dict[str, Tensor]:
        """Return one member's state as its module alone would: a copy, loadable by `load_state_dict`."""
        values = dict(self.blocks.master_values())
        for layer in self._layers:
            values.update(layer.buffers())
        return {name: value[member].clone() for name, value in values.items()}

    def _bind(self) -> None:
        for layer in self._layers:
            layer.bind(self.blocks.slots)


Step = tuple[str, Callable[[dict[str, Any], Tensor, bool], Any], list[str]]


def _program(members: Sequence[nn.Module], layers: list[StackedLayer]) -> list[Step]:
    """Trace the first member and return the stacked program: node by node, what to run and what is free after it."""
    try:
        graph = _Tracer().trace(members[0])
    except (fx.proxy.TraceError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CannotStackError(f"{type(members[0]).__name__} cannot be stacked: {reason}") from error
    modules = [dict(module.named_modules()) for module in members]
    made: dict[str, StackedLayer] = {}
    stacked: set[str] = set()
    steps: list[Step] = []
    last_use = {used.name: node.name for node in graph.nodes for used in node.all_input_nodes}
    for node in graph.nodes:
        inputs_stacked = any(used.name in stacked for used in node.all_input_nodes)
        if node.op == "placeholder":
            run: Callable[[dict[str, Any], Tensor, bool], Any] = lambda values, x, training: x  # noqa: E731
        elif node.op == "output":
            _require(isinstance(node.args[0], fx.Node), "the network's output", "it must be one tensor")
            run = _reading(node.args[0])
            _require(inputs_stacked, "the network", "it has no layer with parameters")
        elif node.op == "call_module":
            target = str(node.target)
            run = _layer(node, [named[target] for named in modules], made, inputs_stacked, len(members))
        elif node.op in ("call_function", "call_method"):
            run = _function(node, inputs_stacked)
        else:
            raise CannotStackError(f"'{node.target}' cannot be stacked: a parameter used outside a layer")
        if inputs_stacked and not _is_size(node):
            stacked.add(node.name)
        if node.op == "call_module" and str(node.target) in made:
            stacked.add(node.name)
        free = [name for name, user in last_use.items() if user == node.name]
        steps.append((node.name, run, free))
    layers.extend(made.values())
    return steps


class _Tracer(fx.Tracer):
    """Traces with the network's own modules opened and torch's layers as leaves."""


def _require(holds: bool, what: str, why: str) -> None:
    if not holds:
        raise CannotStackError(f"{what} cannot be stacked: {why}")


def _reading(node: fx.Node) -> Callable[[dict[str, Any], Tensor, bool], Any]:
    name = node.name
    return lambda values, x, training: values[name]


def _layer(
    node: fx.Node, modules: list[nn.Module], made: dict[str, StackedLayer], stacked: bool, members: int
) -> Callable[[dict[str, Any], Tensor, bool], Any]:
    """Return how to run the layer that `node` calls; a layer called twice is one stacked layer."""
    target, module = str(node.target), modules[0]
    what = f"layer '{target}' ({type(module).__name__})"
    source = node.all_input_nodes[0].name
    _require(len(node.all_input_nodes) == 1 and not node.kwargs, what, "it takes more than one tensor")
    for attribute in ALIKE:
        differ = {repr(getattr(each, attribute, None)) for each in modules}
        _require(len(differ) == 1, what, f"the members differ in its {attribute}")
    if type(module) in LAYERS:
        if isinstance(module, nn.Conv2d):
            _require(module.padding_mode == "zeros", what, f"padding_mode = '{module.padding_mode}' is not known")
            _require(not isinstance(module.padding, str), what, "give its padding as a number")
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            _require(module.affine and module.track_running_stats, what, "it must have parameters and statistics")
            _require(module.momentum is not None, what, "momentum = None (a cumulative average) is not known")
        layer = made.setdefault(target, LAYERS[type(module)](target, modules))
        lifts = not stacked and not isinstance(layer, Linear | Conv2d)
        if lifts:  # members share the input, but not what the layer makes of it
            return lambda values, x, training: layer(values[source].expand(members, *values[source].shape), training)
        return lambda values, x, training: layer(values[source], training)
    if isinstance(module, nn.Flatten):
        start, end = module.start_dim, module.end_dim
        return lambda values, x, training: _flatten(values[source], stacked, start, end)
    if isinstance(module, POOLING_LAYERS):
        return lambda values, x, training: _over_images(module, values[source], stacked)
    if isinstance(module, ELEMENTWISE_LAYERS):
        if getattr(module, "inplace", False):
            _check_in_place(node)
            module = copy.copy(module)
            module.inplace = False
        return lambda values, x, training: module(values[source])
    known = ", ".join(kind.__name__ for kind in (*LAYERS, nn.Flatten, *POOLING_LAYERS, *ELEMENTWISE_LAYERS))
    raise CannotStackError(f"{what} cannot be stacked; known layers: {known}")


def _function(node: fx.Node, stacked: bool) -> Callable[[dict[str, Any], Tensor, bool], Any]:
    """Return how to run the function or method that `node` calls on values that are [K, B, ...] if `stacked`."""
    target: Any = IN_PLACE.get(node.target, node.target)
    if target is not node.target or node.kwargs.get("inplace"):
        _check_in_place(node)
    fixed = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    first = node.args[0] if node.args else None

    def given(values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        mapped = fx.node.map_arg((node.args, fixed), lambda used: values[used.name])
        return list(mapped[0]), dict(mapped[1])

    def call(function: Callable[..., Any]) -> Callable[[dict[str, Any], Tensor, bool], Any]:
        def run(values: dict[str, Any], x: Tensor, training: bool) -> Any:
            args, kwargs = given(values)
            return function(*args, **kwargs)

        return run

    if node.op == "call_function" and target in ELEMENTWISE_FUNCTIONS:
        return call(target)
    if node.op == "call_method" and target in ELEMENTWISE_METHODS:
        return call(lambda x, *args, **kwargs: getattr(x, target)(*args, **kwargs))
    if target in POOLING_FUNCTIONS:
        return call(lambda x, *args, **kwargs: _over_images(lambda i: target(i, *args, **kwargs), x, stacked))
    if target in (torch.flatten, "flatten"):
        return call(lambda x, start_dim=0, end_dim=-1: _flatten(x, stacked, start_dim, end_dim))
    if target in ("view", "reshape", torch.reshape):
        return call(lambda x, *shape: _reshape(x, stacked, shape))
    if target == "size":
        return call(lambda x, *dim: _size(x, stacked, *dim))
    if target is getattr and node.args[1] == "shape":
        return call(lambda x, name: _size(x, stacked))
    if target is operator.getitem and isinstance(first, fx.Node) and _is_size(first):
        return call(operator.getitem)
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    raise CannotStackError(f"'{name}' at node '{node.name}' cannot be stacked")


def _check_in_place(node: fx.Node) -> None:
    """Refuse an in-place call whose argument is read again after it: it would be read unchanged."""
    order = {each: place for place, each in enumerate(node.graph.nodes)}
    for source in node.all_input_nodes[:1]:
        later = [user for user in source.users if order[user] > order[node]]
        _require(not later and bool(node.users), f"'{node.name}'", "what it changes in place is read again later")


def _is_size(node: fx.Node) -> bool:
    """Return whether the node's value is a size (numbers), not a tensor."""
    if node.op == "call_method" and node.target == "size":
        return True
    if node.op == "call_function" and node.target is getattr:
        return True
    if node.op == "call_function" and node.target in (operator.getitem, operator.floordiv):
        return all(_is_size(used) for used in node.all_input_nodes)
    return False


def _size(x: Tensor, stacked: bool, *dim: int) -> Any:
    shape = x.shape[1:] if stacked else x.shape
    return shape[dim[0]] if dim else shape


def _flatten(x: Tensor, stacked: bool, start: int, end: int) -> Tensor:
    return x.flatten(start + 1 if stacked and start >= 0 else start, end + 1 if stacked and end >= 0 else end)


def _reshape(x: Tensor, stacked: bool, shape: tuple[Any, ...]) -> Tensor:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    return x.reshape(x.shape[0], *sizes) if stacked else x.reshape(*sizes)


def _over_images(pool: Callable[[Tensor], Tensor], x: Tensor, stacked: bool) -> Tensor:
    """Run a pooling on [B, C, H, W], members folded into the channels, where a convolution leaves them."""
    if not stacked:
        return pool(x)
    pooled = pool(x.transpose(0, 1).flatten(1, 2))
    return torch.unflatten(pooled, 1, (x.shape[0], -1)).transpose(0, 1)
