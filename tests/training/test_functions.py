"""Functions and methods of networks give each member the results of plain torch.

Every function is tested on a stacked and on a shared value, with dimensions from either end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch_reference import assert_trains_like_plain, seeded

from hpo.training.stacking.tracing.supported import (
    COPYING_FUNCTIONS,
    ELEMENTWISE_FUNCTIONS,
    SIZE_CONSTRUCTORS,
    VIEWING_FUNCTIONS,
)

SEQUENCES = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
LABELS = torch.arange(6) % 3


class Features(nn.Module):
    """Apply a function to `own` [B, 5, 4], stacked, and `x` [B, 5, 4], shared; then a layer."""

    def __init__(self, what: Callable[[Features, Tensor, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.what, self.first = what, nn.Linear(4, 4)
        self.scale, self.rows = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(5, 4))
        self.pair = nn.Parameter(torch.ones(1, 1, 2))
        self.register_buffer("mask", torch.zeros(5, 5))
        self.register_buffer("taken", torch.zeros(3, dtype=torch.int64))
        self.taken.copy_(torch.tensor([4, 0, 1]))
        self.last = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.what(self, self.first(x), x))


def features_of(what: Callable[[Features, Tensor, Tensor], Tensor]) -> int:
    with torch.no_grad():
        module = Features(what, 1).double()
        return what(module, module.first(SEQUENCES), SEQUENCES).shape[-1]


def assert_same_as_plain(what: Callable[[Features, Tensor, Tensor], Tensor], members: int = 3) -> None:
    features = features_of(what)
    assert_trains_like_plain(seeded(lambda: Features(what, features), members), SEQUENCES, LABELS, steps=2)


def attention(own: Tensor, other: Tensor) -> Tensor:
    scores = own @ other.transpose(-2, -1) / math.sqrt(own.size(-1))
    return scores.softmax(dim=-1) @ other


def in_heads(x: Tensor) -> Tensor:
    images, length, features = x.shape
    return x.view(images, length, 2, features // 2).transpose(1, 2)


def unpacked(n: Features, own: Tensor, x: Tensor) -> Tensor:
    first, second = own.chunk(2, -1)
    return (first * second).flatten(1)


def split_heads(n: Features, own: Tensor, x: Tensor) -> Tensor:
    q, k = torch.cat([own, x], -1).reshape(x.shape[0], 5, 2, 2, 2).permute(2, 0, 3, 1, 4)
    return (q @ k.mT).flatten(1)


BY_DIMENSION: dict[str, Callable[[Features, Tensor, Tensor], Tensor]] = {
    # dimensions counted from the front and from the back
    **{
        f"{name} {dim}": lambda n, own, x, name=name, dim=dim: getattr(torch, name)(own, dim).reshape(6, -1)
        for name in (
            "softmax",
            "log_softmax",
            "sum",
            "mean",
            "prod",
            "amax",
            "amin",
            "std",
            "var",
            "logsumexp",
            "cumsum",
        )
        for dim in (0, 1, 2, -1, -2, -3)
        if name in ("softmax", "log_softmax", "cumsum") or dim not in (0, -3)
    },
    **{
        f"{name} over the images": lambda n, own, x, name=name: x.flatten(1) - getattr(own, name)(0).flatten()
        for name in ("sum", "mean", "amax", "std")
    },
    "mean of all": lambda n, own, x: (x - own.mean()).flatten(1),
    "mean of several": lambda n, own, x: own.mean((0, -1)) + x.sum(-1),
    "mean kept": lambda n, own, x: (own - own.mean(dim=(1, 2), keepdim=True)).flatten(1),
    "softmax of the images": lambda n, own, x: F.softmax(own, dim=0).flatten(1),
    "softmin": lambda n, own, x: F.softmin(own, -1).flatten(1),
    "max with places": lambda n, own, x: own.max(1)[0] + torch.min(own, dim=-2)[0],
    "max by name": lambda n, own, x: own.max(-1).values + torch.min(own, 1).indices.sum(-1, keepdim=True) * n.scale,
    "max of two": lambda n, own, x: torch.max(own, x).flatten(1) + torch.min(own, x).flatten(1),
    "argmax": lambda n, own, x: own.flatten(1) * own.argmax(-1).sum(-1, keepdim=True),
    "argmin": lambda n, own, x: own.flatten(1) * own.flatten(1).argmin(1, keepdim=True),
    "all and any": lambda n, own, x: torch.where((own > 0).any(-1) & (own < 2).all(-1), own[..., 0], x[..., 0]),
    "normalize": lambda n, own, x: F.normalize(own, dim=1).flatten(1),
    "cosine": lambda n, own, x: F.cosine_similarity(own, x, dim=1),
    "glu": lambda n, own, x: F.glu(own, 2).flatten(1),
}

VIEWED: dict[str, Callable[[Features, Tensor, Tensor], Tensor]] = {
    "view that folds the images": lambda n, own, x: own.view(-1, 4).view(6, -1),
    "view by size": lambda n, own, x: own.view(x.size(0), -1),
    "view by own size": lambda n, own, x: own.view(own.size(0), own.size(1) * own.size(-1)),
    "view as": lambda n, own, x: own.transpose(1, 2).contiguous().view_as(x).flatten(1),
    "reshape as": lambda n, own, x: own.mT.reshape_as(x).flatten(1),
    "dims": lambda n, own, x: own.flatten(own.dim() - 2) * own.ndim,
    "numel": lambda n, own, x: own.flatten(1) / own.numel(),
    "flatten all but": lambda n, own, x: own.flatten(0, 1).view(6, 20),
    "flatten negative": lambda n, own, x: torch.flatten(own, -2, -1),
    "unflatten": lambda n, own, x: (
        own.unflatten(-1, (2, 2)).sum(-1).flatten(1) + own.unflatten(0, (2, 3)).sum((0, 1)).sum()
    ),
    "permute": lambda n, own, x: own.permute(0, 2, 1).reshape(6, -1),
    "permute to the end": lambda n, own, x: torch.permute(own, (1, 2, 0)).reshape(6, -1),
    "transpose": lambda n, own, x: own.transpose(1, 2).flatten(1),
    "transpose the images": lambda n, own, x: own.transpose(0, 1).transpose(0, -2).flatten(1),
    "swapaxes": lambda n, own, x: own.swapaxes(1, -1).flatten(1) + torch.swapdims(own, -2, 2).flatten(1),
    "movedim": lambda n, own, x: torch.movedim(own, 2, 1).flatten(1) + own.movedim(-1, -2).flatten(1),
    "t": lambda n, own, x: own.flatten(1).t().reshape(6, -1) + own.flatten(1).T.reshape(6, -1),
    "squeeze": lambda n, own, x: (
        own.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1).flatten(1) + own[:, :1, :1].squeeze().unsqueeze(1)
    ),
    "unsqueeze and expand": lambda n, own, x: own.unsqueeze(2).expand(-1, -1, 3, -1).flatten(1),
    "expand as": lambda n, own, x: own[:, :1].expand_as(x).flatten(1),
    "broadcast to": lambda n, own, x: torch.broadcast_to(own[:1], (6, 5, 4)).flatten(1),
    "narrow and select": lambda n, own, x: own.narrow(1, 2, 2).flatten(1) + own.select(0, 3).flatten()[:8],
    "diagonal": lambda n, own, x: own.diagonal(0, 1, 2) + torch.diagonal(x, dim1=-1, dim2=-2),
    "parts": lambda n, own, x: own[:, 0] + own[:, -1] + x[:, 2] + own[0, 1],
    "slices": lambda n, own, x: own[:, 1:4:2, ..., None].flatten(1) + own[2:3, :2].flatten(1),
    "by numbers": lambda n, own, x: own[:, n.taken].flatten(1) + own[n.taken, 0].sum(),
    "up to a size": lambda n, own, x: n.rows[: x.size(1)].flatten() + own[:, : x.shape[1]].flatten(1),
    "chunk": unpacked,
    "split": lambda n, own, x: torch.cat(own.split([1, 3], dim=-1), -1).flatten(1) + own.split(2, 0)[0].sum(),
    "chunk the images": lambda n, own, x: own.chunk(3)[1].sum() + x.flatten(1),
    "tensor split": lambda n, own, x: torch.tensor_split(own, 3, dim=1)[2].flatten(1),
    "unbind": lambda n, own, x: own.unbind(1)[3] * torch.unbind(own, -2)[-1],
    "contiguous": lambda n, own, x: own.transpose(1, 2).contiguous().flatten(1),
    "detach": lambda n, own, x: own.detach().flatten(1) * own.flatten(1),
    "type as": lambda n, own, x: (own > 0).type_as(x).flatten(1) * own.flatten(1),
    "to a type": lambda n, own, x: (own > 0).to(x.dtype).flatten(1) * own.to(device=x.device).flatten(1),
    "to a type by name": lambda n, own, x: (own * 4).to(torch.int64).to(torch.float64).flatten(1) * n.scale,
    "to another's type": lambda n, own, x: (x > 0).to(own).flatten(1) + own.flatten(1),
    "whole numbers": lambda n, own, x: own.flatten(1) * ((x * 3).int() + (own * 3).long() + own.bool()).flatten(1),
    "floating-point types": lambda n, own, x: (own.float().double() + own.half() + x.bfloat16() * own).flatten(1),
    "looked up": lambda n, own, x: n.rows[(x.abs() * 2).long().clamp(0, 4)].sum(-1).flatten(1),
    "heads": split_heads,
}

JOINED: dict[str, Callable[[Features, Tensor, Tensor], Tensor]] = {
    **{f"cat {d}": lambda n, own, x, d=d: torch.cat([own, x], dim=d).reshape(6, -1) for d in (0, 1, 2, -1, -2, -3)},
    "cat with a token": lambda n, own, x: torch.cat([n.rows[:1].expand(x.shape[0], 1, 4), own], 1).flatten(1),
    "concatenate": lambda n, own, x: torch.concatenate((x, own), -1).flatten(1) + torch.concat((own, x), -1).flatten(1),
    "stack": lambda n, own, x: torch.stack([own, x, own], dim=1).flatten(1),
    "stack at the end": lambda n, own, x: torch.stack((x, own), -1).flatten(1),
    "stack of the images": lambda n, own, x: torch.stack((x, own)).reshape(6, -1),
    "hstack": lambda n, own, x: torch.hstack((own, x)).flatten(1),
    "vstack": lambda n, own, x: torch.vstack((own, x)).reshape(6, -1),
    "clone, repeat, tile": lambda n, own, x: own.clone().repeat(1, 2, 1).flatten(1) + own.tile((2, 1)).flatten(1),
    "flip and roll": lambda n, own, x: own.flip(0, -1).flatten(1) + torch.roll(own, (1, 2), (0, 2)).flatten(1),
    "triangles": lambda n, own, x: own.tril().flatten(1) + torch.triu(own, 1).flatten(1),
    "pad": lambda n, own, x: F.pad(own, (1, 0, 0, 2), value=0.5).flatten(1),
    "interpolate": lambda n, own, x: F.interpolate(own, scale_factor=2, mode="linear").flatten(1),
    "pixel shuffle": lambda n, own, x: F.pixel_shuffle(own[:, :4].unsqueeze(-1), 2).flatten(1),
    "pixel unshuffle": lambda n, own, x: torch.pixel_unshuffle(own[:, :4].unsqueeze(1), 2).flatten(1),
    "new tensors": lambda n, own, x: (
        torch.cat([own.new_zeros(x.size(0), 2), own[:, 0], own.new_ones(6, 1)], -1) + own.new_full((), 2.0)
    ),
    "tensors alike": lambda n, own, x: (
        own * torch.ones_like(own) + torch.zeros_like(x) + torch.full_like(own, 2.0)
    ).flatten(1),
    "made in forward": lambda n, own, x: (own * torch.arange(own.shape[1], device=x.device)[:, None]).flatten(1),
    "constants": lambda n, own, x: (own * torch.linspace(0, 1, 4) * torch.linspace(0, 1, x.size(-1))).flatten(1),
}

MULTIPLIED: dict[str, Callable[[Features, Tensor, Tensor], Tensor]] = {
    "attention": lambda n, own, x: attention(own, own).flatten(1),
    "attention to the shared": lambda n, own, x: (attention(own, x) + attention(x, own)).flatten(1),
    "attention of heads": lambda n, own, x: (
        attention(in_heads(own), in_heads(x)).transpose(1, 2).reshape(6, 5, 4).flatten(1)
    ),
    "bmm": lambda n, own, x: torch.bmm(own, x.mT).flatten(1) + own.bmm(own.mT).flatten(1),
    "baddbmm": lambda n, own, x: torch.baddbmm(n.mask, x, own.mT).flatten(1),
    "matmul": lambda n, own, x: torch.matmul(x, n.rows.T).flatten(1),
    "mm and addmm": lambda n, own, x: (
        own.flatten(1).mm(n.rows.reshape(20, 1)) + torch.addmm(n.scale, x[:, 0], n.rows.T)
    ),
    "mv and outer": lambda n, own, x: torch.mv(own[:, 0], n.rows[0]).outer(n.rows[1]),
    "einsum": lambda n, own, x: (
        torch.einsum("bij,bkj->bik", own, x).flatten(1) + torch.einsum("bij,ij->b", own, n.rows)[:, None]
    ),
    "linear": lambda n, own, x: (
        F.linear(own, n.rows).flatten(1) + F.linear(x, n.first.weight, n.first.bias).flatten(1)[:, :1]
    ),
    "scaled dot product": lambda n, own, x: F.scaled_dot_product_attention(own, own, own).flatten(1),
    "scaled dot product of heads": lambda n, own, x: F.scaled_dot_product_attention(
        *[in_heads(own)] * 2, in_heads(x), is_causal=True
    ).flatten(1),
    "scaled dot product, masked": lambda n, own, x: F.scaled_dot_product_attention(
        in_heads(x), in_heads(own), in_heads(own), attn_mask=n.mask
    ).flatten(1),
    "scaled dot product, own mask": lambda n, own, x: F.scaled_dot_product_attention(
        in_heads(x), in_heads(x), in_heads(x), (own @ own.mT).unsqueeze(1), scale=0.3
    ).flatten(1),
    "layer norm": lambda n, own, x: F.layer_norm(own, (5, 4), n.rows, n.rows).flatten(1),
    "rms norm": lambda n, own, x: F.rms_norm(own, (5, 4), n.rows).flatten(1) + torch.rms_norm(own, (4,)).flatten(1),
    "group norm": lambda n, own, x: F.group_norm(own.unsqueeze(-1), 5, n.rows[:, 0], n.rows[:, 1], 0.01).flatten(1),
}

BROADCAST: dict[str, Callable[[Features, Tensor, Tensor], Tensor]] = {
    "own rank below the shared": lambda n, own, x: (x * n.rows + n.scale).flatten(1),
    "a scalar parameter": lambda n, own, x: own.flatten(1) * n.scale + n.scale,
    "a gate an image": lambda n, own, x: (x * own.mean((1, 2), keepdim=True)).flatten(1),
    "images against images": lambda n, own, x: (own[:, None] - x[None]).abs().sum((1, -1)),
    "parameter twice": lambda n, own, x: (n.rows * own + n.rows.square()).flatten(1) * n.rows.sum(),
    "where": lambda n, own, x: torch.where(own > x, own, n.rows).flatten(1),
    "where shared": lambda n, own, x: torch.where(x > 0, n.scale, own).flatten(1),
    "masked fill": lambda n, own, x: (
        x.masked_fill(own > 0, -1.0).flatten(1) + torch.masked_fill(own, x > 0, 2.0).flatten(1)
    ),
    "masked attention": lambda n, own, x: (own @ own.mT).masked_fill(n.mask > 0, -1e9).softmax(-1).flatten(1),
    "buffer": lambda n, own, x: (own @ own.mT + n.mask).flatten(1),
    "clamp": lambda n, own, x: own.clamp(-0.5, 0.5).flatten(1) + torch.clamp(own, max=x).flatten(1),
    "lerp": lambda n, own, x: torch.lerp(x, own, n.scale).flatten(1),
    "operators": lambda n, own, x: (2**own - own**2 / (1 + x**2) + own % 3 + own.detach() // 2).flatten(1),
    "truth": lambda n, own, x: ((own > 0) & ~(x > 0) | (own <= x)).type_as(x).flatten(1) + own.flatten(1),
    "in place, functional": lambda n, own, x: (
        F.relu(own * 2, True).flatten(1) + F.leaky_relu(own - 1, 0.2, inplace=True).flatten(1)
    ),
}

ELEMENTS: dict[str, Callable[[Features, Tensor, Tensor], Tensor]] = {
    **{
        f"F.{name}": lambda n, own, x, name=name: getattr(F, name)(own).flatten(1) * n.scale
        for name in (
            *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign"),
            *("sigmoid", "logsigmoid", "tanh", "hardtanh", "hardsigmoid", "hardswish"),
        )
    },
    **{
        f"torch.{name}": lambda n, own, x, name=name: getattr(torch, name)(own.abs() + 0.5).flatten(1)
        for name in [
            "neg",
            "abs",
            "square",
            "sqrt",
            "rsqrt",
            "reciprocal",
            "exp",
            "expm1",
            "log",
            "log1p",
            "log2",
            "sin",
            "cos",
            "erf",
            "sign",
            "sigmoid",
            "tanh",
            *("round", "floor", "ceil", "trunc", "log10", "exp2", "tan", "atan", "sinh", "cosh", "nan_to_num"),
        ]
    },
    "remainders": lambda n, own, x: torch.remainder(own, 2).flatten(1) + own.fmod(x.abs() + 1).flatten(1),
    "clip": lambda n, own, x: own.clip(-0.5, 0.5).flatten(1) + torch.atan2(own, x).flatten(1),
    "rounded to decimals": lambda n, own, x: own.flatten(1) * torch.round(own, decimals=1).flatten(1),
    "not finite": lambda n, own, x: torch.where(own.isnan() | own.isinf() | ~x.isfinite(), x, own * n.scale).flatten(1),
    **{
        f".{name}": lambda n, own, x, name=name: (
            getattr(own, name)(n.rows).flatten(1) + getattr(x, name)(own).flatten(1)
        )
        for name in [
            "add",
            "sub",
            "mul",
            "div",
            "true_divide",
            "maximum",
            "minimum",
            "logaddexp",
            "clamp_min",
            "clamp_max",
        ]
    },
    **{
        f"{name}": lambda n, own, x, name=name: (
            torch.logical_not(getattr(own, name)(x)).type_as(own).flatten(1) * n.scale
        )
        for name in ["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"]
    },
}
CASES = {**ELEMENTS, **BY_DIMENSION, **VIEWED, **JOINED, **MULTIPLIED, **BROADCAST}


@pytest.mark.parametrize("case", CASES)
def test_each_member_has_the_results_of_plain_torch(case: str) -> None:
    assert_same_as_plain(CASES[case])


@pytest.mark.parametrize("members", [1, 2])
def test_any_number_of_members(members: int) -> None:
    """The dimension of members is not confused with the user's dimensions, also with one member."""
    for case in ("squeeze", "attention of heads", "cat 0", "mean over the images", "t", "in place, functional"):
        assert_same_as_plain(CASES[case], members)


def test_every_function_in_the_tables_is_tested() -> None:
    def names(functions: set[Any]) -> set[str]:
        return {each if isinstance(each, str) else each.__name__ for each in functions}

    tried: set[Any] = set()
    for case in CASES.values():
        tracer = fx.Tracer()
        tracer.proxy_buffer_attributes = True
        tried |= {node.target for node in tracer.trace(Features(case, 1)).nodes if node.op.startswith("call_")}
    functions = ELEMENTWISE_FUNCTIONS | VIEWING_FUNCTIONS | COPYING_FUNCTIONS | SIZE_CONSTRUCTORS
    missing = names(functions) - names(tried) - {"logsigmoid"}  # its name is log_sigmoid
    assert missing == set()
