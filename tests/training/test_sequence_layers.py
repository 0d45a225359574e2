"""LSTM, GRU, attention and Transformer encoders in stacks: equal to plain torch for each member, dropout included."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_reference import (
    Net,
    assert_same,
    assert_same_curves,
    assert_trains_like_plain,
    config,
    curves,
    member,
    seeded,
)

from hpo.studyfile import Config
from hpo.training.device_data import DeviceSplit
from hpo.training.grouping import Grouping
from hpo.training.randomness import dropout_keys
from hpo.training.size import measure_network
from hpo.training.stacking.proof import prove
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.tracing.trace import CannotStackError
from hpo.training.tasks.task import classification

GENERATOR = torch.Generator().manual_seed(2)
SERIES = torch.randn(4, 5, 6, generator=GENERATOR, dtype=torch.float64)  # [B, T, features]
WORDS = torch.randint(0, 9, (4, 5), generator=GENERATOR)
LABELS = torch.arange(4) % 3


def recurrent(kind: Any, **options: Any) -> Callable[[], nn.Module]:
    """Return a network whose recurrent layer gets the examples themselves, which all members share."""
    first = options.get("batch_first", False)
    width = 4 * (1 + options.get("bidirectional", False))

    def forward(net: Net, x: Tensor) -> Tensor:
        output, last = net.rnn(x if first else x.transpose(0, 1))
        hidden = last[0] + last[1] if kind is nn.LSTM else last
        return net.head(output.mean(1 if first else 0)) + net.state(hidden[-1])

    return lambda: Net(forward, rnn=kind(6, 4, **options), head=nn.Linear(width, 3), state=nn.Linear(4, 3))


def attention(**options: Any) -> Callable[[], nn.Module]:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.embed(x)
        output, _ = net.attention(x, x, x)
        return net.head(output.mean(1))

    return lambda: Net(
        forward,
        embed=nn.Linear(6, 8),
        attention=nn.MultiheadAttention(8, 2, **options),
        head=nn.Linear(8, 3),
    )


def encoder(layers: int = 2, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 12, **{"dropout": 0.0, **options})
        deep: nn.Module = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers else layer
        return Net(
            lambda net, x: net.head(net.deep(net.embed(x)).mean(1)),
            embed=nn.Linear(6, 8),
            deep=deep,
            head=nn.Linear(8, 3),
        )

    return make


def masked(net: Net, x: Tensor) -> Tensor:
    """Attend to earlier positions that are no padding (0)."""
    hidden = net.deep(net.embed(x), mask=net.causal, src_key_padding_mask=x == 8)
    return net.head(hidden.mean(1))


def masked_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    deep = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    net = Net(masked, embed=nn.Embedding(9, 8), deep=deep, head=nn.Linear(8, 3))
    net.register_buffer("causal", torch.ones(5, 5, dtype=torch.bool).triu(1))
    return net


def cross_attention() -> nn.Module:
    """Attention of three different inputs, of which one has another width, to the examples themselves."""

    def forward(net: Net, x: Tensor) -> Tensor:
        output = net.attention(net.query(x), x, net.value(x), need_weights=False)[0]
        return net.head(output.amax(1))

    return Net(
        forward,
        query=nn.Linear(6, 8),
        value=nn.Linear(6, 7),
        attention=nn.MultiheadAttention(8, 4, kdim=6, vdim=7, batch_first=True),
        head=nn.Linear(8, 3),
    )


def same_width() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.head(net.attention(net.query(x), x, x, attn_mask=net.mask)[0].amax(1))

    net = Net(
        forward, query=nn.Linear(6, 6), attention=nn.MultiheadAttention(6, 3, batch_first=True), head=nn.Linear(6, 3)
    )
    net.register_buffer("mask", torch.linspace(-1, 1, 4 * 3 * 25, dtype=torch.float64).view(12, 5, 5))
    return net


def decoder() -> nn.Module:
    """An encoder whose last states are the first ones of a decoder, which is called twice."""

    def forward(net: Net, x: Tensor) -> Tensor:
        _, states = net.encode(x)
        first, _ = net.decode(x, states)
        second, (hidden, cell) = net.decode(first, states)
        return net.head(second.mean(1) + hidden[0] * cell[0])

    return Net(
        forward,
        encode=nn.LSTM(6, 6, batch_first=True),
        decode=nn.LSTM(6, 6, batch_first=True),
        head=nn.Linear(6, 3),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    f"{kind.__name__} {' '.join(options) or 'plain'}": recurrent(kind, **options)
    for kind in (nn.LSTM, nn.GRU)
    for options in (
        {},
        {"batch_first": True},
        {"num_layers": 2, "bias": False},
        {"num_layers": 2, "bidirectional": True, "batch_first": True},
    )
}
NETWORKS |= {
    "LSTM decoder": decoder,
    "attention": attention(),
    "attention batch_first": attention(batch_first=True),
    "attention bias": attention(bias=False),
    "attention of other widths": cross_attention,
    "attention of one width": same_width,
    "encoder layer": encoder(0),
    "encoder": encoder(),
    "encoder batch_first": encoder(batch_first=True),
    "encoder norm_first": encoder(norm_first=True, activation="gelu", batch_first=True),
    "encoder bias": encoder(bias=False, activation=F.silu),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_three_training_steps_equal_those_of_each_member_alone(name: str) -> None:
    modules = seeded(NETWORKS[name])
    network = assert_trains_like_plain(modules, SERIES, LABELS)
    network.select(torch.tensor([0, 2]))
    with torch.no_grad():
        assert network(SERIES, training=False).shape == (2, 4, 3)
    if name != "attention of one width":  # its mask is that of four examples
        prove(modules, SERIES)


def test_masks_and_embedded_integers() -> None:
    modules = seeded(masked_encoder)
    for module in modules:
        module.causal.copy_(torch.ones(5, 5, dtype=torch.bool).triu(1))
    assert_trains_like_plain(modules, WORDS.clamp(max=7), LABELS)
    words = WORDS.clamp(max=7)
    words[1, 3:] = 8
    assert_trains_like_plain(modules, words, LABELS)


def keys_of(network: StackedNetwork, seeds: Sequence[int]) -> Iterator[None]:
    keys = dropout_keys(list(seeds), 1, 1, len(network.dropouts))
    for layer, dropout in enumerate(network.dropouts):
        dropout.set_keys(keys[0, layer])
        yield


DROPPING: dict[str, Callable[[float], Callable[[], nn.Module]]] = {
    "LSTM": lambda rate: recurrent(nn.LSTM, num_layers=3, dropout=rate),
    "GRU": lambda rate: recurrent(nn.GRU, num_layers=2, dropout=rate, batch_first=True),
    "attention": lambda rate: attention(dropout=rate, batch_first=True),
    "encoder": lambda rate: encoder(dropout=rate, batch_first=True),
}


def dropping(name: str, rates: Sequence[float]) -> list[nn.Module]:
    return [seeded(DROPPING[name](rate), number + 1)[number] for number, rate in enumerate(rates)]


@pytest.mark.parametrize("name", DROPPING)
def test_a_member_drops_the_same_alone_and_in_company(name: str) -> None:
    modules = dropping(name, [0.5, 0.0, 0.2])
    together = StackedNetwork(modules, torch.float64)
    assert len(list(keys_of(together, [3, 4, 5]))) == {"LSTM": 2, "GRU": 1, "attention": 1, "encoder": 8}[name]
    out = together(SERIES, training=True)
    out.square().sum().backward()
    for number, module in enumerate(modules):
        alone = StackedNetwork([module], torch.float64)
        list(keys_of(alone, [3 + number]))
        expected = alone(SERIES, training=True)
        expected.square().sum().backward()
        assert_same(out[number], expected[0])
        for parameter, slot in alone.blocks.slots.items():
            assert_same(together.blocks.slots[parameter].grad[number], slot.grad[0])
        other = StackedNetwork([module], torch.float64)
        list(keys_of(other, [9]))
        assert torch.equal(other(SERIES, training=True), expected) == (number == 1)


@pytest.mark.parametrize("name", ["attention", "encoder"])
def test_dropout_of_attention_equals_torchs_with_the_same_masks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [0.5, 0.2]
    modules = dropping(name, rates)
    network = StackedNetwork(modules, torch.float64)
    list(keys_of(network, [3, 4]))
    out = network(SERIES, training=True)
    out.square().sum().backward()
    for number, module in enumerate(modules):
        masks = iter(network.dropouts)

        def dropped(x: Tensor, p: float, training: bool = True, inplace: bool = False) -> Tensor:
            assert (p, training) == (rates[number], True)  # noqa: B023 - called within the iteration
            dropout: Any = next(masks)  # noqa: B023
            return x * dropout._mask(x.reshape(-1).shape, x)[number].view(x.shape)  # noqa: B023

        def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float, is_causal: bool) -> Tensor:
            return dropped((q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1), p) @ v

        monkeypatch.setattr("torch.nn.functional.dropout", dropped)
        monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", attend)
        plain = copy.deepcopy(module).train()
        expected = plain(SERIES)
        expected.square().sum().backward()
        assert next(masks, None) is None
        assert_same(out[number], expected)
        for parameter, value in plain.named_parameters():
            assert value.grad is not None
            assert_same(network.blocks.slots[parameter].grad[number], value.grad)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_dropout_between_recurrent_layers_equals_that_of_separate_layers(kind: Any) -> None:
    (module,) = seeded(recurrent(kind, num_layers=2, dropout=0.4), 1)
    network = StackedNetwork([module], torch.float64)
    list(keys_of(network, [3]))
    out = network(SERIES, training=True)
    first, second = kind(6, 4).double(), kind(4, 4).double()
    for number, layer in enumerate((first, second)):
        layer.load_state_dict(
            {name: module.rnn.state_dict()[name.replace("_l0", f"_l{number}")] for name in layer.state_dict()}
        )
    steps, _ = first(SERIES.transpose(0, 1))
    dropout: Any = network.dropouts[0]
    steps = steps * dropout._mask(steps.shape, steps)[0]
    assert 0.2 < (steps == 0).double().mean() < 0.6
    output, last = second(steps)
    hidden = last[0] + last[1] if kind is nn.LSTM else last
    assert_same(out[0], module.head(output.mean(0)) + module.state(hidden[-1]))


CODE = """
import torch
from torch import nn


class Words(nn.Module):
    def __init__(self, classes, dropout=0.1, layer="encoder"):
        super().__init__()
        self.embed, self.layer = nn.Embedding(9, 8), layer
        if layer == "encoder":
            block = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, batch_first=True)
            self.deep = nn.TransformerEncoder(block, 2)
        else:
            self.deep = getattr(nn, layer)(8, 8, num_layers=2, dropout=dropout, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x):
        x = self.deep(self.embed(x))
        return self.head((x if self.layer == "encoder" else x[0]).mean(1))


class Branching(Words):
    def forward(self, x):
        return super().forward(x if x.sum() > -1 else x + 1)
"""


def split() -> DeviceSplit:
    generator = torch.Generator().manual_seed(4)
    inputs, targets = torch.randint(0, 9, (60, 6), generator=generator), torch.arange(60) % 3
    inputs[:, :2] = targets.unsqueeze(1)
    return DeviceSplit(inputs[:40], targets[:40], inputs[40:], targets[40:], classification(3), seed=3)


def settings(folder: Path, name: str, precision: str = "float64", **args: Any) -> Config:
    (folder / "words.py").write_text(CODE)
    whole = config("module", module=f"words.py:{name}", args=args, precision=precision, epochs=3)
    return whole.model_copy(update={"network": whole.network.with_folder(folder)})


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "encoder"])
def test_members_of_different_dropout_have_the_same_curves_alone_and_in_company(layer: str, tmp_path: Path) -> None:
    members = [
        member(number, settings(tmp_path, "Words", dropout=rate, layer=layer))
        for number, rate in enumerate((0.0, 0.3, 0.6))
    ]
    grouping = Grouping(split(), pytest.fail)
    assert len({grouping.key(each) for each in members}) == 1
    together = curves(members, split(), drop={1: {0}})[0]
    for each in members:
        alone = curves([each], split(), drop={1: {0}})[0]
        assert_same_curves(together[each.number], alone[each.number], rtol=1e-9)


def test_unstacked_members_have_the_same_curves_alone_and_after_others(tmp_path: Path) -> None:
    from hpo.training.trainer import Trainer

    members = [member(number, settings(tmp_path, "Branching", dropout=0.3)) for number in (0, 1)]

    def losses(chosen: Sequence[Any]) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {each.number: [] for each in chosen}
        trainer = Trainer(split(), "float32", lambda text: None)
        for group in trainer.groups(chosen):
            for result in trainer.train(group):
                for number, metrics in result.metrics.items():
                    found[number].append(metrics["train_loss"])
        return found

    both = losses(members)
    assert both[1] == losses(members[1:])[1]
    assert both[0] != both[1]


@pytest.mark.parametrize("layer", ["LSTM", "GRU", "encoder"])
def test_bfloat16_trains_about_as_float32(layer: str, tmp_path: Path) -> None:
    found = {
        precision: curves(
            [member(n, settings(tmp_path, "Words", layer=layer, dropout=0.0)) for n in (0, 1)], split(), precision
        )
        for precision in ("float32", "bfloat16")
    }
    for number in (0, 1):
        first, second = (found[precision][0][number][-1]["val_loss"] for precision in ("float32", "bfloat16"))
        assert abs(first - second) < 0.05


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "projection": (recurrent(nn.LSTM, proj_size=2), "layer 'rnn' .LSTM. cannot be stacked: proj_size is not supported"),
    "large LSTM": (
        lambda: Net(lambda net, x: net.rnn(x)[0].mean(0), rnn=nn.LSTM(6, 17)),
        "layer 'rnn' .LSTM. cannot be stacked: above 16 units, torch's own LSTM is faster one at a time",
    ),
    "zero attention": (attention(add_zero_attn=True), "layer 'attention' .* it adds keys and values"),
    "weights": (
        lambda: Net(
            lambda net, x: net.head(net.attention(x, x, x)[1].mean(1)),
            attention=nn.MultiheadAttention(6, 2, batch_first=True),
            head=nn.Linear(5, 3),
        ),
        "layer 'attention' .* its attention weights are used; use its first result only",
    ),
    "nested": (
        lambda: Net(
            lambda net, x: net.deep(net.embed(x), src_key_padding_mask=x.sum(2) > 9).mean(1),
            embed=nn.Linear(6, 8),
            deep=nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 1),
        ),
        "positions to 0 in evaluation only; pass enable_nested_tensor=False",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_stacked_form_is_named(name: str) -> None:
    make, problem = REFUSED[name]
    if name == "projection":
        make = lambda: Net(lambda net, x: net.rnn(x)[0].mean(0), rnn=nn.LSTM(6, 4, proj_size=2))  # noqa: E731
    with pytest.raises(CannotStackError, match=problem):
        StackedNetwork(seeded(make, 2), torch.float64)


def test_the_products_of_sequence_layers_are_counted() -> None:
    for make, products in (
        (recurrent(nn.LSTM), 5 * (6 * 16 + 4 * 16) + 2 * 4 * 3),
        (attention(batch_first=True), 5 * (6 * 8 + 4 * 8 * 8) + 8 * 3),
    ):
        assert measure_network(make(), (5, 6)).products == products
