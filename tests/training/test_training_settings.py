"""Schedules, clipping, label smoothing and augmentation in populations equal plain torch for each member."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_reference import (
    KINDS,
    assert_same,
    assert_same_curves,
    config,
    curves,
    made_images,
    member,
    muon_in_float64,
    plain_curve,
    seeded,
    torch_optimizer,
    torch_schedulers,
)

from hpo.studyfile import OptimizerSettings
from hpo.training.optimizers.optimizer import Optimizer
from hpo.training.stack import Member
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.tasks.task import classification

SPLIT = made_images(train=64)  # 4 steps an epoch
CNN = {"kind": "cnn", "conv": [2, 3], "kernel": 3, "padding": 1, "hidden": [8]}
MLP = {"kind": "mlp"}
RECIPES: list[dict[str, dict[str, Any]]] = [
    {},
    {"optimizer": {"schedule": "cosine"}},
    {"optimizer": {"schedule": "step", "step_every": 2, "step_factor": 0.3, "clip": 0.5}},
    {"optimizer": {"warmup": 1.5}, "training": {"label_smoothing": 0.1}},
    {"optimizer": {"schedule": "cosine", "warmup": 2, "clip": 0.2}, "training": {"label_smoothing": 0.4}},
    {"optimizer": {"schedule": "step", "step_every": 1, "warmup": 0.75, "weight_decay": 0.01}},
]
"""Settings per member: some have all of them, one has none."""


def members(network: dict[str, Any], kind: str = "sgd", **training: Any) -> list[Member]:
    lr = 0.01 if kind in ("adagrad", "rmsprop", "adam", "adamw", "lion", "muon") else 0.3
    return [
        member(
            number,
            config(
                **network,
                epochs=5,
                lr=lr,
                dropout=number / 10,
                optimizer={"kind": kind, **recipe.get("optimizer", {})},
                training={**recipe.get("training", {}), **training},
            ),
        )
        for number, recipe in enumerate(RECIPES)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_each_member_has_the_curve_of_plain_torch(kind: str) -> None:
    everyone = members(MLP, kind)
    # In bfloat16, a batch of products and single ones round differently on processors with its instructions.
    with muon_in_float64():
        ours, failed = curves(everyone, SPLIT)
        assert not failed
        for one in everyone:
            assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-7)


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_training_on_augmented_images_equals_plain_torch(network: dict[str, Any]) -> None:
    everyone = members(network, flip=0.3, shift=1)
    ours, failed = curves(everyone, SPLIT)
    assert not failed
    for one in everyone[::2]:
        assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-7)


def test_settings_stay_with_their_members_when_others_are_dropped() -> None:
    everyone = members(CNN, "momentum", shift=1)
    whole, _ = curves(everyone, SPLIT)
    left, _ = curves(everyone, SPLIT, drop={1: {0, 2}, 3: {4}})
    assert [len(left[number]) for number in range(6)] == [1, 5, 1, 5, 3, 5]
    for number in range(6):
        assert_same_curves(left[number], whole[number][: len(left[number])], rtol=1e-6)
        alone, _ = curves([everyone[number]], SPLIT)
        assert_same_curves(alone[number], whole[number], rtol=1e-6)


def test_every_setting_changes_the_training() -> None:
    """Otherwise the comparisons would prove nothing."""
    plain = curves([member(0, config(epochs=2, lr=0.3))], SPLIT)[0][0][-1]["val_loss"]
    parts: list[tuple[str, dict[str, Any]]] = [
        ("optimizer", {"schedule": "cosine"}),
        ("optimizer", {"schedule": "step", "step_every": 1}),
        ("optimizer", {"warmup": 0.5}),
        ("optimizer", {"clip": 0.5}),
        ("training", {"label_smoothing": 0.1}),
        ("training", {"flip": 0.5}),
        ("training", {"shift": 1}),
    ]
    for section, part in parts:
        settings = config(epochs=2, lr=0.3, **{section: part})
        assert curves([member(0, settings)], SPLIT)[0][0][-1]["val_loss"] != pytest.approx(plain, rel=1e-6), part


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_a_clipped_member_that_diverges_fails_alone(precision: str) -> None:
    """Its norm is infinite, then NaN; the gradients of the other members, clipped or not, do not change."""
    everyone = members(MLP)
    wild = config(epochs=5, lr=1e300 if precision == "float64" else 1e30, optimizer={"clip": 1e6})
    among, failed = curves([*everyone[:3], member(9, wild), *everyone[3:]], SPLIT, precision)
    without, none = curves(everyone, SPLIT, precision)
    assert (failed.keys(), none) == ({9}, {})
    for number in range(6):
        assert_same_curves(among[number], without[number], rtol=1e-6 if precision == "float64" else 0.05)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("compute", [torch.float64, torch.bfloat16])
def test_clipping_and_schedules_in_each_step(kind: str, compute: torch.dtype) -> None:
    """Equal gradients on both sides, in bfloat16 with float32 master weights; clip and schedulers are torch's."""
    own = [
        OptimizerSettings.model_validate({"kind": kind, "lr": 0.1, "weight_decay": 0.1, **recipe.get("optimizer", {})})
        for recipe in RECIPES
    ]
    modules = seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)), len(own))
    if compute == torch.bfloat16:
        modules = [module.float() for module in modules]
    stacked = StackedNetwork(modules, compute)
    optimizer = Optimizer(stacked.blocks, own)
    plain = [torch_optimizer(module, each) for module, each in zip(modules, own, strict=True)]
    epochs, steps = 3, 4
    schedulers = [torch_schedulers(p, each, epochs, steps) for p, each in zip(plain, own, strict=True)]
    generator = torch.Generator().manual_seed(3)
    clipped = 0
    for epoch in range(1, epochs + 1):
        optimizer.begin_epoch(epoch, epochs, steps)
        for _ in range(steps):
            stacked.blocks.begin_step()
            sizes = torch.rand(len(own), generator=generator) / 5
            for slot in stacked.blocks.slots.values():
                size = sizes.view(-1, *[1] * (slot.grad.dim() - 1))
                given = torch.randn(slot.grad.shape, generator=generator) * size
                slot.write(lambda into, given=given: into.copy_(given))
            for number, module in enumerate(modules):
                for name, parameter in module.named_parameters():
                    parameter.grad = stacked.blocks.slots[name].grad[number].to(parameter.dtype, copy=True)
                clip = own[number].clip
                if clip is not None:
                    clipped += nn.utils.clip_grad_norm_(module.parameters(), clip).item() > clip
                plain[number].step()
                for scheduler in schedulers[number][0]:
                    scheduler.step()
            optimizer.step()
        for _, by_epoch in schedulers:
            for scheduler in by_epoch:
                scheduler.step()
    assert 0 < clipped < 2 * epochs * steps, "some gradients are within the clip, others are not"
    for number, module in enumerate(modules):
        state = stacked.state_dict(number)
        for name, value in module.named_parameters():
            # Adam divides by the gradient's size: in float32, twelve steps of 0.1 have a rounding error of about 1e-5.
            assert_same(state[name].double(), value.double(), rtol=1e-9 if compute == torch.float64 else 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_label_smoothing_is_torchs_for_each_member(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (3 * torch.randn(4, 7, 10, generator=generator)).to(dtype).requires_grad_()
    labels = torch.arange(7)
    smoothings = [0.0, 0.1, 0.5, 0.99]
    rows, (_, correct) = classification(10).losses(logits, labels, torch.tensor(smoothings).unsqueeze(1))
    goal, loss = rows.training, rows.plain
    (ours,) = torch.autograd.grad(goal.sum(), logits)
    for number, smoothing in enumerate(smoothings):
        scores = logits[number].detach().to(goal.dtype).requires_grad_()
        expected = F.cross_entropy(scores, labels, reduction="none", label_smoothing=smoothing)
        (gradient,) = torch.autograd.grad(expected.sum(), scores)
        tolerance = {torch.float64: 1e-7, torch.float32: 1e-5, torch.bfloat16: 1e-5}[dtype]  # 0.1 was a float32
        torch.testing.assert_close(goal[number], expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(loss[number], F.cross_entropy(scores, labels, reduction="none"))
        torch.testing.assert_close(
            ours[number].to(gradient.dtype), gradient, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5
        )
        assert correct[number] == (scores.argmax(1) == labels).sum()


def test_these_settings_train_in_bfloat16_as_in_float32() -> None:
    """The mean of the last losses over 12 members agrees within 10%, as without these settings."""
    split = made_images(train=300, validation=200)
    everyone = [
        Member(number + 6 * again, one.config, one.seed + again)
        for again in range(2)
        for number, one in enumerate(members(MLP, batch_size=32))
    ]
    low, _ = curves(everyone, split, "bfloat16")
    full, _ = curves(everyone, split, "float32")
    for metric in ("train_loss", "val_loss"):
        ours, expected = (math.fsum(found[n][-1][metric] for n in range(12)) / 12 for found in (low, full))
        assert ours == pytest.approx(expected, rel=0.1)
        first = math.fsum(full[n][0][metric] for n in range(12)) / 12
        assert expected < 0.9 * first


SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "lr": {"optimizer": {"lr": 0.1}},
    "weight_decay": {"optimizer": {"weight_decay": 0.1}},
    "momentum": {"optimizer": {"kind": "momentum", "momentum": 0.7}},
    "nesterov": {"optimizer": {"kind": "nesterov", "momentum": 0.7}},
    "alpha": {"optimizer": {"kind": "rmsprop", "alpha": 0.7, "eps": 0.1}},
    "eps": {"optimizer": {"kind": "adagrad", "eps": 0.1}},
    "betas": {"optimizer": {"kind": "adam", "beta1": 0.7, "beta2": 0.9, "eps": 0.1}},
    "decoupled decay": {"optimizer": {"kind": "adamw", "weight_decay": 0.1, "eps": 0.1}},
    "step_factor": {"optimizer": {"schedule": "step", "step_every": 1, "step_factor": 0.7}},
    "warmup": {"optimizer": {"warmup": 0.75}},
    "cosine": {"optimizer": {"schedule": "cosine"}},
    "clip": {"optimizer": {"clip": 0.3}},
    "label_smoothing": {"training": {"label_smoothing": 0.1}},
    "flip and shift": {"training": {"flip": 0.3, "shift": 1}},
    "dropout": {"network": {"dropout": 0.3}},
    "init": {"network": {"init": 0.1}},
}
"""Settings with values that float32 cannot represent."""


@pytest.mark.parametrize("name", SETTINGS)
def test_no_setting_is_rounded_to_float32(name: str) -> None:
    """Rounding a setting to float32 would change the curve by 1e-10 or more; another order of sums, by 1e-15."""
    given = SETTINGS[name]
    own = config(epochs=2, lr=0.3, **given.get("network", {}), **{k: v for k, v in given.items() if k != "network"})
    everyone = [member(0, own), member(1, own)]
    ours, _ = curves(everyone, SPLIT)
    for one in everyone:
        assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-12)
