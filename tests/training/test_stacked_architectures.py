"""Typical user-defined networks train in a stack as in plain torch, and a member's NaN stays with that member."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_reference import assert_same, assert_trains_like_plain, seeded

from hpo.training.stacking.stacked_network import StackedNetwork

IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LABELS = torch.arange(5) % 3


class Block(nn.Module):
    """Depthwise and pointwise convolutions with group norm, and a skip connection."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.depth = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.norm1 = nn.GroupNorm(2, channels)
        self.point = nn.Conv2d(channels, filters, 1, bias=False)
        self.norm2 = nn.GroupNorm(1, filters)
        self.skip = nn.Conv2d(channels, filters, 1, stride) if stride > 1 or channels != filters else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.point(F.relu(self.norm1(self.depth(x)), inplace=True)))
        out += self.skip(x)
        return F.relu(out)


class ResidualCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding="same")
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 6, 2), Block(6, 6, 1))
        self.drop = nn.Dropout2d(0.0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.blocks(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class SequenceCNN(nn.Module):
    """A network that reads an image's rows as channels of a sequence, with two dilations."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv1d(8, 6, 3, padding=1)
        self.far = nn.Conv1d(8, 6, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.InstanceNorm1d(12, affine=True)
        self.down = nn.Conv1d(12, 8, 2, stride=2, bias=False)
        self.batch_norm = nn.BatchNorm1d(8)
        self.act = nn.PReLU(8)
        self.pool = nn.AdaptiveMaxPool1d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        x = self.norm(torch.cat([self.near(x), self.far(x)], dim=1))
        x = self.act(self.batch_norm(self.down(x)))
        x = F.avg_pool1d(x, 2) + self.pool(x)
        return F.log_softmax(self.head(x.flatten(1)), dim=-1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        heads = self.qkv(x).reshape(images, tokens, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(images, tokens, width))


class VisionTransformer(nn.Module):
    """A small vision transformer (Dosovitskiy et al., 2021) with positions as a parameter and as an embedding."""

    def __init__(self) -> None:
        super().__init__()
        width = 8
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.zeros(1, 5, width))
        self.rows = nn.Embedding(3, width)
        self.register_buffer("row", torch.tensor([0, 1, 1, 2, 2]), persistent=False)
        self.layers = nn.ModuleList()
        for _ in range(2):
            mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            parts = {"norm1": nn.LayerNorm(width), "attention": Attention(width, 2), "norm2": nn.LayerNorm(width)}
            self.layers.append(nn.ModuleDict({**parts, "mlp": mlp}))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], dim=1) + self.places + self.rows(self.row)
        for layer in self.layers:
            x = x + layer["attention"](layer["norm1"](x))
            x = x + layer["mlp"](layer["norm2"](x))
        x = self.norm(x)
        return self.head(torch.cat([x[:, 0], x[:, 1:].mean(dim=1)], dim=-1))


class Tied(nn.Module):
    """A network with one matrix for embedding and output, and another parameter that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 8, padding_idx=2)
        self.mix, self.out = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.out.weight = self.embed.weight
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, 0] + self.embed(torch.arange(x.shape[2], device=x.device)) * self.gain
        return self.out(torch.tanh(self.mix(rows)).mean(1) * self.gain)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": ResidualCNN,
    "sequence": SequenceCNN,
    "transformer": VisionTransformer,
    "tied": Tied,
}


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("kind", NETWORKS)
def test_trains_as_in_plain_torch(kind: str, members: int) -> None:
    assert_trains_like_plain(seeded(NETWORKS[kind], members), IMAGES, LABELS, steps=3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_removing_members_does_not_change_the_others(kind: str) -> None:
    modules = seeded(NETWORKS[kind], 3)
    network = StackedNetwork(modules, torch.float64)
    network(IMAGES, training=True)
    network.select(torch.tensor([0, 2]))
    alone = [StackedNetwork([modules[number]], torch.float64) for number in (0, 2)]
    for each in alone:
        each(IMAGES, training=True)
    out = network(IMAGES, training=False)
    network.blocks.begin_step()
    network(IMAGES, training=True).sin().sum().backward()
    for place, each in enumerate(alone):
        assert_same(out[place], each(IMAGES, training=False)[0])
        each.blocks.begin_step()
        each(IMAGES, training=True).sin().sum().backward()
        for name, slot in each.blocks.slots.items():
            assert_same(network.blocks.slots[name].grad[place], slot.grad[0])
        for name, value in each.state_dict(0).items():
            assert_same(network.state_dict(place)[name].double(), value.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_nan_stays_with_its_member(kind: str, dtype: torch.dtype) -> None:
    modules = seeded(NETWORKS[kind], 4)
    healthy = StackedNetwork([copied.to(dtype) for copied in seeded(NETWORKS[kind], 4)], dtype)
    with torch.no_grad():
        for parameter in modules[1].parameters():
            parameter.fill_(math.nan)
    ill = StackedNetwork([module.to(dtype) for module in modules], dtype)
    outs: list[Tensor] = []
    for network in (healthy, ill):
        network.blocks.begin_step()
        out = network(IMAGES.to(dtype), training=True)
        F.cross_entropy(out.flatten(0, 1).float(), LABELS.repeat(4), reduction="sum").backward()
        outs.append(out.detach())
    assert outs[1][1].isnan().all()
    for number in (0, 2, 3):
        assert torch.equal(outs[1][number], outs[0][number])
        for name, slot in healthy.blocks.slots.items():
            assert torch.equal(ill.blocks.slots[name].grad[number], slot.grad[number]), name


@pytest.mark.parametrize("kind", NETWORKS)
def test_bfloat16_is_near_float64(kind: str) -> None:
    exact, near = seeded(NETWORKS[kind], 2), [each.bfloat16() for each in seeded(NETWORKS[kind], 2)]
    expected = StackedNetwork(exact, torch.float64)(IMAGES, training=False)
    out = StackedNetwork(near, torch.bfloat16)(IMAGES.bfloat16(), training=False)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), expected, rtol=0.1, atol=0.1)
