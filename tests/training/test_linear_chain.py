"""A linear layer and what follows it, as one operation, equal the layers one after the other, in float64.

By compiled passes as by torch. tests/training/test_compiled_passes.py fails where passes cannot be compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_reference import assert_same, seeded

from hpo.training.stacking import linear_chain
from hpo.training.stacking.stacked_network import StackedNetwork


class Branches(nn.Module):
    """Chains of functions and layers; the second linear layer's output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.norm, self.dropout = nn.BatchNorm1d(5), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(F.relu(self.norm(self.first(x))))
        y = self.second(x)
        return self.last(y.relu() + y)  # type: ignore[no-any-return]  # nn.Module's call is untyped


class Twice(nn.Module):
    """The same layers twice: the second gradients are added to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.norm(self.shared(x)))
        return self.last(F.relu(self.shared(x)))  # type: ignore[no-any-return]  # nn.Module's call is untyped


def results(modules: Sequence[nn.Module], x: Tensor) -> tuple[StackedNetwork, Tensor]:
    """Return a network after two training steps, and its last output in training and after it."""
    network = StackedNetwork(modules, torch.float64)
    for step in range(2):
        for dropout in network.dropouts:
            dropout.set_keys(torch.arange(len(modules)).unsqueeze(1) + 100 * step)
        network.blocks.begin_step()
        out = network(x, training=True)
        (out * torch.arange(out.numel()).view_as(out).cos()).sum().backward()
    with torch.no_grad():
        return network, torch.stack([out, network(x, training=False)])


def assert_fused_is_separate(modules: Sequence[nn.Module], x: Tensor) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(linear_chain, "fits", lambda *arguments: False)
        expected = results(modules, x)
    assert_equal(results(modules, x), expected, len(modules))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(linear_chain, "passes_for", lambda x: None)
        assert_equal(results(modules, x), expected, len(modules))


def assert_equal(
    found: tuple[StackedNetwork, Tensor], expectation: tuple[StackedNetwork, Tensor], members: int
) -> None:
    (network, out), (expected, expected_out) = found, expectation
    assert_same(out, expected_out)
    for name, slot in network.blocks.slots.items():
        assert slot.has_gradient
        assert_same(slot.grad, expected.blocks.slots[name].grad)
    for member in range(members):
        for name, value in network.state_dict(member).items():
            assert_same(value.double(), expected.state_dict(member)[name].double())


@settings(max_examples=25)
@given(
    rates=st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=1, max_size=3),
    batch=st.integers(2, 5),
    units=st.integers(1, 4),
    bias=st.booleans(),
    norm=st.booleans(),
)
def test_one_operation_equals_the_layers(rates: list[float], batch: int, units: int, bias: bool, norm: bool) -> None:
    def make() -> nn.Module:
        layers = [nn.Linear(3, units, bias), nn.ReLU(), nn.Dropout(), nn.Linear(units, units, bias), nn.ReLU()]
        for position in (4, 1) if norm else ():
            layers.insert(position, nn.BatchNorm1d(units))
        return nn.Sequential(*layers, nn.Linear(units, 2))

    modules = seeded(make, len(rates))
    for module, rate in zip(modules, rates, strict=True):
        next(each for each in module.modules() if isinstance(each, nn.Dropout)).p = rate
    assert_fused_is_separate(modules, torch.randn(batch, 3, generator=torch.Generator().manual_seed(0)).double())


class SharedNorm(nn.Module):
    """One batch norm after a linear layer with a bias, after one without, and after a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 3)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.norm(self.second(x)))
        return self.last(self.norm(x.tanh()))  # type: ignore[no-any-return]  # nn.Module's call is untyped


@pytest.mark.parametrize("kind", [Branches, Twice, SharedNorm])
def test_functions_and_values_and_layers_that_are_used_twice(kind: type[nn.Module]) -> None:
    modules = seeded(kind)
    assert_fused_is_separate(modules, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double())


@pytest.mark.parametrize("compiled", [True, False])
def test_a_member_that_diverged_does_not_reach_the_others(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(linear_chain, "passes_for", lambda x: None)
    modules = seeded(Branches)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()
    expected, _ = results(modules, x)
    with torch.no_grad():
        next(modules[1].parameters()).fill_(torch.nan)
    network, _ = results(modules, x)
    assert network.blocks.slots["second.weight"].grad[1].isnan().all()
    for name, slot in network.blocks.slots.items():
        assert_same(slot.grad[[0, 2]], expected.blocks.slots[name].grad[[0, 2]])
