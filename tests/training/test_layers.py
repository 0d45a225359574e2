"""Forward and backward of every stacked layer equal those of torch.nn for each member, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_reference import Net, assert_same, assert_trains_like_plain, seeded

from hpo.errors import HpoError
from hpo.training.stacking.batch_norm import MAX_RECORDED
from hpo.training.stacking.parameter_blocks import ParameterBlocks
from hpo.training.stacking.stacked_network import LAYERS, StackedNetwork
from hpo.training.stacking.tracing.supported import ELEMENTWISE_LAYERS
from hpo.training.stacking.tracing.trace import CannotStackError, trace

quick = settings(max_examples=25)
several = st.integers(1, 4)


def assert_layer_is_torchs(modules: Sequence[nn.Module], x: Tensor, shared: bool) -> None:
    """Compare outputs, input and parameter gradients and buffers after two training steps; then evaluation mode."""
    blocks = ParameterBlocks(
        {
            f"it.{n}": torch.stack([dict(m.named_parameters())[n].detach() for m in modules])
            for n, _ in named(modules[0])
        },
        torch.float64,
    )
    layer = LAYERS[type(modules[0])]("it", modules)
    layer.bind(blocks.slots)
    plain = [copy.deepcopy(module) for module in modules]
    for _ in range(2):
        ours = x.detach().requires_grad_()
        blocks.begin_step()
        out = layer(ours, not shared, training=True)
        grad = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        out.backward(grad)
        assert ours.grad is not None
        gradients = []
        for number, module in enumerate(plain):
            module.zero_grad()
            own = (x if shared else x[number]).detach().clone().requires_grad_()
            expected = module(own)
            expected.backward(grad[number])
            assert_same(out[number], expected)
            for name, parameter in named(module):
                assert parameter.grad is not None
                assert_same(blocks.slots[f"it.{name}"].grad[number], parameter.grad)
            assert own.grad is not None
            gradients.append(own.grad)
        assert_same(ours.grad, torch.stack(gradients).sum(0) if shared else torch.stack(gradients))
    for number, module in enumerate(plain):
        buffers = {name: value[number] for name, value in layer.buffers().items()}
        assert buffers.keys() == {f"it.{name}" for name, _ in module.named_buffers()}
        for name, value in module.named_buffers():
            assert_same(buffers[f"it.{name}"].double(), value.double())
    with torch.no_grad():
        out = layer(x, not shared, training=False)
        for number, module in enumerate(plain):
            assert_same(out[number], module.eval()(x if shared else x[number]))


def named(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters())


def random_input(shape: Sequence[int], order: Sequence[int] | None = None) -> Tensor:
    """Return random numbers of this shape whose memory order of dimensions is another."""
    generator = torch.Generator().manual_seed(sum(shape))
    if order is None:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    x = torch.randn([shape[dim] for dim in order], generator=generator, dtype=torch.float64)
    return x.permute([list(order).index(dim) for dim in range(len(shape))])


@quick
@given(several, several, several, several, st.booleans(), st.booleans(), st.booleans())
def test_linear(members: int, batch: int, inputs: int, units: int, bias: bool, shared: bool, transposed: bool) -> None:
    modules = seeded(lambda: nn.Linear(inputs, units, bias=bias), members)
    shape = (batch, inputs) if shared else (members, batch, inputs)
    order = (1, 0) if shared else (0, 2, 1)
    assert_layer_is_torchs(modules, random_input(shape, order if transposed else None), shared)


@quick
@given(st.data())
def test_convolution(data: st.DataObject) -> None:
    members, batch, shared = data.draw(several), data.draw(several), data.draw(st.booleans())
    groups = 1 if shared else data.draw(st.integers(1, 3))
    channels, filters = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 2))
    sides = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = data.draw(sides), data.draw(sides), data.draw(sides)
    padding = data.draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    reach = [s + 2 * p - d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)]
    assume(min(reach) >= 1)
    bias = data.draw(st.booleans())

    def make() -> nn.Module:
        return nn.Conv2d(channels, filters, kernel, stride, padding, dilation, groups, bias)

    shape = (batch, channels, *size) if shared else (members, batch, channels, *size)
    order = None if shared or data.draw(st.booleans()) else (1, 0, 2, 3, 4)
    assert_layer_is_torchs(seeded(make, members), random_input(shape, order), shared)


@quick
@given(several, st.integers(2, 5), several, st.integers(0, 2), st.sampled_from([1e-5, 1e-2]), st.booleans(), st.data())
def test_batch_norm(
    members: int, batch: int, channels: int, sides: int, eps: float, transposed: bool, data: st.DataObject
) -> None:
    momentum = data.draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    kind = nn.BatchNorm2d if sides == 2 else nn.BatchNorm1d
    modules = seeded(lambda: kind(channels, eps=eps, momentum=momentum), members)
    shape = (members, batch, channels, *(3, 2)[:sides])
    order = ((0, 2, 1), (1, 0, 2, 3), (1, 0, 2, 3, 4))[sides] if transposed else None
    assert_layer_is_torchs(modules, random_input(shape, order), shared=False)


@quick
@given(st.data())
def test_convolution_of_sequences(data: st.DataObject) -> None:
    members, batch, shared = data.draw(several), data.draw(several), data.draw(st.booleans())
    groups = 1 if shared else data.draw(st.integers(1, 3))
    channels, filters = groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 2))
    kernel, stride, dilation, length = (data.draw(st.integers(1, most)) for most in (3, 3, 3, 7))
    padding = data.draw(st.sampled_from([0, 1, 2, "valid"]))
    assume(length + 2 * (0 if padding == "valid" else padding) > dilation * (kernel - 1))
    bias = data.draw(st.booleans())

    def make() -> nn.Module:
        return nn.Conv1d(channels, filters, kernel, stride, padding, dilation, groups, bias)

    shape = (batch, channels, length) if shared else (members, batch, channels, length)
    order = None if shared or data.draw(st.booleans()) else (1, 3, 0, 2)
    assert_layer_is_torchs(seeded(make, members), random_input(shape, order), shared)


PER_MEMBER_LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.LayerNorm(4), (2, 6, 4)),
    "layer norm of two": (lambda: nn.LayerNorm((3, 4), eps=0.1), (2, 3, 4)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), (2, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), (2, 3, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 6, eps=0.1), (2, 6, 3, 2)),
    "group norm of channels": (lambda: nn.GroupNorm(6, 6), (2, 6, 5)),
    "group norm of all": (lambda: nn.GroupNorm(1, 6), (2, 6)),
    "instance norm of sequences": (lambda: nn.InstanceNorm1d(3, affine=True), (2, 3, 5)),
    "instance norm of images": (lambda: nn.InstanceNorm2d(3, affine=True, eps=0.1), (2, 3, 4, 2)),
    "prelu": (nn.PReLU, (2, 3)),
    "prelu of channels": (lambda: nn.PReLU(3), (2, 3, 4, 2)),
}


@pytest.mark.parametrize("kind", PER_MEMBER_LAYERS)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_layers_that_depend_on_parameters_only(kind: str, members: int, shared: bool) -> None:
    make, shape = PER_MEMBER_LAYERS[kind]
    whole = shape if shared else (members, *shape)
    order = None if shared else (*range(1, len(whole)), 0)  # members innermost in memory
    assert_layer_is_torchs(seeded(make, members), random_input(whole, order), shared)


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(8, elementwise_affine=False), lambda: nn.InstanceNorm2d(2)])
@pytest.mark.parametrize("first", [True, False])
def test_norms_without_parameters(make: Callable[[], nn.Module], first: bool) -> None:
    def network() -> nn.Module:
        convolution = nn.Conv2d(2, 2, 1)
        layers = [make(), convolution] if first else [convolution, make()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 3))

    assert_trains_like_plain(seeded(network), random_input((4, 2, 3, 8)), torch.arange(4) % 3, steps=2)


def test_embedding() -> None:
    """The input is shared; the padding index has no gradient."""
    places = torch.tensor([[1, 0], [3, 3]])
    modules = seeded(lambda: nn.Embedding(4, 5, padding_idx=3))
    blocks = ParameterBlocks({"it.weight": torch.stack([module.weight.detach() for module in modules])}, torch.float64)
    layer = LAYERS[nn.Embedding]("it", modules)
    layer.bind(blocks.slots)
    blocks.begin_step()
    out = layer(places, False, training=True)
    out.square().sum().backward()
    for number, module in enumerate(modules):
        expected = module(places)
        expected.square().sum().backward()
        assert_same(out[number], expected)
        assert module.weight.grad is not None
        assert_same(blocks.slots["it.weight"].grad[number], module.weight.grad)


def test_padding_same_keeps_the_size() -> None:
    def make() -> nn.Module:
        images = nn.Conv2d(1, 2, (3, 5), padding="same", dilation=(2, 1))
        return nn.Sequential(images, nn.Flatten(2), nn.Conv1d(2, 2, 3, padding="same"), nn.Flatten(), nn.Linear(84, 3))

    assert_trains_like_plain(seeded(make), random_input((4, 1, 6, 7)), torch.arange(4) % 3, steps=2)


def test_convolution_of_one_image() -> None:
    """A single image without a batch dimension is not mistaken for a shared batch."""

    def make() -> nn.Module:
        layers = (
            nn.Conv2d(1, 2, 2),
            nn.Flatten(0, 1),
            nn.Conv2d(8, 3, 2),
            nn.AvgPool2d(2),
            nn.Flatten(0),
            nn.Linear(3, 3),
        )
        return nn.Sequential(*layers, nn.Unflatten(0, (1, 3)))

    assert_trains_like_plain(seeded(make), random_input((4, 1, 5, 5)), torch.zeros(1, dtype=torch.int64), steps=2)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_norm_raises_for_wrong_dimensions_as_torch_does(kind: type[nn.Module]) -> None:
    network = StackedNetwork([nn.Sequential(nn.Conv2d(1, 2, 2), nn.Unflatten(1, (2, 1)), kind(2))])
    with pytest.raises(CannotStackError, match=r"layer '2' cannot be stacked: its input has 5 dimensions"):
        network(torch.zeros(2, 1, 3, 3), training=True)


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_norm_has_torchs_statistics_after_any_number_of_batches(kind: type[nn.Module], momentum: float) -> None:
    modules = seeded(lambda: kind(3, momentum=momentum))
    layer = LAYERS[kind]("norm", modules)
    values = {f"norm.{n}": torch.stack([getattr(m, n).detach() for m in modules]) for n in ("weight", "bias")}
    layer.bind(ParameterBlocks(values, torch.float64).slots)
    rest = (3, 2, 2) if kind is nn.BatchNorm2d else (3,)
    generator = torch.Generator().manual_seed(0)
    for batch in range(2 * MAX_RECORDED + 3):
        x = torch.randn(len(modules), 2 + batch % 3, *rest, generator=generator, dtype=torch.float64)
        if batch % 5 == 0 and kind is nn.BatchNorm2d:  # the memory order of a convolution's output
            x = x.permute(1, 3, 4, 0, 2).contiguous().permute(3, 0, 4, 1, 2)
        layer(x, True, training=True)
        for module, own in zip(modules, x, strict=True):
            module(own)
    for name, value in layer.buffers().items():
        torch.testing.assert_close(value, torch.stack([m.state_dict()[name.removeprefix("norm.")] for m in modules]))


def test_batch_norm_raises_for_one_value_as_torch_does() -> None:
    modules = seeded(lambda: nn.BatchNorm1d(3))
    layer = LAYERS[nn.BatchNorm1d]("norm", modules)
    layer.bind(
        ParameterBlocks(
            {f"norm.{n}": torch.zeros(3, 3, dtype=torch.float64) for n in ("weight", "bias")}, torch.float64
        ).slots
    )
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        modules[0](torch.zeros(1, 3, dtype=torch.float64))
    with pytest.raises(HpoError, match=r"^layer 'norm': a batch of one value"):
        layer(torch.zeros(3, 1, 3, dtype=torch.float64), True, training=True)


ACTIVATIONS: dict[type[nn.Module], list[dict[str, Any]]] = {
    nn.LeakyReLU: [{}, {"negative_slope": 0.3}],
    nn.ELU: [{}, {"alpha": 0.4}],
    nn.GELU: [{}, {"approximate": "tanh"}],
    nn.Softplus: [{}, {"beta": 2.0, "threshold": 1.0}],
    nn.Hardtanh: [{}, {"min_val": -0.2, "max_val": 0.7}],
}
IN_PLACE = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardtanh, nn.Hardswish)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [(kind, each) for kind in ELEMENTWISE_LAYERS for each in ACTIVATIONS.get(kind, [{}])]
    + [(kind, {"inplace": True}) for kind in IN_PLACE],
)
def test_activations_after_linear_layers_and_convolutions(kind: type[nn.Module], arguments: dict[str, Any]) -> None:
    """Shared input, after a convolution and after a linear layer, with gradients through them."""

    def make() -> nn.Module:
        def act() -> nn.Module:
            return kind(**arguments)

        convolution = nn.Conv2d(1, 2, 3)
        return nn.Sequential(act(), convolution, act(), nn.Flatten(), nn.Linear(8, 5), act(), nn.Linear(5, 3))

    x = random_input((6, 1, 4, 4))
    assert_trains_like_plain(seeded(make), x, torch.arange(6) % 3, steps=2)


POOLINGS: list[Callable[[], nn.Module]] = [
    lambda: nn.MaxPool2d(2),
    lambda: nn.MaxPool2d((2, 3), stride=(1, 2)),
    lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    lambda: nn.MaxPool2d(2, stride=1, dilation=2),
    lambda: nn.AvgPool2d(2),
    lambda: nn.AvgPool2d((3, 2), stride=(2, 1), padding=1, count_include_pad=False),
    lambda: nn.AvgPool2d(2, ceil_mode=True, divisor_override=3),
    lambda: nn.AdaptiveAvgPool2d(1),
    lambda: nn.AdaptiveAvgPool2d((3, None)),
    lambda: nn.AdaptiveMaxPool2d((2, 3)),
    lambda: nn.Sequential(nn.Flatten(2), nn.MaxPool1d(3, 2), nn.Unflatten(2, (-1, 1))),
    lambda: nn.Sequential(nn.Flatten(2), nn.AvgPool1d(2), nn.Unflatten(2, (-1, 1))),
    lambda: nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(12), nn.Unflatten(2, (3, 4))),
    lambda: nn.Sequential(nn.Flatten(2), nn.AdaptiveMaxPool1d(12), nn.Unflatten(-1, (3, 4))),
    lambda: nn.Softmax(1),
    lambda: nn.LogSoftmax(-1),
    lambda: nn.Softmin(0),
    lambda: nn.GLU(3),
    lambda: nn.Sequential(nn.ZeroPad2d((1, 0, 2, 0)), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1)),
    lambda: nn.Sequential(nn.Flatten(2), nn.ZeroPad1d(1), nn.Unflatten(2, (1, -1)), nn.Upsample((8, 8))),
    lambda: nn.Sequential(nn.Upsample((6, 8), mode="bilinear"), nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("first", [True, False])
def test_layers_without_parameters_before_and_after_a_convolution(
    pooling: Callable[[], nn.Module], first: bool
) -> None:
    def make() -> nn.Module:
        images = [pooling(), nn.Conv2d(2, 3, 1)] if first else [nn.Conv2d(2, 3, (2, 1)), pooling()]
        features = nn.Sequential(*images, nn.Flatten())(torch.zeros(4, 2, 7, 8)).shape[1]
        return nn.Sequential(*images, nn.Flatten(), nn.Linear(features, 3))

    assert_trains_like_plain(seeded(make), random_input((4, 2, 7, 8)), torch.arange(4) % 3, steps=2)


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_write_the_channels_of_a_pixel_side_by_side(channels: int) -> None:
    """With one channel, torch would take images in either order for channels-first ones, and be half as fast."""
    network = StackedNetwork(seeded(lambda: nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU())), torch.float64)
    out = network(random_input((5, channels, 8, 8)), training=True)
    assert out.shape == (3, 5, 4, 6, 6)
    assert out.stride() == (4, 12 * 36, 1, 12 * 6, 12)


@pytest.mark.parametrize("channels", [1, 2])
def test_batch_norm_of_images(channels: int) -> None:
    """With one channel, the members' parameters are not side by side in their block."""

    def make() -> nn.Module:
        norm = nn.BatchNorm2d(channels, eps=0.01, momentum=0.3)
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        return nn.Sequential(nn.Conv2d(1, channels, 2), norm, nn.Flatten(), nn.Linear(9 * channels, 3))

    assert_trains_like_plain(seeded(make), random_input((5, 1, 4, 4)), torch.arange(5) % 3)


class Pooled(nn.Module):
    """A convolution, then the function `then` of its output and the layers."""

    def __init__(self, then: Callable[[Pooled, Tensor], Tensor], inplace: bool = False) -> None:
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(2, 3, 2), nn.ReLU(inplace), nn.MaxPool2d(2)
        self.then, features = then, then(self, self.conv(torch.zeros(1, 2, 7, 8))).flatten(1).shape[1]
        self.head = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.then(self, self.conv(x)).flatten(1))
        return out


@pytest.mark.parametrize(
    ("then", "inplace", "order"),
    [
        (lambda net, x: net.pool(net.relu(x)), False, ["pool", "relu"]),
        (lambda net, x: F.max_pool2d(F.relu(x), 3, 2, 1), False, ["max_pool2d", "relu"]),
        (lambda net, x: net.relu(net.pool(torch.relu(x))), False, ["pool", "relu", "relu_1"]),
        (lambda net, x: net.pool(net.relu(x)), True, ["relu", "pool"]),
        (lambda net, x: net.pool(y := net.relu(x)).flatten(1) + y.sum((1, 2, 3)).unsqueeze(1), False, ["relu", "pool"]),
        (lambda net, x: F.avg_pool2d(net.relu(x), 2), False, ["relu", "avg_pool2d"]),
    ],
)
def test_max_pooling_comes_before_a_relu_that_nothing_else_reads(
    then: Callable[[Pooled, Tensor], Tensor], inplace: bool, order: list[str]
) -> None:
    """Also with windows whose elements are all negative, or equal."""
    modules = seeded(lambda: Pooled(then, inplace))
    names = [node.name for node in trace(modules).graph.nodes]
    assert [name for name in names if name in (*order, "relu", "pool")] == order
    x = random_input((4, 2, 7, 8))
    x[0], x[1] = 0.5, x[1].round()
    assert_trains_like_plain(modules, x, torch.arange(4) % 3, steps=3)


@quick
@given(st.integers(-4, 3), st.integers(-4, 3), st.booleans())
def test_flatten_of_any_dimensions(start: int, end: int, shared: bool) -> None:
    """Also the batch dimension may be flattened, but never the dimension of members."""
    assume(start % 4 <= end % 4)
    x = random_input((2, 1, 3, 3))
    flatten = nn.Flatten(start, end)
    features = flatten(x).shape[-1]

    def make() -> nn.Module:
        layers = [flatten, nn.Linear(features, 2)] if shared else [nn.Conv2d(1, 2, 1), flatten]
        return nn.Sequential(*layers)

    modules = seeded(make)
    out = StackedNetwork(modules, torch.float64)(x, training=True)
    for number, module in enumerate(modules):
        assert_same(out[number], module(x))


def _added(net: Net, x: Tensor) -> Tensor:
    h = net.first(x)
    return net.head(net.norm(h) + h)


def _called_twice(net: Net, x: Tensor) -> Tensor:
    return net.head(net.norm(net.first(x)) + net.first(2 * x).sin())


def _flat(net: Net, x: Tensor) -> Tensor:
    return net.head(net.norm(net.first(x)).flatten(1))


@pytest.mark.parametrize(
    ("first", "norm", "forward", "shape", "is_0"),
    [
        (nn.Linear(5, 4), nn.BatchNorm1d(4), _flat, (5,), True),
        (nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), _flat, (1, 2, 3), True),
        (nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), _flat, (1, 3), True),
        (nn.Linear(5, 2), nn.BatchNorm1d(2), _flat, (2, 5), False),  # one of each two numbers in its last dimension
        (nn.Linear(5, 4), nn.BatchNorm1d(4), _added, (5,), False),
        (nn.Linear(5, 4), nn.BatchNorm1d(4), _called_twice, (5,), False),
        (nn.Linear(5, 4), nn.LayerNorm(4), _flat, (5,), False),
    ],
)
def test_a_bias_that_only_batch_norm_reads_has_a_gradient_of_0(
    first: nn.Module, norm: nn.Module, forward: Callable[[Net, Tensor], Tensor], shape: Sequence[int], is_0: bool
) -> None:
    """Exactly: Adam and Lion would make steps of the size of `lr` of its rounding errors."""
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(12, *shape, generator=generator), torch.randint(3, (12,), generator=generator)
    head = nn.Linear(norm(first(x)).flatten(1).shape[1], 3)
    modules = seeded(lambda: copy.deepcopy(Net(forward, first=first, norm=norm, head=head)))
    assert_trains_like_plain(modules, x.double(), labels)
    network = StackedNetwork([module.float() for module in modules])
    for _ in range(2):
        network.blocks.begin_step()
        network(x, training=True).sin().sum().backward()
        assert (network.blocks.slots["first.bias"].grad.count_nonzero() == 0) == is_0
        assert network.blocks.slots["first.bias"].has_gradient
