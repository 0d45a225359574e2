"""Every optimizer equals torch.optim, or its paper, over 20 steps, with different settings per member, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_reference import KINDS, assert_same, muon_in_float64, seeded, torch_optimizer

from hpo.studyfile import OptimizerSettings
from hpo.training.compiled.passes import passes_for
from hpo.training.optimizers import optimizer
from hpo.training.optimizers.muon import hidden_matrices
from hpo.training.optimizers.optimizer import Optimizer
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.unstacked_network import UnstackedNetwork

STEPS = 20
X = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(6) % 3


@pytest.fixture(autouse=True)
def _exact_muon() -> Iterator[None]:
    with muon_in_float64():
        yield


def network() -> nn.Module:
    """Return a network with weights, biases and norm parameters, without a bias before a norm: its gradient is 0."""
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 3))


def own_settings(kind: str, number: int) -> OptimizerSettings:
    """Return settings that differ between members in all hyperparameters of the kind."""
    used: dict[str, dict[str, Any]] = {
        "momentum": {"momentum": (0.1, 0.5, 0.95)[number]},
        "rmsprop": {"alpha": (0.0, 0.9, 0.99)[number], "eps": (1e-8, 1e-3, 1e-1)[number]},
        "adam": {
            "beta1": (0.0, 0.8, 0.9)[number],
            "beta2": (0.0, 0.95, 0.999)[number],
            "eps": (1e-3, 1e-8, 0.1)[number],
        },
        "adagrad": {"eps": (1e-10, 1e-3, 1.0)[number]},
    }
    used["nesterov"], used["adamw"] = used["momentum"], used["adam"]
    used["muon"] = {
        **used["adam"],
        **used["momentum"],
        "adamw_lr": (0.002, 0.01, 0.3)[number],
        "adjust_lr": ("match_rms_adamw", "original", "match_rms_adamw")[number],
    }
    used["lion"] = {key: used["adam"][key] for key in ("beta1", "beta2")}
    rates = {"lr": (0.001, 0.03, 0.1)[number], "weight_decay": (0.0, 0.01, 0.3)[number]}
    return OptimizerSettings.model_validate({"kind": kind, **rates, **used.get(kind, {})})


def assert_same_steps(own: list[OptimizerSettings], leave_after: int | None = None) -> None:
    modules = seeded(network, len(own))
    stacked = StackedNetwork(modules, torch.float64)
    optimizer = Optimizer(stacked.blocks, own, hidden=hidden_matrices(modules[0], 3))
    plain = {number: (module, torch_optimizer(module, own[number])) for number, module in enumerate(modules)}
    for step in range(STEPS):
        stacked.blocks.begin_step()
        losses(stacked(X[step], training=True)).backward()
        optimizer.step()
        for module, each in plain.values():
            each.zero_grad()
            F.cross_entropy(module(X[step]), LABELS).backward()
            each.step()
        if step == leave_after:
            del plain[0]
            stay = torch.tensor(list(range(1, len(own))))
            stacked.select(stay)
            optimizer.select(stay)
    for place, (module, _) in enumerate(plain.values()):
        state = stacked.state_dict(place)
        for name, value in module.state_dict().items():
            assert_same(state[name].double(), value.double())


def write_gradients(network: StackedNetwork, value: float) -> None:
    network.blocks.begin_step()
    for slot in network.blocks.slots.values():
        slot.write(lambda into: into.fill_(value))


def losses(logits: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(each, LABELS) for each in logits]).sum()


@pytest.fixture(params=["rule", "compiled"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Update all parameters by the rule of the kind, or by the compiled pass where there is one."""
    if request.param == "compiled":
        assert passes_for(X) is not None
    else:
        monkeypatch.setattr(optimizer, "compiled_update", lambda *arguments: False)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps(kind: str) -> None:
    assert_same_steps([own_settings(kind, number) for number in range(3)])


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_with_torchs_defaults(kind: str) -> None:
    """Without betas and eps in the study file, the defaults are those of torch."""
    assert_same_steps([OptimizerSettings.model_validate({"kind": kind, "lr": lr}) for lr in (0.01, 0.05)])


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("kind", KINDS)
def test_state_and_settings_stay_with_their_member_when_another_is_removed(kind: str) -> None:
    assert_same_steps([own_settings(kind, number) for number in range(3)], leave_after=7)


@settings(max_examples=15)
@given(st.sampled_from(KINDS), st.floats(1e-6, 0.05), st.floats(0, 0.5), st.floats(0.01, 0.99), st.floats(0.5, 0.999))
def test_any_settings(kind: str, lr: float, weight_decay: float, first: float, second: float) -> None:
    # Tiny values of eps and alpha would amplify the rounding errors of gradients near 0.
    own = OptimizerSettings.model_construct(
        kind=kind, lr=lr, weight_decay=weight_decay, momentum=first, alpha=second, beta1=first, beta2=second, eps=1e-2
    )
    assert_same_steps([own, own_settings(kind, 1)])


def test_weight_decay_does_not_change_biases_and_norm_parameters() -> None:
    """With gradients of zero, only weight decay changes parameters."""
    modules = seeded(network, 2)
    stacked = StackedNetwork(modules, torch.float64)
    own = [OptimizerSettings(kind="sgd", lr=0.5, weight_decay=decay) for decay in (0.0, 0.4)]
    optimizer = Optimizer(stacked.blocks, own, hidden=hidden_matrices(modules[0], 3))
    write_gradients(stacked, 0.0)
    optimizer.step()
    for number, factor in enumerate((1.0, 0.8)):
        for name, value in modules[number].named_parameters():
            expected = value * factor if value.dim() > 1 else value
            assert_same(stacked.state_dict(number)[name], expected)


class Skipping(nn.Module):
    """A network that skips layers in turn, as stochastic depth does; one layer never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.extra, self.tied, self.never = nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.tied.weight = self.extra.weight
        self.early = nn.Linear(4, 3)
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        h = torch.tanh(self.first(x))
        if self.steps % 2:
            h = self.norm(h)
        if self.steps % 3 == 0:
            h = h + torch.tanh(self.extra(h))
        if self.steps % 5 == 0:
            return self.early(h)
        return self.last(self.tied(h) if self.steps % 4 == 0 else h)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_without_a_gradient_is_not_updated(kind: str, clip: float | None) -> None:
    """Its value, state, step count and the norm for clipping ignore it, as in torch where the gradient is None."""
    own = own_settings(kind, 1).model_copy(update={"weight_decay": 0.1, "clip": clip})
    (module,) = seeded(Skipping, 1)
    plain = copy.deepcopy(module)
    network, theirs = UnstackedNetwork(module, torch.float64), torch_optimizer(plain, own)
    ours = Optimizer(network.blocks, [own], hidden=hidden_matrices(module, 3))
    for step in range(STEPS):
        network.blocks.begin_step()
        losses(network(X[step], training=True)).backward()
        ours.step()
        theirs.zero_grad()
        F.cross_entropy(plain(X[step]), LABELS).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        theirs.step()
        state = network.state_dict(0)
        for name, value in plain.state_dict().items():
            assert_same(state[name].double(), value.double())


class Aside(nn.Module):
    """A network with a layer that never runs, one whose result is unused, and one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.never, self.unused, self.detached = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        self.unused(h)
        return self.last(h + self.detached(h).detach())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compute", [torch.float64, torch.bfloat16])
def test_parameters_of_a_stack_without_a_gradient_are_not_updated(kind: str, compute: torch.dtype) -> None:
    own = [own_settings(kind, number).model_copy(update={"weight_decay": 0.1, "clip": 0.5}) for number in range(2)]
    modules = seeded(Aside, 2)
    plain = [copy.deepcopy(module) for module in modules]
    stacked = StackedNetwork(modules, compute)
    optimizer = Optimizer(stacked.blocks, own, hidden=hidden_matrices(modules[0], 3))
    optimizers = [torch_optimizer(module, each) for module, each in zip(plain, own, strict=True)]
    for step in range(5):
        stacked.blocks.begin_step()
        losses(stacked(X[step].to(compute), training=True)).backward()
        optimizer.step()
        for module, each in zip(plain, optimizers, strict=True):
            each.zero_grad()
            F.cross_entropy(module(X[step]), LABELS).backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            each.step()
    for number, module in enumerate(plain):
        for name, value in module.named_parameters():
            if name.startswith(("never", "unused", "detached")) or compute == torch.float64:
                rounded = value if compute == torch.float64 else value.float()
                assert_same(stacked.state_dict(number)[name].double(), rounded.double())


def test_bfloat16_training_keeps_steps_below_the_precision_of_bfloat16() -> None:
    """With float32 master weights, 100 steps of 1e-4 change 1.0 by 1e-2; in bfloat16 alone it would stay 1.0."""
    stacked = StackedNetwork([nn.Sequential(nn.Linear(1, 1, bias=False))], torch.bfloat16)
    block = stacked.blocks.blocks[0]
    block.master.fill_(1.0)
    optimizer = Optimizer(stacked.blocks, [OptimizerSettings(kind="sgd", lr=1e-4)])
    for _ in range(100):
        write_gradients(stacked, 1.0)
        optimizer.step()
    assert block.master.dtype == torch.float32
    assert block.compute.dtype == torch.bfloat16
    assert block.master.item() == pytest.approx(0.99, abs=1e-5)
    assert block.compute.item() == pytest.approx(0.99, abs=2**-8)
