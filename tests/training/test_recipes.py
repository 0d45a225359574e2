"""Recipes with settings per member: one stack equals plain torch, member by member, with and without pauses."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest
import torch.nn.functional as F
from torch_reference import Curve, assert_same_curves, config, curves, made_images, member, plain_curve

from hpo.training.networks.builtin import build
from hpo.training.population import train
from hpo.training.stack import Member

SPLIT = made_images(train=64)
EPOCHS = 6

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
RECIPES = {"schedules": SCHEDULES, "ema": EMA}


def members(recipe: str, network: str = "mlp") -> list[Member]:
    given: dict[str, Any] = {"epochs": EPOCHS, "lr": 0.3, "dropout": 0.1}
    if network == "cnn":
        given |= {"kind": "cnn", "conv": [2, 3], "kernel": 3, "padding": 1, "hidden": [8]}
    return [member(number, config(**{**given, **each})) for number, each in enumerate(RECIPES[recipe])]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_stack_equals_plain_torch_member_by_member(recipe: str) -> None:
    everyone = members(recipe)
    ours, failed = curves(everyone, SPLIT)
    assert not failed
    for one in everyone:
        assert_same_curves(ours[one.number], plain_curve(one, SPLIT), rtol=1e-7)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_member_has_the_same_curve_alone_without_the_others_and_with_pauses(recipe: str) -> None:
    everyone = members(recipe)
    whole, _ = curves(everyone, SPLIT)
    without, _ = curves(everyone, SPLIT, drop={1: {0, 3}, 4: {2}})
    paused = with_pauses(everyone)
    for one in everyone:
        number, alone = one.number, curves([one], SPLIT)[0][one.number]
        assert_same_curves(alone, whole[number], rtol=1e-9)
        assert_same_curves(without[number], whole[number][: len(without[number])], rtol=1e-9)
        assert_same_curves(paused[number], whole[number], rtol=1e-9)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_changes_the_training(recipe: str) -> None:
    """Otherwise the comparisons would prove nothing."""
    everyone = members(recipe)
    norm, lr = everyone[0].config.network.batch_norm, {one.number: one.config.optimizer.lr for one in everyone}
    plain = [member(n, config(epochs=EPOCHS, lr=lr[n], dropout=0.1, batch_norm=norm)) for n in lr]
    ours, other = (curves(each, SPLIT)[0] for each in (everyone, plain))
    for one in everyone[:-1]:  # the last one has no setting
        assert ours[one.number][-1]["val_loss"] != pytest.approx(other[one.number][-1]["val_loss"], rel=1e-6)


def with_pauses(everyone: list[Member]) -> dict[int, Curve]:
    """Train members, frozen after each epoch and thawed in two stacks."""
    found: dict[int, Curve] = {one.number: [] for one in everyone}
    for _ in range(EPOCHS):
        thawed = []
        for part in (everyone[::2], everyone[1::2]):
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
    falling = curves([replace(one, val_losses=(5.0, 4.0, 3.0, 2.0, 1.0, 0.5))], SPLIT)[0]
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
        assert value.equal(state.network[name]) == (averaged is None)
        assert averaged is None or value.equal(averaged)
