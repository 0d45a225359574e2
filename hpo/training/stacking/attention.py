"""Stacked form of `nn.MultiheadAttention`. Dropout draws each member's masks from its key."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpo.training.stacking.dropout import Dropout
from hpo.training.stacking.functions import attention
from hpo.training.stacking.layers import SequenceLayer, is_shared, project
from hpo.training.stacking.tracing.trace import require


class MultiheadAttention(SequenceLayer):
    """Stacked form of `nn.MultiheadAttention`, without its attention weights."""

    def __init__(self, name: str, modules: Sequence[nn.MultiheadAttention]) -> None:
        self._module = modules[0]
        self._dropout = Dropout(name, [nn.Dropout(module.dropout) for module in modules])
        super().__init__(name, modules[0], [self._dropout])

    def call(
        self,
        training: bool,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return the attention's output as the module does, with a leading K, and None in the place of the weights.

        `is_causal` only describes the mask, and is ignored.
        """
        for each in (query, key, value):
            require(each.dim() == 4, self._name, "its inputs must have 3 dimensions")
        parameters = self.values(query)
        q, k, v = self._projected(query, key, value, parameters)
        if not self._module.batch_first:
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        q, k, v = (torch.unflatten(each, -1, (self._module.num_heads, -1)).transpose(2, 3) for each in (q, k, v))
        mask = self._mask(q, attn_mask, key_padding_mask)
        if self._dropout.drops(training):
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            out = self._dropout(weights, True, training) @ v
        else:
            out = attention(q, k, v, mask)
        out = out.transpose(2, 3).flatten(-2)
        out = project(out, parameters["out_proj.weight"], parameters.get("out_proj.bias"))
        return out if self._module.batch_first else out.transpose(1, 2), None

    def _projected(
        self, query: Tensor, key: Tensor, value: Tensor, parameters: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        bias = parameters.get("in_proj_bias")
        weight = parameters.get("in_proj_weight")
        if weight is not None and query is key is value:
            q, k, v = project(query, weight, bias).chunk(3, -1)
            return q, k, v
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        weights = [parameters[name] for name in names] if weight is None else weight.chunk(3, 1)
        biases: Sequence[Tensor | None] = [None] * 3 if bias is None else bias.chunk(3, 1)
        q, k, v = (project(*each) for each in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _mask(self, q: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Return both masks as one that is added to the scores, [K, B, heads, T, S] or broadcast to that."""
        found = None
        if mask is not None:
            if is_shared(mask) and mask.dim() == 3:
                found = _additive(mask[0], q.dtype)
            else:
                added = _additive(mask, q.dtype)
                found = added[:, None, None] if mask.dim() == 3 else torch.unflatten(added, 1, q.shape[1:3])
        if padding is not None:
            added = _additive(padding, q.dtype)[:, :, None, None]
            found = added if found is None else found + added
        return found


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -torch.inf)
    return mask.to(dtype)
