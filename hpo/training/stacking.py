"""K modules of one architecture, run as one stacked tensor program.

The module is traced with torch.fx. Every node is then known to be shared (its value is [B, ...], the same for all
members) or stacked ([K, B, ...]): the input is shared, and what a layer with parameters returns is stacked. Each known
layer or function gets its stacked form; a module with any other is refused by the name of that layer, so what runs is
what the module says or nothing.

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

from hpo.training.blocks import Blocks
from hpo.training.layers import BatchNorm, Conv2d, Dropout, Linear, StackedLayer
from hpo.training.tracing import CannotStackError, is_size, layer_settings, require, require_unread, trace

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
        *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.neg),
        *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.abs, torch.square),
        *(torch.relu, torch.sigmoid, torch.tanh),
        *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.softplus, F.sigmoid, F.tanh),
        *(F.hardtanh, F.hardswish),
    )
}
ELEMENTWISE_METHODS = {"relu", "sigmoid", "tanh", "add", "sub", "mul", "div", "neg", "abs", "square"}
IN_PLACE: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    F.relu_: F.relu,
    torch.relu_: torch.relu,
    "relu_": "relu",
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": "div",
}
"""In-place functions, and the ones that are run in their place: the stacked program overwrites nothing."""
POOLING_FUNCTIONS = {F.max_pool2d, F.avg_pool2d, torch.max_pool2d}


class StackedNetwork:
    """K members' modules as one network: `network(x, training)` is [K, B, classes] for shared images `x` [B, ...].

    `members` are modules of one architecture, each built as torch builds it alone; they may differ in their values
    and in dropout rates. Their parameters are copied; the modules themselves are not changed.
    """

    def __init__(self, members: Sequence[nn.Module], compute: torch.dtype = torch.float32) -> None:
        self._layers: list[StackedLayer] = []
        self._steps = _program(members, self._layers)
        states = [dict(module.named_parameters()) for module in members]
        master = torch.float64 if compute == torch.float64 else torch.float32
        self.blocks = Blocks({n: torch.stack([s[n].detach() for s in states]).to(master) for n in states[0]}, compute)
        self.device, self.compute = next(iter(states[0].values())).device, compute
        first = members[0].state_dict(keep_vars=True)
        # A layer or a parameter may have several names: the first one stands for all of them.
        self._names = {name: next(n for n, other in first.items() if other is value) for name, value in first.items()}
        held = {*states[0], *(self._names[name] for layer in self._layers for name in layer.buffers())}
        unused = {*self._names.values()} - held  # buffers of layers that never run
        self._unused = {name: torch.stack([module.state_dict()[name] for module in members]) for name in unused}
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
            out = values[name] = run(values, x, training)
            for last in used:
                del values[last]
        assert isinstance(out, Tensor), "the last step is the network's output"
        return out

    def keep(self, members: Tensor) -> None:
        """Keep only these members (ascending indices): parameters, statistics and rates, all together."""
        self.blocks.keep(members)
        for layer in self._layers:
            layer.keep(members)
        self._unused = {name: value[members] for name, value in self._unused.items()}
        self._bind()

    def state_dict(self, member: int) -> dict[str, Tensor]:
        """Return one member's state as its module alone would: a copy, loadable by `load_state_dict`."""
        values = {**self._unused, **self.blocks.master_values()}
        for layer in self._layers:
            values.update({self._names[name]: value for name, value in layer.buffers().items()})
        return {name: values[held][member].clone() for name, held in self._names.items()}

    def _bind(self) -> None:
        slots = {name: self.blocks.slots[held] for name, held in self._names.items() if held in self.blocks.slots}
        for layer in self._layers:
            layer.bind(slots)


Run = Callable[[dict[str, Any], Tensor, bool], Any]
Step = tuple[str, Run, list[str]]


def _program(members: Sequence[nn.Module], layers: list[StackedLayer]) -> list[Step]:
    """Return the stacked program: node by node, what to run and what is free after it."""
    graph = trace(members)
    made: dict[str, StackedLayer] = {}
    stacked: set[fx.Node] = set()
    steps: list[Step] = []
    last_use = {used.name: node.name for node in graph.nodes for used in node.all_input_nodes}
    for node in graph.nodes:
        if node.op == "placeholder":
            run: Run = lambda values, x, training: x  # noqa: E731
        elif node.op == "output":
            source = node.args[0]
            require(isinstance(source, fx.Node), "the network's output", "it must be one tensor")
            require(source in stacked, "the network", "its output depends on no layer with parameters")
            run = _reading(source.name)
        elif node.op == "call_module":
            run = _layer(node, members, made, stacked)
        elif node.op in ("call_function", "call_method"):
            run = _function(node, members[0], stacked)
        else:
            raise CannotStackError(f"'{node.target}' cannot be stacked: a parameter or tensor used outside a layer")
        lifts = node.op == "call_module" and type(members[0].get_submodule(str(node.target))) in LAYERS
        if lifts or (not stacked.isdisjoint(node.all_input_nodes) and not is_size(node)):
            stacked.add(node)
        free = [name for name, user in last_use.items() if user == node.name]
        steps.append((node.name, run, free))
    layers.extend(made.values())
    return steps


def _reading(name: str) -> Run:
    return lambda values, x, training: values[name]


def _layer(node: fx.Node, roots: Sequence[nn.Module], made: dict[str, StackedLayer], stacked: set[fx.Node]) -> Run:
    """Return how to run the layer that `node` calls; a layer called twice is one stacked layer."""
    target, members = str(node.target), len(roots)
    modules: list[nn.Module] = [root.get_submodule(target) for root in roots]
    module = modules[0]
    what = f"layer '{target}' ({type(module).__name__})"
    settings = [layer_settings(each) for each in modules]
    for name in settings[0]:
        require(len({each.get(name) for each in settings}) == 1, what, f"the members differ in its {name}")
    others = (nn.Flatten, *POOLING_LAYERS, *ELEMENTWISE_LAYERS)
    known = ", ".join(kind.__name__ for kind in (*LAYERS, *others))
    require(type(module) in LAYERS or isinstance(module, others), what, f"known layers are {known}")
    require(len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs, what, "it takes one tensor")
    name, lifted = node.all_input_nodes[0].name, node.all_input_nodes[0] in stacked
    if getattr(module, "inplace", False):
        require_unread(node, roots[0])
    if type(module) in LAYERS:
        _require_known_settings(module, what)
        # A dropout layer called twice draws twice; any other is one layer with one set of parameters and statistics.
        held = f"{target} at {node.name}" if isinstance(module, nn.Dropout) else target
        layer = made.setdefault(held, LAYERS[type(module)](target, modules))
        if isinstance(module, nn.Linear):
            return lambda values, x, training: _over_rows(layer, values[name], lifted, training)
        if lifted or isinstance(module, nn.Conv2d):
            return lambda values, x, training: layer(values[name], training)
        # Members share the input, but not what the layer makes of it.
        return lambda values, x, training: layer(values[name].expand(members, *values[name].shape), training)
    if isinstance(module, nn.Flatten):
        start, end = module.start_dim, module.end_dim
        return lambda values, x, training: _flatten(values[name], lifted, start, end)
    if isinstance(module, POOLING_LAYERS):
        require(not getattr(module, "return_indices", False), what, "it returns indices")
        return lambda values, x, training: _over_images(module.forward, values[name], lifted)
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        vars(module)["inplace"] = False
    return lambda values, x, training: module.forward(values[name])  # in a thread, while another one may be tracing


def _require_known_settings(module: nn.Module, what: str) -> None:
    if isinstance(module, nn.Conv2d):
        require(module.padding_mode == "zeros", what, f"padding_mode = '{module.padding_mode}' is not known")
        require(not isinstance(module.padding, str), what, "give its padding as a number")
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        require(module.affine and module.track_running_stats, what, "it must have parameters and statistics")
        require(module.momentum is not None, what, "momentum = None (a cumulative average) is not known")


def _function(node: fx.Node, root: nn.Module, stacked: set[fx.Node]) -> Run:
    """Return how to run the function or method that `node` calls, on values that are [K, B, ...] if in `stacked`."""
    target: Any = IN_PLACE.get(node.target, node.target)
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if not is_size(node) and (target is not node.target or node.kwargs.get("inplace")):
        require_unread(node, root)
    fixed = {key: value for key, value in node.kwargs.items() if key != "inplace"}
    require("out" not in fixed, f"'{name}'", "it writes into another tensor")
    lifted = not stacked.isdisjoint(node.all_input_nodes)

    def call(function: Callable[..., Any]) -> Run:
        def run(values: dict[str, Any], x: Tensor, training: bool) -> Any:
            given = _aligned({used: values[used.name] for used in node.all_input_nodes}, stacked)
            args, kwargs = fx.node.map_arg((node.args, fixed), given.__getitem__)
            return function(*args, **kwargs)

        return run

    if node.op == "call_function" and (target in ELEMENTWISE_FUNCTIONS or is_size(node)) and target is not getattr:
        return call(target)
    if node.op == "call_method" and target in ELEMENTWISE_METHODS:
        return call(lambda x, *args, **kwargs: getattr(x, target)(*args, **kwargs))
    require(bool(node.args) and isinstance(node.args[0], fx.Node), f"'{name}'", "its first argument must be a tensor")
    if target in POOLING_FUNCTIONS:
        return call(lambda x, *args, **kwargs: _over_images(lambda i: target(i, *args, **kwargs), x, lifted))
    if target in (torch.flatten, "flatten"):
        return call(lambda x, start_dim=0, end_dim=-1: _flatten(x, lifted, start_dim, end_dim))
    if target in ("view", "reshape", torch.reshape) and torch.dtype not in map(type, node.args):
        return call(lambda x, *sizes, **shape: _reshape(x, lifted, sizes or tuple(shape.values())))
    if target == "size":
        return call(lambda x, *dim, **named: _size(x, lifted, *dim, *named.values()))
    if target is getattr and node.args[1] == "shape":
        return call(lambda x, name: _size(x, lifted))
    raise CannotStackError(f"'{name}' at node '{node.name}' cannot be stacked")


def _aligned(values: dict[fx.Node, Any], stacked: set[fx.Node]) -> dict[fx.Node, Any]:
    """Return the values with the members' dimension in line: broadcasting lines shapes up from the last one."""
    ranks = {node: value.dim() - (node in stacked) for node, value in values.items() if isinstance(value, Tensor)}
    most = max(ranks.values(), default=0)
    low = {node: values[node] for node, rank in ranks.items() if node in stacked and rank < most}
    return values | {
        node: value.reshape(len(value), *[1] * (most - ranks[node]), *value.shape[1:]) for node, value in low.items()
    }


def _size(x: Tensor, stacked: bool, *dim: int) -> Any:
    shape = x.shape[1:] if stacked else x.shape
    return shape[dim[0]] if dim else shape


def _flatten(x: Tensor, stacked: bool, start: int, end: int) -> Tensor:
    return x.flatten(start + 1 if stacked and start >= 0 else start, end + 1 if stacked and end >= 0 else end)


def _reshape(x: Tensor, stacked: bool, shape: tuple[Any, ...]) -> Tensor:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    return x.reshape(x.shape[0], *sizes) if stacked else x.reshape(*sizes)


def _over_rows(layer: StackedLayer, x: Tensor, stacked: bool, training: bool) -> Tensor:
    """Run a linear layer on the last dimension, whatever lies between it and the members."""
    between = x.shape[1:-1] if stacked else x.shape[:-1]
    if len(between) == 1:
        return layer(x, training)
    out = layer(x.reshape(*x.shape[:stacked], -1, x.shape[-1]), training)
    return out.reshape(len(out), *between, out.shape[-1])


def _over_images(pool: Callable[[Tensor], Tensor], x: Tensor, stacked: bool) -> Tensor:
    """Run a pooling on [B, C, H, W], members folded into the channels, where a convolution leaves them."""
    if not stacked:
        return pool(x)
    if x.dim() != 5:
        return torch.unflatten(pool(x.flatten(0, 1)), 0, x.shape[:2])
    pooled = pool(x.transpose(0, 1).flatten(1, 2))
    return torch.unflatten(pooled, 1, (x.shape[0], -1)).transpose(0, 1)
