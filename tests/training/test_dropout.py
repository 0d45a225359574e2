"""Dropout: equal to the classic form up to a factor, with a rate per member and independent random masks.

The statistical tests have fixed seeds, so their results never change. Their limits are z = 5 standard deviations of the
binomial distribution (one false alarm in 1.7 million).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from hpo.training.randomness import dropout_keys
from hpo.training.seeds import member_seed
from hpo.training.stacking.dropout import ChannelDropout, Dropout
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.tracing.trace import CannotStackError

Z = 5.0


class ClassicDropout:
    """The reference, in NumPy: N. Srivastava et al., "Dropout", JMLR 15 (2014), in its first form.

    Elements are masked in training and not scaled; at inference the output is multiplied by 1 - rate.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def train(self, x: NDArray[np.float64], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        self.mask = mask
        return x * mask

    def backward(self, grad: NDArray[np.float64]) -> NDArray[np.float64]:
        return grad * self.mask

    def infer(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x * (1.0 - self.rate)


def layer(*rates: float) -> Dropout:
    return Dropout("drop", [nn.Dropout(rate) for rate in rates])


def masks(rates: list[float], shape: tuple[int, ...], seeds: list[int], epoch: int = 1, step: int = 0) -> Tensor:
    """Return the masks [K, *shape] of a layer for members with these seeds: True where an element remains."""
    dropout = layer(*rates)
    dropout.set_keys(dropout_keys(seeds, epoch, step + 1, 1)[step, 0])
    return dropout(torch.ones(len(rates), *shape, dtype=torch.float64), True, training=True) > 0


def assert_share(kept: Tensor, share: float) -> None:
    """Assert that the fraction of true elements is as expected, within Z standard deviations of a binomial."""
    error = abs(kept.double().mean().item() - share)
    assert error <= Z * math.sqrt(share * (1 - share) / kept.numel())


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.9])
def test_dropout_equals_the_classic_form_divided_by_one_minus_the_rate(rate: float) -> None:
    x = torch.randn(1, 20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    grad = torch.randn(1, 20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dropout, classic = layer(rate), ClassicDropout(rate)
    dropout.set_keys(dropout_keys([7], 1, 1, 1)[0, 0])
    out = dropout(x, True, training=True)
    out.backward(grad)
    values = x.detach().numpy()
    factor = 1 / (1 - rate)
    np.testing.assert_allclose(out.detach().numpy(), classic.train(values, (out.detach() != 0).numpy()) * factor, 1e-12)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), classic.backward(grad.numpy()) * factor, 1e-12)
    inferred = dropout(x, True, training=False).detach().numpy()
    np.testing.assert_allclose(inferred, classic.infer(values) * factor, 1e-12)
    np.testing.assert_array_equal(inferred, values)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_the_mean_in_training_equals_the_output_in_evaluation(rate: float) -> None:
    """Over 4,000 steps the mean of each element is its value, within z standard deviations."""
    dropout = layer(rate)
    x = torch.linspace(0.5, 2.0, 50, dtype=torch.float64).view(1, 1, 50)
    steps = 4000
    keys = dropout_keys([11], 1, steps, 1)
    total = torch.zeros_like(x)
    for step in range(steps):
        dropout.set_keys(keys[step, 0])
        total += dropout(x, True, training=True)
    deviation = x * math.sqrt(rate / (1 - rate) / steps)
    assert ((total / steps - dropout(x, True, training=False)).abs() <= Z * deviation).all()


def test_rate_0_changes_nothing_and_rate_1_drops_everything() -> None:
    x = torch.randn(3, 4, 5)
    dropout = layer(0.0, 1.0, 0.5)
    dropout.set_keys(dropout_keys([1, 2, 3], 1, 1, 1)[0, 0])
    out = dropout(x, True, training=True)
    assert torch.equal(out[0], x[0])
    assert not out[1].any()
    assert not torch.equal(out[2], x[2])
    assert layer(0.0)(x[:1], True, training=True) is not None  # without keys


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_the_fraction_of_dropped_elements_is_the_rate(rate: float) -> None:
    """Rates are exact to 1 / 65536; a million elements detect a deviation of 5 / 10,000 at a rate of 0.1."""
    assert_share(masks([rate], (1000, 1000), [3]), 1 - rate)


def test_each_member_has_its_own_rate() -> None:
    rates = [0.0, 0.1, 0.25, 0.5, 0.75]
    kept = masks(rates, (200, 200), [1, 2, 3, 4, 5])
    for number, rate in enumerate(rates):
        assert_share(kept[number], 1 - rate)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True), st.integers(1, 5), st.integers(1, 9))
def test_a_mask_does_not_depend_on_index_or_other_members(numbers: list[int], rows: int, columns: int) -> None:
    rates = [number / 10 for number in numbers]
    together = masks(rates, (rows, columns), [member_seed(0, number) for number in numbers], epoch=2)
    for place, number in enumerate(numbers):
        alone = masks([number / 10], (rows, columns), [member_seed(0, number)], epoch=2)
        assert torch.equal(together[place], alone[0])


def test_rates_stay_with_their_members_when_others_are_removed() -> None:
    dropout = layer(0.0, 0.5, 0.9)
    keys = dropout_keys([1, 2, 3], 1, 1, 1)[0, 0]
    x = torch.ones(3, 10, 10)
    dropout.set_keys(keys)
    before = dropout(x, True, training=True)
    stay = torch.tensor([0, 2])
    dropout.select(stay)
    dropout.set_keys(keys[stay])
    assert torch.equal(dropout(x[stay], True, training=True), before[stay])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 63, 64])
def test_a_smaller_batch_begins_with_the_same_mask(count: int) -> None:
    """A mask depends on the element's position in memory only, not on the number of elements."""
    assert torch.equal(masks([0.5], (count, 1), [9])[0], masks([0.5], (64, 1), [9])[0, :count])


def pairs(rate: float = 0.5) -> dict[str, tuple[Tensor, Tensor]]:
    """Return pairs of masks that must be independent."""
    shape = (300, 400)
    seeds = [member_seed(0, number) for number in range(2)]
    both = masks([rate, rate], shape, seeds)
    one, other = both
    network = StackedNetwork([nn.Sequential(nn.Dropout(rate), nn.Linear(400, 400), nn.Dropout(rate))])
    keys = dropout_keys([seeds[0]], 1, 1, 2)[0]
    layers = []
    for place, dropout in enumerate(network.dropouts):
        dropout.set_keys(keys[place])
        layers.append(dropout(torch.ones(1, *shape), True, training=True)[0] > 0)
    flat = one.flatten()
    return {
        "members": (one, other),
        "neighbouring seeds": tuple(masks([rate, rate], shape, [5, 6])),  # type: ignore[dict-item]
        "steps": (one, masks([rate], shape, seeds[:1], step=1)[0]),
        "epochs": (one, masks([rate], shape, seeds[:1], epoch=2)[0]),
        "layers": (layers[0], layers[1]),
        "rows": (one[:-1], one[1:]),
        "halves": (one[:150], one[150:]),
        **{f"neighbours at {lag}": (flat[:-lag], flat[lag:]) for lag in (1, 2, 3, 4, 5, 8, 16, 64, 256)},
    }


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_masks_are_independent(rate: float) -> None:
    """Both elements remain, one remains, none remains: the frequencies are those of independent masks."""
    for first, second in pairs(rate).values():
        for a, b in ((first, second), (~first, second), (first, ~second), (~first, ~second)):
            expected = math.prod(1 - rate if each is kept else rate for each, kept in ((a, first), (b, second)))
            # Overlapping pairs (neighbours) are dependent, which at most doubles the variance of their count.
            share = (a & b).double().mean().item()
            assert abs(share - expected) <= Z * math.sqrt(2 * expected * (1 - expected) / a.numel())


def test_all_four_numbers_of_a_random_word_are_equally_random() -> None:
    """A 64-bit word gives four elements: each remains equally often, over elements and over 400 keys."""
    kept = masks([0.5] * 400, (1, 1024), list(range(400)))[:, 0]
    for lane in range(4):
        assert_share(kept[:, lane::4], 0.5)
    # The largest deviation of each of the 1,024 positions over 400 members, and of each member over the positions.
    assert (kept.double().mean(0) - 0.5).abs().max().item() <= Z * math.sqrt(0.25 / 400)
    assert (kept.double().mean(1) - 0.5).abs().max().item() <= Z * math.sqrt(0.25 / 1024)


def test_a_layer_called_twice_draws_two_masks() -> None:
    """As in torch: one nn.Dropout called twice in a forward draws two masks."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.drop_1 = nn.Dropout(0.5), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop_1(self.drop(x)) * 0 + self.drop(x)

    network = StackedNetwork([Twice()])
    assert len(network.dropouts) == 2
    keys = dropout_keys([1], 1, 1, 2)[0]
    kept = []
    for place, dropout in enumerate(network.dropouts):
        dropout.set_keys(keys[place])
        kept.append(dropout(torch.ones(1, 50, 64), True, training=True)[0] > 0)
    assert not torch.equal(kept[0], kept[1])
    out = network(torch.ones(50, 64), training=True)[0]
    assert torch.equal(out.detach() > 0, kept[1])


@pytest.mark.parametrize(("kind", "shape"), [(nn.Dropout1d, (50, 40, 3)), (nn.Dropout2d, (50, 40, 3, 2))])
def test_whole_channels_are_dropped_by_each_members_seed(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    def masks(*seeds: int) -> torch.Tensor:
        dropout = ChannelDropout("", [kind(0.4) for _ in seeds])
        dropout.set_keys(dropout_keys(list(seeds), 1, 1, 1)[0, 0])
        x = torch.ones(shape, dtype=torch.float64)
        assert torch.equal(dropout(x, False, training=False), x.expand(len(seeds), *shape))
        return dropout(x, False, training=True)

    together = masks(3, 7, 11)
    flat = together.flatten(3)
    assert torch.equal(flat.amin(-1), flat.amax(-1))
    assert set(flat.unique().tolist()) == {0.0, 1 / 0.6}
    kept = (flat[..., 0] > 0).double().mean((1, 2))
    assert ((kept - 0.6).abs() < 5 * (0.24 / 2000) ** 0.5).all()
    assert not torch.equal(together[0], together[1])
    for place, seed in enumerate((3, 7, 11)):
        assert torch.equal(masks(seed)[0], together[place])


def test_channel_dropout_requires_channels() -> None:
    dropout = ChannelDropout("drop", [nn.Dropout2d(0.5)])
    dropout.set_keys(dropout_keys([1], 1, 1, 1)[0, 0])
    with pytest.raises(CannotStackError, match=r"^layer 'drop' cannot be stacked: its input must have 4 dimensions"):
        dropout(torch.ones(2, 3, 4), False, training=True)


def test_masks_do_not_depend_on_other_members_in_any_memory_order() -> None:
    """Also where members are innermost in memory, which cannot be detected for a single member."""
    alone = Dropout("", [nn.Dropout(0.5)])
    both = Dropout("", [nn.Dropout(0.5), nn.Dropout(0.5)])
    for dropout, seeds in ((alone, [5]), (both, [5, 6])):
        dropout.set_keys(dropout_keys(seeds, 1, 1, 1)[0, 0])
    for order in ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 1, 0), (1, 0, 2), (2, 0, 1)):
        made = []
        for dropout, members in ((alone, 1), (both, 2)):
            sizes = (members, 6, 4)
            x = torch.ones([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(3)])
            made.append(dropout(x, True, training=True)[0])
        assert torch.equal(*made)
