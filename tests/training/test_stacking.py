"""Stacked networks equal plain torch for each member; modules that cannot be stacked raise CannotStackError."""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_reference import Net, assert_same, assert_trains_like_plain, config, seeded

from hpo.training.networks.builtin import build
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.tracing.trace import CannotStackError

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
LABELS = torch.arange(6) % 4


class Residual(nn.Module):
    """A block with a skip connection, as ResNet has it: He et al., 2015."""

    def __init__(self, channels: int, filters: int, in_place: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.relu = nn.ReLU(inplace=in_place)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.shortcut = nn.Sequential()
        if channels != filters:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, filters, 1, bias=False), nn.BatchNorm2d(filters))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Residual(1, 3, in_place), Residual(3, 3, in_place), Residual(3, 2, in_place)])
        self.pool = nn.AvgPool2d(4)
        self.output = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.output(torch.flatten(self.pool(x), 1))


@pytest.mark.parametrize("in_place", [True, False])
def test_residual_network(in_place: bool) -> None:
    assert_trains_like_plain(seeded(lambda: ResNet(in_place)), IMAGES, LABELS)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    "network",
    [
        {},
        {"kind": "cnn", "conv": [3, 4], "kernel": 3, "padding": 1},
        {"kind": "cnn", "conv": [2], "kernel": 2, "pool": 1},
    ],
)
def test_built_in_networks(batch_norm: bool, network: dict[str, object]) -> None:
    kind = str(network.get("kind", "mlp"))
    own = config(kind, batch_norm=batch_norm, **{k: v for k, v in network.items() if k != "kind"}).network
    members = [build(own, (1, 8, 8), 4, seed).double() for seed in range(3)]
    assert_trains_like_plain(members, IMAGES, LABELS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_members(count: int) -> None:
    own = config("cnn", conv=[2, 3], kernel=2, batch_norm=True).network
    assert_trains_like_plain([build(own, (1, 8, 8), 4, seed).double() for seed in range(count)], IMAGES, LABELS)


def pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def by_computed_size(x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    features = channels * height
    features *= width
    return x.view(images, features)


def gated(net: Net, x: Tensor) -> Tensor:
    """One gate per channel, as in squeeze-and-excitation networks."""
    images = net.c(x)
    gate = torch.sigmoid(net.gate(F.avg_pool2d(images, 6).flatten(1)))
    return net.fc(pooled(images * gate.view(-1, 2, 1, 1)).flatten(1))


FUNCTIONAL: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "view by size": lambda net, x: net.fc(pooled(F.relu(net.c(x))).view(x.size(0), -1)),
    "view by shape": lambda net, x: net.fc(F.avg_pool2d(torch.tanh(net.c(x)), 2).view(x.shape[0], -1)),
    "view by the features": lambda net, x: net.fc(F.max_pool2d(net.c(x), kernel_size=2).view(-1, 18)),
    "view by a computed size": lambda net, x: net.fc(by_computed_size(pooled(net.c(x)))),
    "view by another's size": lambda net, x: net.fc(pooled(net.c(x.view(net.c(x).size(0), 1, 8, -1))).flatten(1)),
    "reshape": lambda net, x: net.fc(F.avg_pool2d(net.c(x), 2).reshape((x.shape[0], -1)).sigmoid()),
    "torch.reshape": lambda net, x: net.fc(torch.reshape(pooled(net.c(x)), shape=(x.size(dim=0), 18))),
    "torch.flatten": lambda net, x: net.fc(torch.flatten(torch.max_pool2d(net.c(x), 2), 1)),
    "flatten": lambda net, x: net.fc(pooled(net.c(x)).flatten(start_dim=1)),
    "in-place functions": lambda net, x: net.fc(F.elu(pooled(F.relu_(net.c(x))), 0.7, True).flatten(1)),
    "in-place methods": lambda net, x: net.fc(pooled(net.c(x).relu_()).flatten(1)).mul_(2).add_(1),
    "operators": lambda net, x: (1 - net.fc(pooled(-net.c(x) * 2 + 1).flatten(1)) / 3).square().sub(0.1).div(2),
    "torch's operators": lambda net, x: torch.add(net.fc(pooled(torch.abs(net.c(x))).flatten(1)), 0.5, alpha=2),
    "sum of two branches": lambda net, x: net.fc(pooled(net.c(x) + net.d(x)).flatten(1)),
    "stacked and shared": lambda net, x: net.fc(pooled(net.c(x - net.pad(x)) * net.d(x + 0.5)).flatten(1)),
    "gate by channel": gated,
    "fewer dimensions": lambda net, x: net.fc(pooled(net.c(x) * net.square(x.view(-1, 64)).view(-1, 6)).flatten(1)),
    "rows": lambda net, x: net.fc(torch.tanh(net.rows(x.view(-1, 8, 8))).flatten(1)),
}


@pytest.mark.parametrize("style", FUNCTIONAL)
def test_functional_style(style: str) -> None:
    def make() -> nn.Module:
        rows = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Flatten(), nn.Linear(32, 18))
        square = nn.Sequential(nn.Flatten(0), nn.Linear(384, 36))
        layers = {"pad": nn.Conv2d(1, 1, 3, padding=1), "rows": rows, "square": square, "gate": nn.Linear(2, 2)}
        return Net(FUNCTIONAL[style], c=nn.Conv2d(1, 2, 3), d=nn.Conv2d(1, 2, 3), fc=nn.Linear(18, 4), **layers)

    assert_trains_like_plain(seeded(make), IMAGES, LABELS, steps=2)


def test_a_layer_used_twice_is_one_layer() -> None:
    """Its gradients add up, and its batch norm sees two batches in a step."""

    def make() -> nn.Module:
        again = nn.Linear(64, 64)
        norm = nn.BatchNorm1d(64)
        layers = (nn.Flatten(), again, norm, nn.Tanh(), again, norm, nn.Tanh(), nn.Linear(64, 4))
        return nn.Sequential(*layers)

    network = assert_trains_like_plain(seeded(make), IMAGES, LABELS)
    assert network.state_dict(0)["2.num_batches_tracked"].item() == 6


def test_a_convolution_used_twice_is_one_layer() -> None:
    def make() -> nn.Module:
        again = nn.Conv2d(1, 1, 3, padding=1)
        return nn.Sequential(again, nn.Tanh(), again, nn.Flatten(), nn.Linear(64, 4))

    assert_trains_like_plain(seeded(make), IMAGES, LABELS)


def test_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 4)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x.flatten(1))))))

    assert_trains_like_plain(seeded(Tied), IMAGES, LABELS)


@pytest.mark.parametrize("members", [1, 2, 4])
def test_grouped_convolution_of_the_shared_input(members: int) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 4))

    assert_trains_like_plain(seeded(make, members), IMAGES.view(6, 4, 4, 4), LABELS)


def test_batch_norm_of_the_shared_input() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))

    assert_trains_like_plain(seeded(make), IMAGES, LABELS)


def test_layers_that_never_run_keep_their_state() -> None:
    def make() -> nn.Module:
        return Net(lambda net, x: net.fc(x.flatten(1)), fc=nn.Linear(64, 4), idle=nn.BatchNorm1d(3))

    network = assert_trains_like_plain(seeded(make), IMAGES, LABELS)
    before = network.state_dict(2)
    network.select(torch.tensor([0, 2]))
    for name, value in network.state_dict(1).items():
        assert torch.equal(value, before[name])


def test_a_layer_may_have_any_name() -> None:
    for name in ("output", "x", "input", "add", "layer_1"):
        made = partial(Net, lambda net, x, name=name: getattr(net, name)(x.flatten(1)), **{name: nn.Linear(64, 4)})
        assert_trains_like_plain(seeded(made), IMAGES, LABELS, steps=1)


@settings(max_examples=15)
@given(st.sets(st.integers(0, 4), min_size=1))
def test_removing_members_does_not_change_the_others(stay: set[int]) -> None:
    """After some members are removed, the outputs, gradients and statistics of the others are the same."""
    own = config("cnn", conv=[2], kernel=3, hidden=[5], batch_norm=True).network
    modules = [build(own, (1, 8, 8), 4, seed).double() for seed in range(5)]
    network, whole = StackedNetwork(modules, torch.float64), StackedNetwork(modules, torch.float64)
    network(IMAGES, training=True), whole(IMAGES, training=True)
    kept = sorted(stay)
    network.select(torch.tensor(kept))
    assert network.members == len(kept)
    for each in (network, whole):
        each.blocks.begin_step()
        F.cross_entropy(
            each(IMAGES, training=True).flatten(0, 1), LABELS.repeat(each.members), reduction="sum"
        ).backward()
    for place, number in enumerate(kept):
        state, expected = network.state_dict(place), whole.state_dict(number)
        for name, slot in network.blocks.slots.items():
            assert_same(slot.grad[place], whole.blocks.slots[name].grad[number])
        for name, value in state.items():
            assert_same(value.double(), expected[name].double())


def test_a_state_loads_into_the_plain_module() -> None:
    own = config("cnn", conv=[2], kernel=3, hidden=[5], batch_norm=True, dropout=0.5).network
    modules = [build(own, (1, 8, 8), 4, seed) for seed in range(3)]
    network = StackedNetwork(modules)
    images = IMAGES.float()
    network(images, training=False)
    for number in range(3):
        fresh = build(own, (1, 8, 8), 4, seed=99)
        fresh.load_state_dict(network.state_dict(number), strict=True)
        with torch.no_grad():
            ours, plain = network(images, training=False)[number], fresh.eval()(images)
        torch.testing.assert_close(ours, plain)


def test_stacking_changes_neither_the_modules_nor_the_input() -> None:
    module = nn.Sequential(
        nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4), nn.ReLU(inplace=True)
    )
    module[2].eval()
    before = copy.deepcopy(module.state_dict())
    network = StackedNetwork([module.double()], torch.float64)
    images = IMAGES.clone()
    network.dropouts[0].set_keys(torch.zeros(1, 1, dtype=torch.int64))
    network(images, training=True).sum().backward()
    assert torch.equal(images, IMAGES)
    assert [each.training for each in module] == [True, True, False, True, True]
    assert module[4].inplace
    for name, value in module.state_dict().items():
        assert_same(value.float(), before[name], rtol=1e-6)
        assert getattr(value, "grad", None) is None


# Modules that cannot be stacked, and the name in the error.


class Buffered(nn.Module):
    """A network that applies a function to its buffer or tensor attribute first."""

    def __init__(self, what: Callable[[Buffered, Tensor], object], factor: float = 1.0) -> None:
        super().__init__()
        self.fc, self.what = nn.Linear(64, 4), what
        self.register_buffer("held", torch.full((2000,), factor))
        self.plain = torch.full((2000,), 1.0)

    def forward(self, x: Tensor) -> Tensor:
        changed = self.what(self, x)
        out = self.fc(x.flatten(1)) * self.held[1000]
        return out if changed is None else out + changed.mean()


def net(forward: Callable[[Net, Tensor], Tensor], **more: nn.Module) -> Net:
    return Net(forward, fc=nn.Linear(64, 4), **more)


def branches(net: Net, x: Tensor) -> Tensor:
    return net.fc(x.flatten(1)) if x.sum() > 0 else net.fc(-x.flatten(1))


def read_again(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    return out.relu_() + out


def read_again_by_another_name(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    kept = out
    out += 1
    return out + kept


def read_again_through_a_view(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    flat = out.view(-1)
    F.relu(out, inplace=True)
    return flat.view(-1, 4)


def read_again_through_parts(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    first, second = out.chunk(2, 1)
    first.relu_()
    return torch.cat([out, second], 1)


def read_again_transposed(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    other = torch.transpose(dim0=0, dim1=1, input=out)
    other += 1
    return out * 2 + other.T


def assigned(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    out[:, 0] = 1
    return out


def without_gradients(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = net.fc(x.flatten(1))
    return net.fc(x.flatten(1)) * gate


def under_autocast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net.fc(x.flatten(1))


def counting(net: Net, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return net.fc(x.flatten(1)) * net.calls


def remembering(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    net.last = out.detach()
    return out


def changed_through_a_view(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    changed = out.view(-1).mul_(2)
    return out + changed.view(-1, 4)


def noisy(net: Net, x: Tensor) -> Tensor:
    out = net.fc(x.flatten(1))
    return out * 2 if net.training else out


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    module[1].register_forward_hook(lambda module, args, out: out * 2)
    return module


def hooked_parameter() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    module[1].weight.register_hook(lambda grad: grad * 2)
    return module


class OneFrozen(nn.Module):
    """A network with batch norm in evaluation mode, as pretrained networks often have it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(64, 4), nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> OneFrozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x.flatten(1)))


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    module[1].bias.requires_grad_(False)
    return module


def flat(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), *layers)


def unlike(first: nn.Module, second: nn.Module) -> list[nn.Module]:
    return [nn.Sequential(nn.Flatten(), nn.Linear(64, 4), each) for each in (first, second)]


NOT_STACKABLE: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "rnn": (flat(nn.RNN(4, 4)), "layer '2' (RNN) cannot be stacked: there is no stacked form of it"),
    "several results": (flat(nn.LSTM(4, 4)), "the network's output cannot be stacked: it must be one tensor"),
    "alpha dropout": (flat(nn.AlphaDropout(0.5)), "layer '2' (AlphaDropout)"),
    "nested": (lambda: nn.Sequential(nn.Flatten(), nn.ModuleDict({"n": nn.RNN(64, 4)})["n"]), "layer '1' (RNN)"),
    "transposed convolution": (lambda: nn.Sequential(nn.ConvTranspose2d(1, 2, 3)), "layer '0' (ConvTranspose2d)"),
    "embedding of each member's own": (flat(nn.Embedding(4, 4)), "layer '2' (Embedding)"),
    "embedding with a norm": (lambda: nn.Sequential(nn.Embedding(4, 4, max_norm=1.0)), "layer '0' (Embedding)"),
    "statistics of instances": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, track_running_stats=True)),
        "layer '1' (InstanceNorm2d)",
    ),
    "padding mode": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="circular")), "layer '0' (Conv2d)"),
    "padding by name": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2, padding="same")), "layer '0' (Conv2d)"),
    "no statistics": (flat(nn.BatchNorm1d(4, track_running_stats=False)), "layer '2' (BatchNorm1d)"),
    "no norm parameters": (flat(nn.BatchNorm1d(4, affine=False)), "layer '2' (BatchNorm1d)"),
    "cumulative average": (flat(nn.BatchNorm1d(4, momentum=None)), "layer '2' (BatchNorm1d)"),
    "pooling indices": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2, return_indices=True)),
        "'1' (MaxPool2d)",
    ),
    "weight norm": (
        flat(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
        "layer '2' (ParametrizedLinear) cannot be stacked: its parameters are computed from others",
    ),
    "hooks": (hooked, "layer '1' (Linear)"),
    "frozen": (frozen, "'1.bias'"),
    "control flow": (lambda: net(branches), "Net"),
    "length": (lambda: net(lambda net, x: net.fc(x.view(len(x), -1))), "Net"),
    "loop over images": (lambda: net(lambda net, x: net.fc(torch.stack([each for each in x]))), "Net"),
    "numbers": (lambda: net(lambda net, x: net.fc(x.flatten(1)) * float(x[0, 0])), "Net"),
    "its own fault": (lambda: net(lambda net, x: net.missing(x)), "Net"),
    "unknown function": (lambda: net(lambda net, x: torch.fft.fft(net.fc(x.flatten(1))).real), "'fft_fft'"),
    "unknown method": (lambda: net(lambda net, x: net.fc(x.flatten(1)).renorm(2, 0, 1)), "'renorm'"),
    "unknown attribute": (lambda: net(lambda net, x: net.fc(x.flatten(1)).grad), "'getattr'"),
    "item assignment": (lambda: net(assigned), "Net"),
    "places of values": (lambda: net(lambda net, x: torch.where(net.fc(x.flatten(1)) > 0)[0]), "'where'"),
    "convolution as a function": (lambda: net(lambda net, x: F.conv2d(x, net.fc.weight.view(4, 1, 8, 8))), "'conv2d'"),
    "attention with dropout": (
        lambda: net(lambda net, x: F.scaled_dot_product_attention(*[net.fc(x.flatten(2))] * 3, dropout_p=0.1)),
        "'scaled_dot_product_attention'",
    ),
    "random numbers as a function": (
        lambda: net(lambda net, x: net.fc(x.flatten(1)) + torch.rand_like(x)),
        "'rand_like'",
    ),
    "random numbers": (lambda: net(lambda net, x: net.fc(x.flatten(1)) + torch.randn(4)), "Net"),
    "random numbers of Python": (lambda: net(lambda net, x: net.fc(x.flatten(1)) * random.random()), "Net"),
    "random numbers of numpy": (lambda: net(lambda net, x: net.fc(x.flatten(1)) * float(np.random.rand())), "Net"),
    "layer in another mode": (OneFrozen, "layer 'norm' (BatchNorm1d)"),
    "hook of a parameter": (hooked_parameter, "'1.weight'"),
    "no gradients": (lambda: net(without_gradients), "Net"),
    "another type": (lambda: net(under_autocast), "Net"),
    "counting calls": (lambda: net(counting), "Net"),
    "kept for the next call": (lambda: net(remembering), "Net"),
    "buffer replaced": (lambda: Buffered(lambda net, x: setattr(net, "held", net.held + 1)), "Buffered"),
    "buffer changed": (lambda: Buffered(lambda net, x: net.held.add_(1)), "'add_'"),
    "buffer changed through a view": (lambda: Buffered(lambda net, x: net.held[None].mul_(2)), "'mul_'"),
    "tensor changed": (lambda: Buffered(lambda net, x: net.plain.add_(1)), "Buffered"),
    "parameter changed": (lambda: net(lambda net, x: net.fc(x.flatten(1)) + net.fc.bias.mul_(0.5)), "'mul_'"),
    "statistics read": (
        lambda: net(lambda net, x: net.b(net.fc(x.flatten(1))) - net.b.running_mean, b=nn.BatchNorm1d(4)),
        "'b.running_mean'",
    ),
    "type": (lambda: net(lambda net, x: net.fc(x.flatten(1)).view(torch.int64)), "'view'"),
    "written elsewhere": (lambda: net(lambda net, x: torch.add(y := net.fc(x.flatten(1)), 1, out=y)), "'add'"),
    "functional dropout": (lambda: net(lambda net, x: F.dropout(net.fc(x.flatten(1)), 0.5, net.training)), "'dropout'"),
    "other at inference": (lambda: net(noisy), "'mul'"),
    "read again": (lambda: net(read_again), "'relu_'"),
    "read again by another name": (lambda: net(read_again_by_another_name), "'iadd'"),
    "read again through a view": (lambda: net(read_again_through_a_view), "'relu'"),
    "changed through a view": (lambda: net(changed_through_a_view), "'mul_'"),
    "read again through parts": (lambda: net(read_again_through_parts), "'relu_'"),
    "read again through a transposed view": (lambda: net(read_again_transposed), "'iadd'"),
    "read again, in place by position": (
        lambda: net(lambda net, x: F.relu(y := net.fc(x.flatten(1)), True) + y),
        "'relu'",
    ),
    "layer in place": (lambda: net(lambda net, x: net.r(y := net.fc(x.flatten(1))) + y, r=nn.ReLU(True)), "'r'"),
    "dropout in place": (
        lambda: net(lambda net, x: net.d(y := net.fc(x.flatten(1))) + y, d=nn.Dropout(0.5, True)),
        "'d'",
    ),
    "two outputs": (lambda: net(lambda net, x: (net.fc(x.flatten(1)), x)), "the network's output"),  # type: ignore[arg-type, return-value]
    "no layer on the way": (lambda: net(lambda net, x: x.flatten(1)), "the network"),
    "no parameters": (nn.Flatten, "Flatten"),
}


@pytest.mark.parametrize("what", NOT_STACKABLE)
def test_the_error_names_what_cannot_be_stacked(what: str) -> None:
    make, name = NOT_STACKABLE[what]
    with pytest.raises(CannotStackError) as caught:
        StackedNetwork([make(), make()])
    message = str(caught.value)
    assert message.startswith(name) or (message.startswith("layer ") and name in message)
    assert "cannot be stacked" in message
    assert message.isprintable()


def test_a_forward_with_two_arguments_cannot_be_stacked() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 4)

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            return self.fc(x.flatten(1)) + y

    with pytest.raises(CannotStackError, match=r"^Two cannot be stacked: its forward takes more arguments than"):
        StackedNetwork([Two(), Two()])


def skipping(times: float) -> nn.Module:
    module = net(operator.attrgetter("never"))
    module.times = times

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(x.flatten(1)) * net.times

    module.what = forward
    return module


DIFFERENT: dict[str, tuple[list[nn.Module], str]] = {
    "slope": (unlike(nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)), "layer '2' (LeakyReLU)"),
    "eps": (unlike(nn.BatchNorm1d(4, eps=1e-3), nn.BatchNorm1d(4)), "layer '2' (BatchNorm1d)"),
    "momentum": (unlike(nn.BatchNorm1d(4, momentum=0.2), nn.BatchNorm1d(4)), "layer '2' (BatchNorm1d)"),
    "gelu": (unlike(nn.GELU(), nn.GELU("tanh")), "layer '2' (GELU)"),
    "kind": (unlike(nn.ReLU(), nn.Tanh()), "layer '2'"),
    "more layers": (unlike(nn.Tanh(), nn.Sequential(nn.Tanh(), nn.Linear(4, 4))), "layer '2'"),
    "units": (unlike(nn.Linear(4, 3), nn.Linear(4, 5)), "'2.weight'"),
    "bias": (unlike(nn.Linear(4, 3), nn.Linear(4, 3, bias=False)), "'2.bias'"),
    "stride": ([nn.Sequential(nn.Conv2d(1, 2, 3, stride=each)) for each in (1, 2)], "layer '0' (Conv2d)"),
    "pool": (
        [nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, ceil_mode=each)) for each in (True, False)],
        "'1' (Avg",
    ),
    "flatten": ([nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(each)) for each in (1, 2)], "layer '1' (Flatten)"),
    "forward": ([skipping(1.0), skipping(2.0)], "'mul'"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_the_error_names_the_difference_between_members(what: str) -> None:
    members, name = DIFFERENT[what]
    for order in (members, members[::-1]):
        with pytest.raises(CannotStackError) as caught:
            StackedNetwork(order)
        assert name in str(caught.value)
        assert str(caught.value).isprintable()


def holding(values: Tensor) -> nn.Module:
    module = net(lambda net, x: net.fc(x.flatten(1)) * net.values.mean())
    module.values = values
    return module


def test_constant_tensors_must_be_equal() -> None:
    """Also if their text is equal, which shows only the first and last of many values."""
    values = torch.ones(2000)
    other = values.clone()
    other[1000] = 7
    with pytest.raises(CannotStackError, match=r"^a tensor of Net cannot be stacked: .*make it a buffer"):
        StackedNetwork([holding(values), holding(other)])
    assert_trains_like_plain([holding(values.double()).double() for _ in range(2)], IMAGES, LABELS)


def test_buffers_may_differ_between_members() -> None:
    """Equal and different buffers stay in the state, and with their members when others are removed."""
    for factors in ((1.0, 1.0, 1.0), (1.0, 2.0, -3.0)):
        members = [Buffered(lambda net, x: net.held[0], factor).double() for factor in factors]
        network = assert_trains_like_plain(members, IMAGES, LABELS)
        before = network(IMAGES, training=False)
        network.select(torch.tensor([0, 2]))
        assert_same(network(IMAGES, training=False), before[[0, 2]])
        assert network.state_dict(1)["held"][0] == factors[2]


@pytest.mark.parametrize("what", ["counting calls", "buffer replaced", "tensor changed", "kept for the next call"])
def test_a_module_that_cannot_be_stacked_is_not_changed(what: str) -> None:
    module = NOT_STACKABLE[what][0]()
    held = {name: value for name, value in vars(module).items() if name != "_modules"}
    buffers = {name: value for name, value in module.named_buffers()}
    with pytest.raises(CannotStackError):
        StackedNetwork([module])
    assert vars(module).keys() == {*held, "_modules"}
    assert all(value is buffers[name] for name, value in module.named_buffers())


def test_dropout_rates_and_unused_attributes_may_differ() -> None:
    members = [nn.Sequential(nn.Flatten(), nn.Dropout(rate), nn.Linear(64, 4)) for rate in (0.1, 0.6)]
    assert StackedNetwork(members).members == 2
    named = [skipping(1.0), skipping(1.0)]
    named[1].remark = "the second"
    assert StackedNetwork(named).members == 2
