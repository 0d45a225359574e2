"""Recipes with settings per member: one stack equals plain torch, member by member, with and without pauses."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch_reference import Curve, assert_same_curves, config, curves, made_images, member, plain_curve

from hpo.training.grouping import stack_key
from hpo.training.member_examples import MemberBatch
from hpo.training.networks.builtin import build
from hpo.training.population import train
from hpo.training.stack import Member
from hpo.training.tasks.task import Task
from hpo.training.trainer import Trainer

SPLIT = made_images(train=64)
EPOCHS = 5

SCHEDULES: list[dict[str, Any]] = [
    {"optimizer": {"schedule": "onecycle"}},
    {"optimizer": {"schedule": "onecycle", "pct_start": 0.6, "div_factor": 5.0, "final_div_factor": 10.0}},
    {"lr": 0.5, "optimizer": {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.4}},
    {"lr": 1.0, "optimizer": {"schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.1, "warmup": 0.5}},
    {"optimizer": {"schedule": "cosine", "warmup": 1.0}},
    {},
]
EMA: list[dict[str, Any]] = [
    {"training": {"ema": 0.5}, "batch_norm": True},
    {"training": {"ema": 0.9}, "batch_norm": True},
    {"training": {"ema": 0.99}, "batch_norm": True},
    {"training": {"ema": 0.8}, "batch_norm": True, "optimizer": {"schedule": "plateau", "plateau_patience": 0}},
    {"batch_norm": True},
]
IMAGES: list[dict[str, Any]] = [
    {"training": {"mixup": 0.2, "shift": 1}},
    {"training": {"mixup": 1.0, "shift": 1, "label_smoothing": 0.1}},
    {"training": {"cutout": 3, "shift": 1}},
    {"training": {"cutout": 4, "mixup": 3.0, "shift": 1, "ema": 0.5}},
    {"training": {"shift": 1}},
]
RECIPES = {"schedules": SCHEDULES, "ema": EMA, "mlp images": IMAGES, "cnn images": IMAGES}


def members(recipe: str) -> list[Member]:
    given: dict[str, Any] = {"epochs": EPOCHS, "lr": 0.3, "dropout": 0.1}
    if recipe.startswith("cnn"):
        given |= {"kind": "cnn", "conv": [2, 3], "kernel": 3, "padding": 1, "hidden": [8]}
    return [member(number, config(**{**given, **each})) for number, each in enumerate(RECIPES[recipe])]


def trained(everyone: list[Member], drop: dict[int, set[int]] | None = None) -> tuple[dict[int, Curve], dict[int, str]]:
    """Train members in as many populations as they form; return every member's curve and the failures."""
    found: dict[int, Curve] = {}
    failed: dict[int, str] = {}
    for group in Trainer(SPLIT, "float64", print).groups(everyone):
        of_group = curves(group, SPLIT, drop=drop)
        found, failed = found | of_group[0], failed | of_group[1]
    return found, failed


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stack_equals_plain_torch_member_by_member(recipe: str) -> None:
    everyone = members(recipe)
    ours, failed = trained(everyone)
    assert not failed
    for one in everyone:
        assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-7)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_member_has_the_same_curve_alone_without_the_others_and_with_pauses(recipe: str) -> None:
    everyone = members(recipe)
    whole, _ = trained(everyone)
    without, _ = trained(everyone, drop={1: {0, 3}, 4: {2}})
    paused = with_pauses(everyone)
    for one in everyone:
        number = one.number
        if number % 2:
            assert_same_curves(trained([one])[0][number], whole[number], rtol=1e-9)
        assert_same_curves(without[number], whole[number][: len(without[number])], rtol=1e-9)
        assert_same_curves(paused[number], whole[number], rtol=1e-9)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_changes_the_training(recipe: str) -> None:
    """Otherwise the comparisons would prove nothing."""
    everyone = members(recipe)
    last = everyone[-1].config  # the one without settings
    plain = [
        member(
            one.number,
            last.model_copy(update={"optimizer": last.optimizer.model_copy(update={"lr": one.config.optimizer.lr})}),
        )
        for one in everyone
    ]
    ours, other = (trained(each)[0] for each in (everyone, plain))
    for one in everyone[:-1]:
        assert ours[one.number][-1]["val_loss"] != pytest.approx(other[one.number][-1]["val_loss"], rel=1e-6)


def with_pauses(everyone: list[Member]) -> dict[int, Curve]:
    """Train members, frozen after each epoch and thawed in two stacks."""
    found: dict[int, Curve] = {one.number: [] for one in everyone}
    for _ in range(EPOCHS):
        thawed = []
        halves = (everyone[::2], everyone[1::2])
        for part in (group for half in halves for group in Trainer(SPLIT, "float64", print).groups(half)):
            with closing(train(part, SPLIT, "float64")) as epochs:
                result = next(epochs)
                states = result.freeze([one.number for one in part])
            thawed += [replace(one, state=states[one.number]) for one in part]
            for number, metrics in result.metrics.items():
                found[number].append(metrics)
        everyone = sorted(thawed, key=lambda one: one.number)
    return found


def test_given_validation_losses_replace_a_members_own_in_its_plateaus() -> None:
    """As for `hpo test`, whose training has no validation split."""
    one = members("schedules")[2]
    (worse, _), (alone, _) = (curves([replace(one, val_losses=given)], SPLIT) for given in ((1.0,) * EPOCHS, ()))
    constant = config(epochs=EPOCHS, lr=0.5, dropout=0.1)
    same = curves([member(2, constant)], SPLIT)[0][2]
    assert worse[2][:2] == same[:2] == alone[2][:2]  # a first reduction is after epoch 2
    assert worse[2][2] != same[2]
    falling = curves([replace(one, val_losses=(5.0, 4.0, 3.0, 2.0, 1.0))], SPLIT)[0]
    assert falling[2] == same


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_the_averages_are_the_weights_that_are_evaluated_and_stored(stacked: bool, precision: str) -> None:
    (one, *_) = members("ema")
    with closing(train([one], SPLIT, precision, stacked=stacked)) as epochs:
        results = [next(epochs), next(epochs)]
        weights, state = results[1].states([0])[0], results[1].freeze([0])[0]
    assert state.averages is not None
    dtype = next(iter(state.averages.values())).dtype
    network = build(one.config.network, SPLIT.shape, 10, one.seed).to(dtype)
    network.load_state_dict(weights)
    loss = F.cross_entropy(network.eval()(SPLIT.validation.to(dtype)), SPLIT.validation_targets)
    tolerance = 1e-9 if precision == "float64" else 0.05
    assert loss.item() == pytest.approx(results[1].metrics[0]["val_loss"], rel=tolerance)
    for name, value in weights.items():
        averaged = state.averages.get(name)  # buffers are not averaged
        assert value.equal(state.network[name] if averaged is None else averaged)
        assert value.equal(state.network[name]) == (averaged is None or value.count_nonzero() == 0)


def test_members_with_any_mixup_and_cutout_share_a_stack_and_those_without_another() -> None:
    *others, last = (stack_key(one.config) for one in members("mlp images"))
    assert len(set(others)) == 1
    assert last not in others
    wider = config(hidden=[20], epochs=EPOCHS, training={"mixup": 0.2, "shift": 1})
    assert stack_key(wider) in others


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_mixup_and_cutout_in_other_precisions_and_unstacked(precision: str) -> None:
    """The losses are those of float64 up to the precision."""
    everyone = members("cnn images")[:4]
    exact, _ = curves(everyone, SPLIT)
    found, _ = curves(everyone, SPLIT, precision)
    for number, curve in found.items():
        assert curve[0]["train_loss"] == pytest.approx(exact[number][0]["train_loss"], rel=0.02)
    with closing(train(everyone[3:], SPLIT, precision, stacked=False)) as epochs:
        assert next(epochs).metrics[3]["train_loss"] == pytest.approx(exact[3][0]["train_loss"], rel=0.03)


NETS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, classes, filters=2):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(shape[0], filters, 3), nn.BatchNorm2d(filters)
        self.head = nn.Linear(filters * 36, classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.mean() > -1e9 else 1 - x)
"""


@pytest.mark.parametrize("name", ["Net", "Branching"])
def test_user_defined_networks_with_mixup_and_cutout_equal_plain_torch(name: str, tmp_path: Path) -> None:
    """Stacked, and one at a time where Python code depends on the data."""
    (tmp_path / "nets.py").write_text(NETS)
    everyone = []
    for number, training in enumerate([{"mixup": 0.4}, {"cutout": 3}, {"mixup": 2.0, "cutout": 4, "ema": 0.5}, {}]):
        given = config("module", module=f"nets.py:{name}", args={"filters": 2 + number % 2}, epochs=3)
        settings = config("module", module=f"nets.py:{name}", training={"epochs": 3, **training})
        network = given.network.with_folder(tmp_path)
        everyone.append(member(number, settings.model_copy(update={"network": network})))
    warnings: list[str] = []
    trainer = Trainer(SPLIT, "float64", warnings.append)
    groups = trainer.groups(everyone)
    stacked = name == "Net"
    assert [[one.number for one in group] for group in groups] == (
        [[0, 1, 2], [3]] if stacked else [[0], [1], [2], [3]]
    )
    assert len(warnings) == (not stacked)
    for group in groups:
        ours: dict[int, Curve] = {one.number: [] for one in group}
        for result in trainer.train(group):
            for number, metrics in result.metrics.items():
                ours[number].append(metrics)
        for one in group:
            assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-7)


def test_mixup_of_labels_mixes_their_losses() -> None:
    """Binary cross-entropy is linear in its targets: the loss is that of mixed targets."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (5, 3), generator=generator).double()
    partners = torch.stack([torch.randperm(5, generator=generator) for _ in range(2)])
    shares = torch.tensor([0.3, 0.9], dtype=torch.float64)
    means, sums = MemberBatch(outputs, partners, shares).losses(Task("multilabel", 3, "bce"), outputs, targets, None)
    for number in range(2):
        mixed = shares[number] * targets + (1 - shares[number]) * targets[partners[number]]
        expected = F.binary_cross_entropy_with_logits(outputs[number], mixed)
        torch.testing.assert_close(means[number], expected)
        torch.testing.assert_close(sums[0, number], expected * 5)


def test_mixup_with_class_weights_is_the_weighted_mean_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, labels = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 2])
    partners = torch.stack([torch.randperm(6, generator=generator) for _ in range(2)])
    shares, weights = torch.tensor([0.3, 0.9], dtype=torch.float64), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    task = Task("classification", 3, "cross_entropy", weights)
    means, _ = MemberBatch(outputs, partners, shares).losses(task, outputs, labels, None)
    for number, share in enumerate(shares):
        one, other = (F.cross_entropy(outputs[number], at, weights) for at in (labels, labels[partners[number]]))
        torch.testing.assert_close(means[number], share * one + (1 - share) * other)
