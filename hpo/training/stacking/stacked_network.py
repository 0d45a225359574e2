"""K modules of one architecture, run as one stacked tensor program.

The module is traced with torch.fx. Every node is then known to be shared (its value is [B, ...], the same for all
members) or stacked ([K, B, ...]): the input is shared, and what a layer with parameters returns is stacked. Each known
layer or function gets its stacked form; a module with any other is refused by the name of that layer, so what runs is
what the module says or nothing.

Knows no particular network: hpo's own mlp and cnn come through here like anybody's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from hpo.training.stacking.batch_norm import BatchNorm
from hpo.training.stacking.convolutions import Conv
from hpo.training.stacking.dropout import ChannelDropout, Dropout
from hpo.training.stacking.functions import Run, memberwise, pooled, run_function
from hpo.training.stacking.in_place import require_unread
from hpo.training.stacking.layers import PER_MEMBER, Buffer, Linear, Parameter, PerMember, StackedLayer
from hpo.training.stacking.parameter_blocks import ParameterBlocks
from hpo.training.stacking.supported import (
    ADVICE,
    DROPOUT_LAYERS,
    ELEMENTWISE_LAYERS,
    MEMBERWISE_LAYERS,
    POOLING_LAYERS,
)
from hpo.training.stacking.trace import Traced, equal, is_metadata, layer_settings, require, trace

LAYERS: dict[type[nn.Module], Callable[[str, Sequence[Any]], StackedLayer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv,
    nn.Conv2d: Conv,
    nn.BatchNorm1d: BatchNorm,
    nn.BatchNorm2d: BatchNorm,
    nn.Dropout: Dropout,
    nn.Dropout1d: ChannelDropout,
    nn.Dropout2d: ChannelDropout,
    **dict.fromkeys(PER_MEMBER, PerMember),
}
"""Layers with parameters or random numbers, and their stacked forms."""


class StackedNetwork:
    """K members' modules as one network: `network(x, training)` is [K, B, classes] for shared images `x` [B, ...].

    `members` are modules of one architecture, each built as torch builds it alone; they may differ in their values
    and in dropout rates. Their parameters are copied; the modules themselves are not changed.
    """

    def __init__(self, members: Sequence[nn.Module], compute: torch.dtype = torch.float32) -> None:
        self._layers: list[StackedLayer] = []
        self._steps = _program(members, self._layers, compute)
        states = [dict(module.named_parameters()) for module in members]
        master = torch.float64 if compute == torch.float64 else torch.float32
        self.blocks = ParameterBlocks(
            {n: torch.stack([s[n].detach() for s in states]).to(master) for n in states[0]}, compute
        )
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
    def dropouts(self) -> Sequence[Dropout]:
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

    def select(self, members: Tensor) -> None:
        """Keep only these members (ascending indices): parameters, statistics and rates, all together."""
        self.blocks.select(members)
        for layer in self._layers:
            layer.select(members)
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


Step = tuple[str, Run, list[str]]


def _program(members: Sequence[nn.Module], layers: list[StackedLayer], compute: torch.dtype) -> list[Step]:
    """Return the stacked program: node by node, what to run and what is free after it."""
    traced = trace(members)
    made: dict[str, StackedLayer] = {}
    stacked: set[fx.Node] = set()
    steps: list[Step] = []
    last_use = {used.name: node.name for node in traced.graph.nodes for used in node.all_input_nodes}
    for node in traced.graph.nodes:
        lifts = False
        if node.op == "placeholder":
            run: Run = lambda values, x, training: x  # noqa: E731
        elif node.op == "output":
            source = node.args[0]
            require(isinstance(source, fx.Node), "the network's output", "it must be one tensor")
            require(source in stacked, "the network", "its output depends on no layer with parameters")
            run = _reading(source.name)
        elif node.op == "get_attr":
            run, lifts = _held(str(node.target), members[0], traced, made, compute)
        elif node.op == "call_module":
            run, lifts = _layer(node, members, made, stacked)
        else:
            run = run_function(node, members[0], stacked)
        if lifts or (not stacked.isdisjoint(node.all_input_nodes) and not is_metadata(node)):
            stacked.add(node)
        free = [name for name, user in last_use.items() if user == node.name]
        steps.append((node.name, run, free))
    layers.extend(made.values())
    return steps


def _reading(name: str) -> Run:
    return lambda values, x, training: values[name]


def _held(
    target: str, root: nn.Module, traced: Traced, made: dict[str, StackedLayer], compute: torch.dtype
) -> tuple[Run, bool]:
    """Return how to read a parameter or another tensor of the module, and whether it is each member's own."""
    if target not in traced.tensors:
        parameter = Parameter(target)
        made[f"parameter {target}"] = parameter
        return lambda values, x, training: parameter(x), True
    values = traced.tensors[target]
    kept = [buffer for layer in root.modules() if type(layer) in LAYERS for buffer in layer.buffers()]
    require(all(values[0] is not buffer for buffer in kept), f"'{target}'", "a layer's own statistics are read")
    shared = all(equal(values[0], value) for value in values)
    buffer = Buffer(values[:1] if shared else values, compute)
    if shared:
        return lambda values, x, training: buffer(x)[0], False
    made[f"buffer {target}"] = buffer
    return lambda values, x, training: buffer(x), True


def _layer(
    node: fx.Node, roots: Sequence[nn.Module], made: dict[str, StackedLayer], stacked: set[fx.Node]
) -> tuple[Run, bool]:
    """Return how to run the layer that `node` calls, and whether each member has its own result, whatever it is given.

    A layer that is called twice is one stacked layer.
    """
    target = str(node.target)
    modules: list[nn.Module] = [root.get_submodule(target) for root in roots]
    module, kind = modules[0], type(modules[0])
    what = f"layer '{target}' ({kind.__name__})"
    require(kind not in ADVICE, what, ADVICE.get(kind, ""))
    others = (*ELEMENTWISE_LAYERS, *POOLING_LAYERS, *MEMBERWISE_LAYERS)
    require(kind in LAYERS or kind in others, what, "there is no stacked form of it")
    settings = [layer_settings(each) for each in modules]
    for setting in settings[0]:
        require(len({each.get(setting) for each in settings}) == 1, what, f"the members differ in its {setting}")
    require("forward" not in vars(module), what, "its forward was replaced")
    require(len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs, what, "it takes one tensor")
    (given,) = node.all_input_nodes
    name, lifted = given.name, given in stacked
    _require_known_settings(module, what, lifted)
    if getattr(module, "inplace", False):
        require_unread(node, roots[0])
    if kind in DROPOUT_LAYERS or any(True for _ in module.parameters()):
        # A dropout layer called twice draws twice; any other is one layer with one set of parameters and statistics.
        held = f"{target} at {node.name}" if kind in DROPOUT_LAYERS else target
        layer = made.setdefault(held, LAYERS[kind](target, modules))
        return lambda values, x, training: layer(values[name], lifted, training), True
    if kind in POOLING_LAYERS:
        return lambda values, x, training: pooled(module.forward, POOLING_LAYERS[kind], values[name], lifted), False
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        vars(module)["inplace"] = False
    if kind in MEMBERWISE_LAYERS and lifted:
        return lambda values, x, training: memberwise(module.forward, [values[name]]), False
    # Its forward: in a thread, while another one may be tracing, which changes how all modules are called.
    return lambda values, x, training: module.forward(values[name]), False


def _require_known_settings(module: nn.Module, what: str, lifted: bool) -> None:
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        require(module.padding_mode == "zeros", what, f"padding_mode = '{module.padding_mode}' is not known")
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        even = module.padding != "same" or all(each % 2 == 0 for each in reach)
        require(even, what, "padding = 'same' needs a kernel of odd size")
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        require(module.affine and module.track_running_stats, what, "it must have parameters and statistics")
        require(module.momentum is not None, what, "momentum = None (a cumulative average) is not known")
    if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d):
        require(not module.track_running_stats, what, "running statistics are not known")
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d):
        require(not module.return_indices, what, "it returns indices")
    if isinstance(module, nn.Embedding):
        require(not lifted, what, "its input must be the same for all members")
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        require(plain, what, "max_norm, scale_grad_by_freq and sparse are not known")
