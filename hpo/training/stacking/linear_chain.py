"""Linear layers of K members with the batch norm, ReLU and dropout that follow them, as one operation in training.

Instead of one autograd function and new tensors for each layer, one function computes in place where nobody else reads
the values, and saves fewer tensors for its backward. A bias before batch norm is left out of the products: the batch's
mean cancels it, so that its gradient is 0. Random numbers, statistics and parameters are those of the single layers.

Fused on a CPU only, where it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from hpo.training.stacking.batch_norm import BatchNorm
from hpo.training.stacking.dropout import Dropout
from hpo.training.stacking.functions import Run, Step, Values
from hpo.training.stacking.layers import Linear, StackedLayer, apply, linear_product, write_weight_gradient
from hpo.training.stacking.trace import called

RELUS = (nn.ReLU, F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")
"""Layers, functions and methods that compute ReLU."""


class _ChainFunction(torch.autograd.Function):
    """A chain of K members, [K, B, features] or [B, features] -> [K, B, units]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, chain: LinearChain) -> Tensor:
        product = linear_product(x, weight)
        bias, norm = chain.linear.bias, chain.norm
        saved = [x, weight]
        if norm is not None:
            out, *statistics = norm.normalized(product, None if bias is None else bias.value)
            saved += [product, *statistics]
        else:
            out = product if bias is None else product.add_(bias.value.unsqueeze(-1))
        if chain.relu:
            out.relu_()
        if chain.dropout is not None and chain.dropout.drops(training=True):
            out.mul_(chain.dropout.mask_of_units(out))
        ctx.chain = chain
        ctx.save_for_backward(*saved, out)
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        x, weight, *normalized, out = ctx.saved_tensors
        chain: LinearChain = ctx.chain
        bias_slot = chain.linear.bias
        grad, scales = grads[0].transpose(1, 2).contiguous(), None  # [K, units, B]
        if chain.relu:  # an output is 0 where dropout dropped it, too
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        if chain.dropout is not None and chain.dropout.drops(training=True):
            scales = chain.dropout.scales(out)
        if chain.norm is not None:
            product, mean, scale, norm_weight = normalized
            grad = chain.norm.normalized_backward(grad, product, mean, scale, norm_weight, scales)
            if bias_slot is not None:
                bias_slot.write(torch.Tensor.zero_)
        else:
            if scales is not None:
                grad.mul_(scales.unsqueeze(-1))
            if bias_slot is not None:
                bias_slot.write(lambda into: torch.sum(grad, -1, out=into))
        write_weight_gradient(chain.linear.weight, grad, x)
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return torch.bmm(weight.transpose(1, 2), grad).transpose(1, 2), None, None


@dataclass(frozen=True)
class LinearChain:
    """A linear layer, and what follows it: batch norm, ReLU, and after ReLU dropout."""

    linear: Linear
    norm: BatchNorm | None
    relu: bool
    dropout: Dropout | None

    def fits(self, x: Tensor, stacked: bool, training: bool) -> bool:
        """Return whether a call with this input is computed as one operation."""
        return training and x.dim() == 2 + stacked and x.device.type == "cpu"

    def __call__(self, x: Tensor) -> Tensor:
        """Return the chain's output in training, [K, B, units], for [K, B, features] or [B, features]."""
        return apply(_ChainFunction, x, self.linear.weight.value, self)


def with_chains(
    steps: Sequence[Step],
    graph: fx.Graph,
    root: nn.Module,
    layers: dict[str, StackedLayer],
    stacked: set[fx.Node],
) -> list[Step]:
    """Return the program with each linear layer and what follows it as one step.

    `layers` are the stacked layers by their modules' names, with " at NODE" for dropout; `stacked` are the nodes with
    stacked values. Nothing but the chain reads the values between its layers, so it runs where its first layer does.
    """
    found = {step[0]: step for step in steps}
    for node in graph.nodes:
        if called(node, root) is nn.Linear:
            chain, nodes = _find_chain(node, root, layers)
            (source,), parts = node.all_input_nodes, [found.pop(each.name) for each in nodes[1:]]
            _, run, free = found[node.name]
            runs = [(node.name, run), *(part[:2] for part in parts)]
            found[node.name] = (nodes[-1].name, _run_chain(chain, source.name, source in stacked, runs), free)
    return list(found.values())


def _run_chain(chain: LinearChain, source: str, is_stacked: bool, runs: Sequence[tuple[str, Run]]) -> Run:
    """Return how to run a chain; `runs` are the computations of its layers, for calls that it does not fit."""

    def run(values: Values, x: Tensor, training: bool) -> Any:
        value = values[source]
        if chain.fits(value, is_stacked, training):
            return chain(value)
        name = source
        for following, run_layer in runs:
            name, value = following, run_layer({name: value}, x, training)
        return value

    return run


def _find_chain(first: fx.Node, root: nn.Module, layers: dict[str, StackedLayer]) -> tuple[LinearChain, list[fx.Node]]:
    """Return the chain that begins with a linear layer's node, and the nodes in it."""
    nodes = [first]

    def follows(kinds: tuple[Any, ...]) -> bool:
        """Return whether a node of these kinds alone reads the last node, and add it to the chain."""
        users = list(nodes[-1].users)
        if len(users) != 1 or users[0].all_input_nodes != nodes[-1:] or called(users[0], root) not in kinds:
            return False
        nodes.append(users[0])
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
