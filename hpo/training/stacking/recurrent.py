"""Stacked recurrent layers, `nn.LSTM` and `nn.GRU`: one product for all members in each time step.

torch's own layers cannot run several members: torch.vmap supports neither of them. The loop over the steps is one
autograd function, whose backward is written out. It computes in float32 or float64, also between bfloat16 activations.
Dropout between the layers draws each member's masks from its key. Packed sequences are not supported.

In memory, a step is [K, units, B]: its product then writes contiguous blocks, one a gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpo.training.stacking.dropout import Dropout
from hpo.training.stacking.layers import SequenceLayer, is_shared
from hpo.training.stacking.tracing.trace import require

_PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _LSTMFunction(torch.autograd.Function):
    """Steps of an LSTM (S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation, 1997).

    From the products of the inputs [T, K, 4 units, B], the weights [K, 4 units, units] and the first states
    [K, units, B], the hidden states after each step [T, K, units, B] and the last cell state.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        steps, members, _, batch = inputs.shape
        units = weight.shape[2]
        gates = inputs.new_empty(inputs.shape)
        hiddens, cells = (inputs.new_empty(steps + 1, members, units, batch) for _ in range(2))
        tanhs = inputs.new_empty(steps, members, units, batch)
        hiddens[0], cells[0] = hidden, cell
        for step in range(steps):
            torch.baddbmm(inputs[step], weight, hiddens[step], out=gates[step])
            gates[step, :, : 2 * units].sigmoid_()
            entering, forgetting, candidate, leaving = gates[step].chunk(4, 1)
            candidate.tanh_()
            leaving.sigmoid_()
            torch.mul(forgetting, cells[step], out=cells[step + 1]).addcmul_(entering, candidate)
            torch.mul(leaving, torch.tanh(cells[step + 1], out=tanhs[step]), out=hiddens[step + 1])
        ctx.save_for_backward(weight, gates, hiddens, cells, tanhs)
        return hiddens[1:], cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight, gates, hiddens, cells, tanhs = ctx.saved_tensors
        units, transposed = weight.shape[2], weight.transpose(1, 2)
        entering, forgetting, candidate, leaving = gates.chunk(4, 2)
        # The derivatives of a step's gates by its cell state (the first three) and by its hidden state.
        factors = torch.empty_like(gates)
        torch.mul(entering * (1 - entering), candidate, out=factors[:, :, :units])
        torch.mul(forgetting * (1 - forgetting), cells[:-1], out=factors[:, :, units : 2 * units])
        torch.mul(1 - candidate * candidate, entering, out=factors[:, :, 2 * units : 3 * units])
        torch.mul(leaving * (1 - leaving), tanhs, out=factors[:, :, 3 * units :])
        of_cell = (1 - tanhs * tanhs).mul_(leaving)
        hidden, cell = torch.zeros_like(hiddens[0]), grads[1].clone()
        for step in reversed(range(len(gates))):
            hidden += grads[0][step]
            cell.addcmul_(hidden, of_cell[step])
            torch.unflatten(factors[step, :, : 3 * units], 1, (3, units)).mul_(cell.unsqueeze(1))
            factors[step, :, 3 * units :].mul_(hidden)
            cell.mul_(forgetting[step])
            torch.bmm(transposed, factors[step], out=hidden)
        return factors, _weight_gradient(factors, hiddens), hidden, cell


class _GRUFunction(torch.autograd.Function):
    """Steps of a GRU (K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", EMNLP 2014).

    From the products of the inputs [T, K, 3 units, B], the weights [K, 3 units, units], the bias of the hidden states
    [K, 3 units, 1] and the first state [K, units, B], the hidden states after each step [T, K, units, B].
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor) -> Tensor:
        steps, members, _, batch = inputs.shape
        units = weight.shape[2]
        gates, candidates = inputs.new_empty(inputs.shape), inputs.new_empty(steps, members, units, batch)
        hiddens = inputs.new_empty(steps + 1, members, units, batch)
        hiddens[0] = hidden
        for step in range(steps):
            torch.baddbmm(bias, weight, hiddens[step], out=gates[step])
            both = gates[step, :, : 2 * units].add_(inputs[step, :, : 2 * units]).sigmoid_()
            reset, update = both.chunk(2, 1)
            torch.addcmul(inputs[step, :, 2 * units :], reset, gates[step, :, 2 * units :], out=candidates[step])
            candidates[step].tanh_()
            torch.lerp(candidates[step], hiddens[step], update, out=hiddens[step + 1])
        ctx.save_for_backward(weight, gates, candidates, hiddens)
        return hiddens[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        weight, gates, candidates, hiddens = ctx.saved_tensors
        units, transposed = weight.shape[2], weight.transpose(1, 2)
        reset, update, products = gates.chunk(3, 2)
        # The derivatives by a step's hidden state: of the candidate's input, and of the products of the former state.
        of_candidate = (1 - candidates * candidates).mul_(1 - update)
        factors = torch.empty_like(gates)
        torch.mul(of_candidate * products, reset * (1 - reset), out=factors[:, :, :units])
        torch.mul(hiddens[:-1] - candidates, update * (1 - update), out=factors[:, :, units : 2 * units])
        torch.mul(of_candidate, reset, out=factors[:, :, 2 * units :])
        hidden = torch.zeros_like(hiddens[0])
        for step in reversed(range(len(gates))):
            hidden += grads[0][step]
            torch.unflatten(factors[step], 1, (3, units)).mul_(hidden.unsqueeze(1))
            of_candidate[step].mul_(hidden)
            torch.baddbmm(hidden * update[step], transposed, factors[step], out=hidden)
        inputs = torch.cat([factors[:, :, : 2 * units], of_candidate], 2)
        return inputs, _weight_gradient(factors, hiddens), factors.sum((0, 3)).unsqueeze(-1), hidden


def _weight_gradient(products: Tensor, hiddens: Tensor) -> Tensor:
    """Return the gradient of the weights of all steps' products, given that of the products."""
    return torch.bmm(products.permute(1, 2, 0, 3).flatten(2), hiddens[:-1].permute(1, 0, 3, 2).flatten(1, 2))


class Recurrent(SequenceLayer):
    """Base class of the stacked forms; `run` computes one layer in one direction."""

    state_count = 1

    def __init__(self, name: str, modules: Sequence[nn.RNNBase]) -> None:
        self._module = modules[0]
        rates = [nn.Dropout(module.dropout) for module in modules]
        self._between = [Dropout(name, rates) for _ in range(modules[0].num_layers - 1)]
        super().__init__(name, modules[0], self._between)

    def call(self, training: bool, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """Return the layer's output and last states as the module does, each with a leading K.

        `x` is [K, B, T, features], or [K, T, B, features] unless batch_first; `hx` are the first states.
        """
        module = self._module
        require(isinstance(x, Tensor) and x.dim() == 4, self._name, "its input must have 3 dimensions")
        steps = x.transpose(1, 2) if module.batch_first else x
        firsts = self._first_states(steps, hx)
        values = self.values(x)
        lasts: list[Sequence[Tensor]] = []
        for layer in range(module.num_layers):
            outputs = []
            for suffix in ("", "_reverse")[: 1 + module.bidirectional]:
                weights = [values.get(f"{key}_l{layer}{suffix}") for key in _PARAMETERS]
                states = [each[:, len(lasts)].transpose(1, 2) for each in firsts]
                output, last = self._run_layer(steps.flip(1) if suffix else steps, weights, states)
                outputs.append(output.flip(1) if suffix else output)
                lasts.append(last)
            steps = torch.cat(outputs, -1) if module.bidirectional else outputs[0]
            if layer < module.num_layers - 1:
                steps = self._between[layer](steps, True, training)
        found = [torch.stack([state.transpose(1, 2) for state in each], 1) for each in zip(*lasts, strict=True)]
        output = steps.transpose(1, 2) if module.batch_first else steps
        return output, found[0] if self.state_count == 1 else tuple(found)

    def _first_states(self, steps: Tensor, hx: Any) -> Sequence[Tensor]:
        """Return the first states [K, layers x directions, B, units] each."""
        if hx is not None:
            return (hx,) if self.state_count == 1 else tuple(hx)
        layers = self._module.num_layers * (1 + self._module.bidirectional)
        zeros = steps.new_zeros(len(steps), layers, steps.shape[2], self._module.hidden_size)
        return (zeros,) * self.state_count

    def _run_layer(
        self, steps: Tensor, weights: Sequence[Tensor | None], states: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the outputs of `steps` [K, T, B, features] in one direction, [K, T, B, units], and the last states."""
        of_input, of_hidden, input_bias, hidden_bias = weights
        assert of_input is not None
        assert of_hidden is not None
        dtype = torch.promote_types(steps.dtype, torch.float32)
        inputs = _products(steps, of_input, input_bias).to(dtype)
        if hidden_bias is None:
            hidden_bias = of_hidden.new_zeros(of_hidden.shape[:2])
        outputs, *lasts = self.run(
            inputs, of_hidden.to(dtype), hidden_bias.unsqueeze(-1).to(dtype), [each.to(dtype) for each in states]
        )
        outputs, *lasts = (each.to(steps.dtype) for each in (outputs, *lasts))
        return outputs.permute(1, 0, 3, 2), [outputs[-1], *lasts]

    def run(self, inputs: Tensor, weight: Tensor, bias: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the hidden states [T, K, units, B], and the last of any other state [K, units, B]."""
        raise NotImplementedError


def _products(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the products of `x` [K, T, B, features] and the weights [K, units, features] as [T, K, units, B]."""
    if is_shared(x):  # one product for all members
        out = torch.unflatten(weight.flatten(0, 1) @ x[0].flatten(0, 1).t(), 0, weight.shape[:2])
        out = out if bias is None else out + bias.unsqueeze(-1)
    else:
        columns = x.flatten(1, 2).transpose(1, 2)
        out = torch.bmm(weight, columns) if bias is None else torch.baddbmm(bias.unsqueeze(-1), weight, columns)
    return torch.unflatten(out, 2, x.shape[1:3]).permute(2, 0, 1, 3)


class LSTM(Recurrent):
    """Stacked form of `nn.LSTM`."""

    state_count = 2

    def run(self, inputs: Tensor, weight: Tensor, bias: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the hidden states [T, K, units, B] and the last cell state."""
        found: Sequence[Tensor] = _LSTMFunction.apply(inputs + bias, weight, *states)  # type: ignore[no-untyped-call]
        return found


class GRU(Recurrent):
    """Stacked form of `nn.GRU`."""

    def run(self, inputs: Tensor, weight: Tensor, bias: Tensor, states: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the hidden states [T, K, units, B]."""
        return [_GRUFunction.apply(inputs, weight, bias, *states)]  # type: ignore[no-untyped-call]
