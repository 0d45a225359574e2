"""Linear layers of K members with the batch norm, ReLU and dropout that follow them, as one operation in training.

Instead of one autograd function and new tensors for each layer, one function computes as many layers as follow each
other, in place where nobody else reads the values, and saves fewer tensors for its backward. A bias before batch norm
is left out of the products: the batch's mean cancels it, so that its gradient is 0. Random numbers, statistics and
parameters are those of the single layers.

Fused on a CPU only, where it was measured. What is elementwise is computed by compiled passes where there are some
(hpo/training/compiled/), else by torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hpo.training.compiled.passes import Passes, load_passes, passes_for
from hpo.training.stacking.batch_norm import BatchNorm, at_least_float32
from hpo.training.stacking.dropout import Dropout
from hpo.training.stacking.functions import Run, Step, Values
from hpo.training.stacking.layers import Linear, StackedLayer, apply, linear_product, write_weight_gradient
from hpo.training.stacking.tracing.trace import called

RELUS = (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
"""Layers, functions and methods that compute ReLU."""


class _ChainsFunction(torch.autograd.Function):
    """Chains of K members, one after the other, [K, B, features] or [B, features] -> [K, B, units].

    Between two chains, the activations are [K, units, B]. `weight` is that of the first chain.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, chains: Sequence[LinearChain]) -> Tensor:
        saved, counts = [x], list[int]()
        product = linear_product(x, weight)
        for chain in chains:
            if counts:
                product = torch.bmm(chain.linear.weight.value, saved[-1])
            of_chain = chain.forward(product)
            saved += of_chain
            counts.append(len(of_chain))
        ctx.chains, ctx.counts = chains, counts
        ctx.save_for_backward(*saved)
        return saved[-1].transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        x, *saved = ctx.saved_tensors
        # [K, units, B]. A copy: chains overwrite gradients.
        grad = grads[0].transpose(1, 2).clone(memory_format=torch.contiguous_format)
        for chain, count in zip(reversed(ctx.chains), reversed(ctx.counts), strict=True):
            grad = chain.backward(grad, *saved[-count:])
            del saved[-count:]
            write_weight_gradient(chain.linear.weight, grad, saved[-1].transpose(1, 2) if saved else x)
            if saved or ctx.needs_input_grad[0]:
                grad = torch.bmm(chain.linear.weight.value.transpose(1, 2), grad)
        return (grad.transpose(1, 2) if ctx.needs_input_grad[0] else None), None, None


@dataclass(frozen=True)
class LinearChain:
    """A linear layer, and what follows it: batch norm, ReLU, and after ReLU dropout."""

    linear: Linear
    norm: BatchNorm | None
    relu: bool
    dropout: Dropout | None

    def forward(self, product: Tensor) -> list[Tensor]:
        """Return what `backward` needs, the chain's output last, for the linear layer's products [K, units, B].

        The products may be overwritten.
        """
        passes = passes_for(product)
        if passes is not None:
            return self._forward_compiled(product, passes)
        bias, saved = self.linear.bias, []
        if self.norm is not None:
            out, *statistics = self.norm.normalized(product, None if bias is None else bias.value)
            saved = [product, *statistics]
        else:
            out = product if bias is None else product.add_(bias.value.unsqueeze(-1))
        if self.relu:
            out.relu_()
        if self._drops is not None:
            out.mul_(self._drops.mask_of_units(out))
        return [*saved, out]

    @property
    def _drops(self) -> Dropout | None:
        """Return the dropout if it drops any element."""
        return self.dropout if self.dropout is not None and self.dropout.drops(training=True) else None

    def _forward_compiled(self, product: Tensor, passes: Passes) -> list[Tensor]:
        bias = None if self.linear.bias is None else at_least_float32(self.linear.bias.value)
        out, saved = product, []
        if self.norm is not None:
            weight, shift = (at_least_float32(slot.value) for slot in (self.norm.weight, self.norm.bias))
            self.norm.require_several(product)
            out, statistics = passes.normalize(product, bias, weight, shift, self.norm.eps, self.relu)
            _, scale, mean = statistics
            self.norm.record_statistics(mean, scale, product.shape[2])
            saved = [product, statistics]
        else:
            passes.shift(product, None, bias, self.relu)
        if self._drops is not None:
            passes.drop(out, *self._drops.mask_numbers(out[0].numel(), out))
        return [*saved, out]

    def evaluate(self, product: Tensor, passes: Passes) -> None:
        """Replace the linear layer's products [K, units, B] by the chain's output outside of training."""
        bias = None if self.linear.bias is None else at_least_float32(self.linear.bias.value)
        weight, shift = (None, bias) if self.norm is None else self.norm.of_running_statistics(bias)
        passes.shift(product, weight, shift, self.relu)

    def backward(self, grad: Tensor, *saved: Tensor) -> Tensor:
        """Return the gradient of the products for that of the output, both [K, units, B]; write those of parameters.

        The output's may be overwritten. That of the linear layer's weight is left to the caller.
        """
        *normalized, out = saved
        bias_slot = self.linear.bias
        scales = None if self._drops is None else self._drops.scales(out)
        passes = passes_for(grad)
        if passes is not None:
            self._backward_compiled(grad, out, scales, normalized, passes)
            return grad
        if self.relu:  # an output is 0 where dropout dropped it, too
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        if self.norm is not None:
            product, mean, scale, weight = normalized
            grad = self.norm.normalized_backward(grad, product, mean, scale, weight, scales)
            if bias_slot is not None:
                bias_slot.write(torch.Tensor.zero_)
        else:
            if scales is not None:
                grad.mul_(scales.unsqueeze(-1))
            if bias_slot is not None:
                bias_slot.write(lambda into: torch.sum(grad, -1, out=into))
        return grad

    def _backward_compiled(
        self, grad: Tensor, out: Tensor, scales: Tensor | None, normalized: Sequence[Tensor], passes: Passes
    ) -> None:
        """Replace the gradient of the output by that of the products."""
        run = partial(passes.backward, grad, out, self.relu, scales)
        norm, bias = self.norm, self.linear.bias
        if norm is not None:
            product, statistics = normalized
            weight = at_least_float32(norm.weight.value)
            norm.bias.write(lambda shift: norm.weight.write(partial(run, shift, product, weight, statistics)))
            if bias is not None:
                bias.write(torch.Tensor.zero_)
        elif bias is not None:
            bias.write(run)
        else:
            run(None)


def with_chains(
    steps: Sequence[Step],
    graph: fx.Graph,
    root: nn.Module,
    layers: dict[str, StackedLayer],
    stacked: set[fx.Node],
    compute: torch.dtype,
    whole: bool,
) -> list[tuple[list[fx.Node], Run, list[str]]]:
    """Return the program with linear layers, and what follows them, as one step, and each step with its nodes.

    If `whole`, a chain and the next one are one step where only the next one reads its output. `layers` are the stacked
    layers by their modules' names, with " at NODE" for dropout; `stacked` are the nodes with stacked values; `compute`
    is the type of activations. Nothing but the chains reads the values between their layers, so they run where their
    first layer does.
    """
    if next(root.parameters()).device.type == "cpu":
        load_passes(compute)  # here: the processes of stacks would load them anew
    runs = {name: run for name, run, _ in steps}
    frees = {name: free for name, _, free in steps}
    found: list[tuple[list[fx.Node], Run, list[str]]] = []
    chained: set[fx.Node] = set()
    for node in graph.nodes:
        if node in chained:
            continue
        nodes, run = [node], runs[node.name]
        if called(node, root) is nn.Linear:
            chain, nodes = _find_chain(node, root, layers)
            chains = [chain]
            while whole and (reader := _only_reader(nodes[-1])) is not None and called(reader, root) is nn.Linear:
                chain, more = _find_chain(reader, root, layers)
                chains.append(chain)
                nodes += more
            (source,) = node.all_input_nodes
            run = _run_chains(chains, source.name, source in stacked, [(each.name, runs[each.name]) for each in nodes])
            chained.update(nodes)
        found.append((nodes, run, frees[node.name]))
    return found


def _run_chains(chains: Sequence[LinearChain], source: str, is_stacked: bool, runs: Sequence[tuple[str, Run]]) -> Run:
    """Return how to run chains; `runs` are the computations of their layers, for calls that they do not fit."""

    def run(values: Values, x: Tensor, training: bool) -> Any:
        value = values[source]
        if training and fits(value, is_stacked):
            return apply(_ChainsFunction, value, chains[0].linear.weight.value, chains)
        if not torch.is_grad_enabled() and fits(value, is_stacked) and (passes := passes_for(value)) is not None:
            return _evaluate(value, chains, passes)
        name = source
        for following, run_layer in runs:
            name, value = following, run_layer({name: value}, x, training)
        return value

    return run


def _evaluate(x: Tensor, chains: Sequence[LinearChain], passes: Passes) -> Tensor:
    """Return the output of chains for [K, B, features] or [B, features] outside of training, [K, B, units]."""
    for index, chain in enumerate(chains):
        weight = chain.linear.weight.value
        product = torch.bmm(weight, x) if index else linear_product(x, weight)
        chain.evaluate(product, passes)
        x = product
    return x.transpose(1, 2)


def fits(x: Tensor, stacked: bool) -> bool:
    """Return whether chains are computed as one operation for this input."""
    return x.dim() == 2 + stacked and x.device.type == "cpu"


def _only_reader(node: fx.Node) -> fx.Node | None:
    """Return the node that alone reads this one and nothing else, or None."""
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].all_input_nodes == [node] else None


def _find_chain(first: fx.Node, root: nn.Module, layers: dict[str, StackedLayer]) -> tuple[LinearChain, list[fx.Node]]:
    """Return the chain that begins with a linear layer's node, and the nodes in it."""
    nodes = [first]

    def follows(kinds: tuple[Any, ...]) -> bool:
        """Return whether a node of these kinds alone reads the last node, and add it to the chain."""
        reader = _only_reader(nodes[-1])
        if reader is None or called(reader, root) not in kinds:
            return False
        nodes.append(reader)
        return True

    linear, norm, dropout = layers[str(first.target)], None, None
    if follows((nn.BatchNorm1d,)):
        norm = layers[str(nodes[-1].target)]
    relu = follows(RELUS)
    if relu and follows((nn.Dropout,)):
        dropout = layers[f"{nodes[-1].target} at {nodes[-1].name}"]
    assert isinstance(linear, Linear)
    assert norm is None or isinstance(norm, BatchNorm)
    assert dropout is None or isinstance(dropout, Dropout)
    return LinearChain(linear, norm, relu, dropout), nodes
