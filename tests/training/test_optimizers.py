"""Every optimizer over 20 steps against torch.optim, each member with settings of its own, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from twins import KINDS, assert_same, seeded, torch_optimizer

from hpo.studyfile import OptimizerSettings
from hpo.training.optimizers import Optimizer
from hpo.training.stacking import StackedNetwork

STEPS = 20
X = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(6) % 3


def network() -> nn.Module:
    """Weights, biases and norm parameters; no bias right before a norm, whose gradient is nothing but rounding."""
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Linear(4, 3))


def own_settings(kind: str, number: int) -> OptimizerSettings:
    """Settings that differ between members in everything that the kind has."""
    used: dict[str, dict[str, float]] = {
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
    rates = {"lr": (0.001, 0.03, 0.1)[number], "weight_decay": (0.0, 0.01, 0.3)[number]}
    return OptimizerSettings.model_validate({"kind": kind, **rates, **used.get(kind, {})})


def assert_same_steps(own: list[OptimizerSettings], leave_after: int | None = None) -> None:
    modules = seeded(network, len(own))
    stacked = StackedNetwork(modules, torch.float64)
    optimizer = Optimizer(stacked.blocks, own)
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
            stacked.keep(stay)
            optimizer.keep(stay)
    for place, (module, _) in enumerate(plain.values()):
        state = stacked.state_dict(place)
        for name, value in module.state_dict().items():
            assert_same(state[name].double(), value.double())


def losses(logits: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(each, LABELS) for each in logits]).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps(kind: str) -> None:
    assert_same_steps([own_settings(kind, number) for number in range(3)])


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_with_torchs_defaults(kind: str) -> None:
    """Where a study file names neither betas nor eps, the optimizer is torch's."""
    assert_same_steps([OptimizerSettings.model_validate({"kind": kind, "lr": lr}) for lr in (0.01, 0.05)])


@pytest.mark.parametrize("kind", KINDS)
def test_moments_and_settings_stay_with_their_member_when_another_leaves(kind: str) -> None:
    assert_same_steps([own_settings(kind, number) for number in range(3)], leave_after=7)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KINDS), st.floats(1e-6, 0.05), st.floats(0, 0.5), st.floats(0.01, 0.99), st.floats(0.5, 0.999))
def test_any_settings(kind: str, lr: float, weight_decay: float, first: float, second: float) -> None:
    # Neither eps nor alpha is tiny here: where a gradient is nearly 0, they would enlarge the rounding of its last bit.
    own = OptimizerSettings.model_construct(
        kind=kind, lr=lr, weight_decay=weight_decay, momentum=first, alpha=second, beta1=first, beta2=second, eps=1e-2
    )
    assert_same_steps([own, own_settings(kind, 1)])


def test_weight_decay_leaves_biases_and_norm_parameters_alone() -> None:
    """With gradients of zero, decay is all that happens."""
    modules = seeded(network, 2)
    stacked = StackedNetwork(modules, torch.float64)
    own = [OptimizerSettings(kind="sgd", lr=0.5, weight_decay=decay) for decay in (0.0, 0.4)]
    Optimizer(stacked.blocks, own).step()
    for number, factor in enumerate((1.0, 0.8)):
        for name, value in modules[number].named_parameters():
            expected = value * factor if value.dim() > 1 else value
            assert_same(stacked.state_dict(number)[name], expected)


def test_bfloat16_keeps_steps_that_are_too_small_for_bfloat16_itself() -> None:
    """Float32 master weights: a hundred steps of 1e-4 at 1.0 move it by 1e-2; bfloat16 alone would stay at 1.0."""
    stacked = StackedNetwork([nn.Sequential(nn.Linear(1, 1, bias=False))], torch.bfloat16)
    block = stacked.blocks.blocks[0]
    block.master.fill_(1.0)
    optimizer = Optimizer(stacked.blocks, [OptimizerSettings(kind="sgd", lr=1e-4)])
    for _ in range(100):
        block.grad.fill_(1.0)
        optimizer.step()
    assert block.master.dtype == torch.float32
    assert block.compute.dtype == torch.bfloat16
    assert block.master.item() == pytest.approx(0.99, abs=1e-5)
    assert block.compute.item() == pytest.approx(0.99, abs=2**-8)
