"""Members of several shapes in one stack: each is trained as if it were alone, and divided into few stacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from test_folds import folded
from torch_reference import Curve, assert_same_curves, config, curves, made_images, member

from hpo.training import population
from hpo.training.grouping import ELEMENTWISE_OPTIMIZERS, stack_key
from hpo.training.networks.builtin import build
from hpo.training.population import EpochResult, train
from hpo.training.shapes.division import divide
from hpo.training.stack import Member, MemberState

SPLIT = made_images(train=40, validation=20)
CNN = {"kind": "cnn", "kernel": 3, "padding": 1}


def in_one_stack(keys: Sequence[str], shapes: Any, batch_sizes: Sequence[int], cores: int) -> list[list[int]]:
    """Divide members as `divide` does, but whatever padding costs."""
    from hpo.training.shapes import division

    with patch.multiple(division, STEP_US=1e12, LAYER_US=0.0):
        return divide(keys, shapes, batch_sizes, 1)


@pytest.fixture(autouse=True)
def _padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "divide", in_one_stack)


def members_of(configs: Sequence[dict[str, Any]]) -> list[Member]:
    return [member(number, config(**each)) for number, each in enumerate(configs)]


def assert_each_trains_as_alone(members: Sequence[Member], drop: dict[int, set[int]] | None = None) -> None:
    assert len({stack_key(each.config) for each in members}) == 1
    together, failed = curves(members, SPLIT, drop=drop)
    assert not failed
    for each in members:
        alone, _ = curves([each], SPLIT)
        found = together[each.number]
        assert_same_curves(found, alone[each.number][: len(found)], rtol=1e-9)


widths = st.integers(1, 9)
rates = st.sampled_from([0.0, 0.3, 0.7])
activations = st.sampled_from(["relu", "sigmoid", "tanh", "leaky_relu", "gelu", "elu", "silu"])


@st.composite
def optimizers(draw: st.DrawFn) -> dict[str, Any]:
    """A large eps, because Adam would amplify the rounding errors of the gradient of a bias before batch norm."""
    kind = draw(st.sampled_from(ELEMENTWISE_OPTIMIZERS))
    return {
        "kind": kind,
        "weight_decay": draw(st.sampled_from([0.0, 0.01])),
        "clip": draw(st.sampled_from([None, 0.5])),
        **({"eps": 1e-2} if kind.startswith(("ada", "rms")) else {}),
    }


@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data(), kind=st.sampled_from(ELEMENTWISE_OPTIMIZERS), activation=activations, batch_norm=st.booleans())
def test_mlps_of_random_widths_and_depths(data: st.DataObject, kind: str, activation: str, batch_norm: bool) -> None:
    assume(not (batch_norm and kind == "lion"))  # the sign of a rounding error

    def drawn() -> dict[str, Any]:
        return {
            "hidden": data.draw(st.lists(widths, min_size=1, max_size=3)),
            "dropout": data.draw(rates),
            "optimizer": {**data.draw(optimizers()), "kind": kind, "eps": 1e-2},
        }

    shared = {"activation": activation, "batch_norm": batch_norm, "epochs": 2, "lr": 0.02}
    members = members_of([{**drawn(), **shared} for _ in range(data.draw(st.integers(2, 4)))])
    assert_each_trains_as_alone(members, {1: set(data.draw(st.sets(st.integers(0, 3), max_size=1)))})


@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data(), activation=activations, batch_norm=st.booleans())
def test_cnns_of_random_widths(data: st.DataObject, activation: str, batch_norm: bool) -> None:
    convolutions, hidden = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 1))

    def drawn() -> dict[str, Any]:
        return {
            "conv": data.draw(st.lists(st.integers(1, 4), min_size=convolutions, max_size=convolutions)),
            "hidden": data.draw(st.lists(widths, min_size=hidden, max_size=hidden)),
            "dropout": data.draw(rates),
        }

    shared = {"activation": activation, "batch_norm": batch_norm, "epochs": 2, "lr": 0.02, **CNN}
    assert_each_trains_as_alone(members_of([{**drawn(), **shared} for _ in range(3)]))


SHAPES = [
    {"hidden": [12, 3], "dropout": 0.3, "optimizer": {"kind": "adam", "weight_decay": 0.01}, "training": {"ema": 0.9}},
    {"hidden": [5, 9], "dropout": 0.2, "optimizer": {"kind": "adam"}},
    {"hidden": [7], "dropout": 0.5, "optimizer": {"kind": "adam"}, "training": {"ema": 0.5}},
]


def run(members: Sequence[Member], until: int, drop: int | None = None) -> tuple[dict[int, Curve], EpochResult]:
    """Train up to an epoch; return the curves and the last result, whose states can still be read."""
    found: dict[int, Curve] = {each.number: [] for each in members}
    epochs = train(members, SPLIT, "float64")
    result = next(epochs)
    while True:
        for number, metrics in result.metrics.items():
            found[number].append(metrics)
        if result.epoch == until:
            run.epochs = epochs  # type: ignore[attr-defined]  # the generator must not end before states are read
            return found, result
        result = epochs.send(set() if drop is None else {drop})


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_states_are_unpadded_and_equal_those_of_members_alone(activation: str) -> None:
    members = members_of([{**each, "activation": activation, "lr": 0.01} for each in SHAPES])
    _, together = run(members, 2)
    frozen, weights = together.freeze([0, 1, 2]), together.states([0, 1, 2])
    for each in members:
        _, alone = run([each], 2)
        expected = alone.freeze([each.number])[each.number]
        found = frozen[each.number]
        network = build(each.config.network, SPLIT.shape, 10, 0)
        network.load_state_dict(weights[each.number])
        assert found.optimizer.steps == expected.optimizer.steps
        pairs = [
            (found.network, expected.network),
            *zip(found.optimizer.states, expected.optimizer.states, strict=True),
        ]
        for ours, plain in pairs:
            assert ours.keys() == plain.keys()
            for name, value in plain.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("drop", [None, 0, 2])
def test_frozen_members_continue_in_another_stack_of_shapes(drop: int | None) -> None:
    members = members_of([{**each, "lr": 0.01, "epochs": 4} for each in SHAPES])
    whole, _ = curves(members, SPLIT)
    _, result = run(members, 2, drop)
    left = [each for each in members if each.number != drop]
    states: dict[int, MemberState] = result.freeze([each.number for each in left])
    thawed = [Member(each.number, each.config, each.seed, states[each.number]) for each in left[::-1]]
    continued, _ = curves(thawed, SPLIT)
    for each in left:
        assert_same_curves(continued[each.number], whole[each.number][2:], rtol=1e-9)


def test_a_padded_member_that_diverges_fails_alone() -> None:
    members = members_of([{**each, "lr": 1e300 if number == 1 else 0.01} for number, each in enumerate(SHAPES)])
    together, failed = curves(members, SPLIT)
    assert failed.keys() == {1}
    for number in (0, 2):
        alone, _ = curves([members[number]], SPLIT)
        assert_same_curves(together[number], alone[number], rtol=1e-9)


def test_folds_of_several_shapes() -> None:
    split = folded(SPLIT)
    members = members_of([{**each, "lr": 0.01} for each in SHAPES])
    together, _ = curves(members, split)
    for each in members:
        alone, _ = curves([each], split)
        assert_same_curves(together[each.number], alone[each.number], rtol=1e-9)
