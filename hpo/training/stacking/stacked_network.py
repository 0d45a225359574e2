"""Run K modules of one architecture as one stacked tensor program.

The module is traced with torch.fx. Every node is then shared (its value is [B, ...], the same for all members) or
stacked ([K, B, ...]): the input is shared, and the result of a layer with parameters is stacked. Each supported layer
and function runs in its stacked form. A module with any other raises CannotStackError with its name.

Built-in networks have no special treatment.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from hpo.training.shapes.padding import Padding, joined_units
from hpo.training.stacking.attention import MultiheadAttention
from hpo.training.stacking.batch_norm import BatchNorm
from hpo.training.stacking.convolutions import Conv
from hpo.training.stacking.dropout import ChannelDropout, Dropout
from hpo.training.stacking.functions import Run, Step, Values, memberwise, pooled, run_function
from hpo.training.stacking.layers import (
    VMAP_LAYERS,
    Buffer,
    Keyed,
    Linear,
    Parameter,
    SequenceLayer,
    StackedLayer,
    VmapLayer,
    WeightedLayer,
)
from hpo.training.stacking.linear_chain import with_chains
from hpo.training.stacking.parameter_blocks import ParameterBlocks
from hpo.training.stacking.recurrent import GRU, LSTM
from hpo.training.stacking.tracing.in_place import require_not_read_later
from hpo.training.stacking.tracing.signature import layer_settings
from hpo.training.stacking.tracing.supported import (
    ADVICE,
    DROPOUT_LAYERS,
    ELEMENTWISE_LAYERS,
    MEMBERWISE_LAYERS,
    POOLING_LAYERS,
    SEQUENCE_LAYERS,
)
from hpo.training.stacking.tracing.trace import TraceCache, Traced, called, equal, is_metadata, require, trace

LAYERS: dict[type[nn.Module], Callable[[str, Sequence[Any]], StackedLayer]] = {
    nn.Linear: Linear,
    nn.Conv1d: Conv,
    nn.Conv2d: Conv,
    nn.BatchNorm1d: BatchNorm,
    nn.BatchNorm2d: BatchNorm,
    nn.Dropout: Dropout,
    nn.Dropout1d: ChannelDropout,
    nn.Dropout2d: ChannelDropout,
    **dict.fromkeys(VMAP_LAYERS, VmapLayer),
}
"""Layers with parameters or random numbers, and the classes of their stacked forms."""


class StackedNetwork:
    """K members' modules as one network: `network(x, training)` is [K, B, classes] for shared examples `x` [B, ...].

    `members` are modules of one architecture; they may differ in the values of parameters and buffers and in dropout
    rates. Values are copied; the modules are not changed. `compute` is the type that layers compute in; for bfloat16,
    the master values are float32. `traces` is the cache of the architecture's graph. `padding` has the own shapes of
    members that were padded to one architecture (hpo/training/shapes/); states have the members' own shapes. With
    `own_examples`, `x` is [K, B, ...]: each member has its own.

    Raises CannotStackError for modules that cannot be stacked.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        compute: torch.dtype = torch.float32,
        traces: TraceCache | None = None,
        padding: Padding | None = None,
        own_examples: bool = False,
    ) -> None:
        self._padding, self._own_examples = padding, own_examples
        constructed: dict[str, StackedLayer] = {}
        self._steps = _program(members, trace(members, traces), constructed, compute, padding, own_examples)
        self._layers = list(constructed.values())
        self._paths = [key.partition(" at ")[0] for key in constructed]
        states = [dict(module.named_parameters()) for module in members]
        master = torch.float64 if compute == torch.float64 else torch.float32
        self.blocks = ParameterBlocks(
            {n: torch.stack([s[n].detach() for s in states]).to(master) for n in states[0]}, compute, padding
        )
        self.device, self.compute = next(iter(states[0].values())).device, compute
        first = members[0].state_dict(keep_vars=True)
        # A layer or parameter may have several names; map each name to the first one.
        self._names = {name: next(n for n, other in first.items() if other is value) for name, value in first.items()}
        used = {*states[0], *(self._names[name] for layer in self._layers for name in layer.buffers())}
        unused = {*self._names.values()} - used  # buffers of layers that never run
        self._unused = {name: torch.stack([module.state_dict()[name] for module in members]) for name in unused}
        self._bind()
        if padding is not None:
            for index, dropout in enumerate(self.dropouts):
                assert isinstance(dropout, Dropout), "layers that drop elements themselves are not padded"
                dropout.pad([own.dropouts[index] for own in padding.members if index < len(own.dropouts)])

    @property
    def members(self) -> int:
        """Return the number of members."""
        return self.blocks.members

    @property
    def dropouts(self) -> Sequence[Keyed]:
        """Return what draws dropout masks, in the order in which it runs."""
        return [dropout for layer in self._layers for dropout in layer.dropouts]

    def __call__(self, x: Tensor, training: bool) -> Tensor:
        """Run all members on the examples `x`; return [K, B, classes]."""
        values: dict[str, Any] = {}
        for name, run, used in self._steps:
            out = values[name] = run(values, x, training)
            for last in used:
                del values[last]
        assert isinstance(out, Tensor), "the last step is the network's output"
        return out

    def of_all(self, x: Tensor) -> Tensor:
        """Return shared examples [B, ...] as the network takes them."""
        return x.expand(self.members, *x.shape) if self._own_examples else x

    def select(self, members: Tensor) -> None:
        """Reduce parameters, statistics and dropout rates to these members: ascending indices, [n] int64."""
        counts = [self.members] * len(self._paths)
        if self._padding is not None:
            counts = [self._padding.count(path) for path in self._paths]
            self._padding.select(members.tolist())
        self.blocks.select(members)
        for layer, count in zip(self._layers, counts, strict=True):
            layer.select(members[members < count])
        self._unused = {name: value[members] for name, value in self._unused.items()}
        self._bind()

    def state_dict(self, member: int) -> dict[str, Tensor]:
        """Return a copy of one member's state, as `load_state_dict` of its module takes it. `member` is an index."""
        values = {**self._unused, **self.blocks.master_values()}
        for layer in self._layers:
            values.update({self._names[name]: value for name, value in layer.buffers().items()})
        if self._padding is not None:
            named = {name: values[first_name] for name, first_name in self._names.items()}
            return {name: value.clone() for name, value in self._padding.split(member, named).items()}
        return {name: values[first_name][member].clone() for name, first_name in self._names.items()}

    def values(self, member: int) -> dict[str, Tensor]:
        """Return a copy of all that training may change in one member: here its state."""
        return self.state_dict(member)

    def _bind(self) -> None:
        all_slots = self.blocks.slots
        slots = {name: all_slots[first] for name, first in self._names.items() if first in all_slots}
        for layer in self._layers:
            layer.bind(slots)


def _program(
    members: Sequence[nn.Module],
    traced: Traced,
    constructed: dict[str, StackedLayer],
    compute: torch.dtype,
    padding: Padding | None,
    own_examples: bool,
) -> list[Step]:
    """Return the steps of the stacked program, in their order, and add its stacked layers to `constructed`.

    The keys of layers are their modules' names, with " at NODE" for a layer that each call has anew.
    """
    stacked: set[fx.Node] = set()
    steps: list[Step] = []
    last_use = {used.name: node.name for node in traced.graph.nodes for used in node.all_input_nodes}
    for node in traced.graph.nodes:
        becomes_stacked = False
        if node.op == "placeholder":
            run: Run = lambda values, x, training: x  # noqa: E731
            becomes_stacked = own_examples
        elif node.op == "output":
            source = node.args[0]
            one_tensor = isinstance(source, fx.Node) and not _has_several_results(source, members[0])
            require(one_tensor, "the network's output", "it must be one tensor")
            require(source in stacked, "the network", "its output depends on no layer with parameters")
            run = _read_node(source.name)
        elif node.op == "get_attr":
            run, becomes_stacked = _read_tensor(str(node.target), members[0], traced, constructed, compute)
        elif node.op == "call_module":
            count = len(members) if padding is None else padding.count(str(node.target))
            run, becomes_stacked = _layer(node, members[:count], constructed, stacked)
        else:
            run = run_function(node, members[0], stacked)
        if becomes_stacked or (not stacked.isdisjoint(node.all_input_nodes) and not is_metadata(node)):
            stacked.add(node)
        free = [name for name, user in last_use.items() if user == node.name]
        steps.append((node.name, run, free))
    depths = padding if padding is not None and padding.differ_in_depth else None
    program = []
    whole = depths is None
    for nodes, run, free in with_chains(steps, traced.graph, members[0], constructed, stacked, compute, whole):
        if depths is not None and nodes[0].op == "call_module" and not stacked.isdisjoint(nodes[0].all_input_nodes):
            run = _run_first_members(run, nodes[0], depths, members[0])
        program.append((nodes[-1].name, run, free))
    return program


_ENDED = " ended"
"""Key of the values of members whose last hidden layer has run; no node has such a name."""


def _run_first_members(run: Run, node: fx.Node, padding: Padding, root: nn.Module) -> Run:
    """Return how to run a layer, and what is computed with it, for the first members: those that have it.

    The values of the other members go round it, up to a layer that they have.
    """
    (source,), target = node.all_input_nodes, str(node.target)
    units = getattr(root.get_submodule(target), "in_features", 0)

    def run_first(values: Values, x: Tensor, training: bool) -> Any:
        value, count = values[source.name], padding.count(target)
        if count == 0:  # the deeper members have left
            return value
        if count < len(value):
            value, ended = value.split([count, len(value) - count])
            values.setdefault(_ENDED, []).append(ended)
        if count > len(value) or units not in (0, value.shape[-1]):
            value = joined_units([value, *reversed(values.pop(_ENDED, []))], units)
        return run({source.name: value}, x, training)

    return run_first


def _has_several_results(node: fx.Node, root: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(root.get_submodule(str(node.target)), SEQUENCE_LAYERS)


def _read_node(name: str) -> Run:
    return lambda values, x, training: values[name]


def _read_tensor(
    target: str, root: nn.Module, traced: Traced, constructed: dict[str, StackedLayer], compute: torch.dtype
) -> tuple[Run, bool]:
    """Return how to read a parameter or another tensor of the module, and whether its value is stacked."""
    if target not in traced.tensors:
        parameter = Parameter(target)
        constructed[f"parameter {target}"] = parameter
        return lambda values, x, training: parameter(x), True
    values = traced.tensors[target]
    statistics = [buffer for layer in root.modules() if type(layer) in LAYERS for buffer in layer.buffers()]
    require(
        all(values[0] is not buffer for buffer in statistics), f"'{target}'", "the forward reads a layer's statistics"
    )
    shared = all(equal(values[0], value) for value in values)
    buffer = Buffer(values[:1] if shared else values, compute)
    if shared:
        return lambda values, x, training: buffer(x)[0], False
    constructed[f"buffer {target}"] = buffer
    return lambda values, x, training: buffer(x), True


def _layer(
    node: fx.Node, roots: Sequence[nn.Module], constructed: dict[str, StackedLayer], stacked: set[fx.Node]
) -> tuple[Run, bool]:
    """Return how to run the layer that `node` calls, and whether its result is stacked even for a shared input.

    A layer that is called twice is one stacked layer.
    """
    target = str(node.target)
    modules: list[nn.Module] = [root.get_submodule(target) for root in roots]
    module, kind = modules[0], type(modules[0])
    layer_name = f"layer '{target}' ({kind.__name__})"
    require(kind not in ADVICE, layer_name, ADVICE.get(kind, ""))
    others = (*ELEMENTWISE_LAYERS, *POOLING_LAYERS, *MEMBERWISE_LAYERS, *SEQUENCE_LAYERS)
    require(kind in LAYERS or kind in others, layer_name, "there is no stacked form of it")
    settings = [layer_settings(each) for each in modules]
    for setting in settings[0]:
        require(len({each.get(setting) for each in settings}) == 1, layer_name, f"the members differ in its {setting}")
    require("forward" not in vars(module), layer_name, "its forward was replaced")
    if kind in SEQUENCE_LAYERS:
        return _sequence_layer(node, target, modules, constructed, stacked), True
    one_tensor = len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs
    require(one_tensor, layer_name, "its input must be one tensor")
    (source,) = node.all_input_nodes
    name, is_stacked = source.name, source in stacked
    _require_supported_settings(module, layer_name, is_stacked)
    if getattr(module, "inplace", False):
        require_not_read_later(node, roots[0])
    if kind in DROPOUT_LAYERS or any(True for _ in module.parameters()):
        # A dropout layer called twice draws two masks; any other layer has one set of parameters and statistics.
        key = f"{target} at {node.name}" if kind in DROPOUT_LAYERS else target
        layer = constructed.setdefault(key, LAYERS[kind](target, modules))
        if isinstance(layer, WeightedLayer):
            layer.is_normalized = _is_normalized(node, roots[0])
        return lambda values, x, training: layer(values[name], is_stacked, training), True
    if kind in POOLING_LAYERS:
        dims = POOLING_LAYERS[kind]
        return lambda values, x, training: pooled(module.forward, dims, values[name], is_stacked), False
    if getattr(module, "inplace", False):
        module = copy.copy(module)
        vars(module)["inplace"] = False
    if kind in MEMBERWISE_LAYERS and is_stacked:
        return lambda values, x, training: memberwise(module.forward, [values[name]]), False
    # Call forward, not the module: another thread may be tracing, which changes how all modules are called.
    return lambda values, x, training: module.forward(values[name]), False


def _is_normalized(node: fx.Node, root: nn.Module) -> bool:
    """Return whether only batch norms read the results of the layer that `node` calls, which others may call too."""
    calls = (each for each in node.graph.nodes if (each.op, each.target) == (node.op, node.target))
    users = [user for call in calls for user in call.users]
    return all(called(user, root) in (nn.BatchNorm1d, nn.BatchNorm2d) for user in users)


MAX_LSTM_UNITS = 16
"""Units of an LSTM above which a stack on a CPU is slower than torch's fused LSTM, one member at a time."""

SEQUENCES: dict[type[nn.Module], Callable[[str, Sequence[Any]], SequenceLayer]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.MultiheadAttention: MultiheadAttention,
}
"""The classes of the stacked forms of `SEQUENCE_LAYERS`."""


def _sequence_layer(
    node: fx.Node,
    target: str,
    modules: Sequence[nn.Module],
    constructed: dict[str, StackedLayer],
    stacked: set[fx.Node],
) -> Run:
    """Return how to run a layer of several arguments or results; it gets values of all members, [K, ...]."""
    module = modules[0]
    layer_name = f"layer '{target}' ({type(module).__name__})"
    if isinstance(module, nn.MultiheadAttention):
        require(module.bias_k is None and not module.add_zero_attn, layer_name, "it adds keys and values")
        taken = [user.target is operator.getitem and (user.args[1] == 0 or not user.users) for user in node.users]
        require(all(taken), layer_name, "its attention weights are used; use its first result only")
    elif isinstance(module, nn.LSTM):
        require(module.proj_size == 0, layer_name, "proj_size is not supported")
        small = module.hidden_size <= MAX_LSTM_UNITS
        require(small, layer_name, f"above {MAX_LSTM_UNITS} units, torch's own LSTM is faster one at a time")
    layer: Any = SEQUENCES[type(module)](target, modules)
    constructed[f"{target} at {node.name}"] = layer  # each call draws its own dropout masks

    def run(values: Values, x: Tensor, training: bool) -> Any:
        inputs = {}
        for used in node.all_input_nodes:
            value = values[used.name]
            shared = used not in stacked and isinstance(value, Tensor)
            inputs[used] = value.expand(layer.members, *value.shape) if shared else value
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), inputs.__getitem__)
        return layer.call(training, *args, **kwargs)

    return run


def _require_supported_settings(module: nn.Module, name: str, is_stacked: bool) -> None:
    """Raise CannotStackError for settings of a layer that its stacked form does not support."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        require(module.padding_mode == "zeros", name, f"padding_mode = '{module.padding_mode}' is not supported")
        reach = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        even = module.padding != "same" or all(each % 2 == 0 for each in reach)
        require(even, name, "padding = 'same' needs a kernel of odd size")
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        require(module.affine and module.track_running_stats, name, "it must have parameters and running statistics")
        require(module.momentum is not None, name, "momentum = None (a cumulative average) is not supported")
    if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d):
        require(not module.track_running_stats, name, "running statistics are not supported")
    if isinstance(module, nn.MaxPool1d | nn.MaxPool2d | nn.AdaptiveMaxPool1d | nn.AdaptiveMaxPool2d):
        require(not module.return_indices, name, "it returns indices")
    if isinstance(module, nn.Embedding):
        require(not is_stacked, name, "its input must be the same for all members")
        plain = module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
        require(plain, name, "max_norm, scale_grad_by_freq and sparse are not supported")
