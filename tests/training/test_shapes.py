"""Members of several shapes in one stack: each is trained as if it were alone, and divided into few stacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_folds import folded
from torch_reference import Curve, assert_same_curves, config, curves, made_images, member

from hpo.training import population
from hpo.training.grouping import ELEMENTWISE_OPTIMIZERS, stack_key
from hpo.training.networks.builtin import build
from hpo.training.population import EpochResult, train
from hpo.training.shapes.division import divide
from hpo.training.stack import Member, MemberState
from hpo.training.trainer import Trainer

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


def test_networks_of_several_shapes_with_mixup_and_cutout_train_as_alone() -> None:
    given = [{"mixup": 0.3}, {"cutout": 3}, {"cutout": 2, "mixup": 2.0, "label_smoothing": 0.1}]
    mlps = [{"hidden": sizes, "training": each} for sizes, each in zip(([4, 3, 2], [6, 3], [7]), given, strict=True)]
    cnns = [{**CNN, "conv": [n + 1, 2], "hidden": [7 - n], "training": each} for n, each in enumerate(given)]
    for shapes in (mlps, cnns):
        shared = {"dropout": 0.2, "batch_norm": True, "epochs": 2, "lr": 0.02}
        assert_each_trains_as_alone(members_of([{**each, **shared} for each in shapes]), {1: {0}})


def test_networks_trained_by_muon_are_not_padded() -> None:
    keys = [stack_key(config(hidden=[size], optimizer={"kind": kind})) for kind in ("muon", "sgd") for size in (3, 4)]
    assert keys[0] != keys[1] != keys[2] == keys[3]


def test_folds_of_several_shapes() -> None:
    split = folded(SPLIT)
    members = members_of([{**each, "lr": 0.01} for each in SHAPES])
    together, _ = curves(members, split)
    for each in members:
        alone, _ = curves([each], split)
        assert_same_curves(together[each.number], alone[each.number], rtol=1e-9)


CODE = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, shape, classes, filters=3, width=6, rate=0.2):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], filters, 3, padding=1)
        self.norm = nn.BatchNorm2d(filters)
        self.channels, self.drop = nn.Dropout2d(rate), nn.Dropout(rate)
        self.hidden = nn.Linear(filters * 16, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = torch.sigmoid(self.channels(self.norm(self.conv(x))))
        x = self.drop(nn.functional.max_pool2d(x, 2).flatten(1))
        return self.head(self.drop(torch.cos(self.hidden(x)) * self.scale + 1))


class Normed(Net):
    def __init__(self, shape, classes, width=6):
        super().__init__(shape, classes, width=width)
        self.drop = nn.LayerNorm(width)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv(x), 2).flatten(1)
        return self.head(self.drop(self.hidden(x)))


class Split(nn.Module):
    def __init__(self, shape, classes, width=6):
        super().__init__()
        self.left, self.right = nn.Linear(64, width), nn.Linear(64, width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = x.flatten(1)
        return self.head(torch.cat([self.left(x), self.right(x)], 1))


class Grouped(nn.Module):
    def __init__(self, shape, classes, width=6, groups=1):
        super().__init__()
        if width % groups:
            raise ValueError(f"{width} units are not {groups} equal groups\\nChoose another width.")
        self.units, self.head = nn.Linear(64, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.head(self.units(x.flatten(1)).relu())


class Largest(nn.Module):
    def __init__(self, shape, classes, width=6, sign=1):
        super().__init__()
        self.units, self.head = nn.Linear(64, width), nn.Linear(1, classes)
        self.sign = sign

    def forward(self, x):
        return self.head((self.sign * self.units(x.flatten(1))).amax(1, keepdim=True))
"""


def own(folder: Path, name: str, *arguments: dict[str, Any], **more: Any) -> list[Member]:
    (folder / "nets.py").write_text(CODE)
    members = []
    for number, args in enumerate(arguments):
        one = config("module", module=f"nets.py:{name}", args=args, lr=0.02, **more)
        network = one.network.with_folder(folder)
        members.append(member(number, one.model_copy(update={"network": network})))
    return members


def grouped(members: Sequence[Member]) -> tuple[list[list[int]], list[str]]:
    warnings: list[str] = []
    found = Trainer(SPLIT, "float64", warnings.append).groups(members)
    return [[each.number for each in group] for group in found], warnings


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_user_defined_networks_of_several_sizes_train_as_alone(tmp_path: Path, kind: str) -> None:
    sizes = ((3, 2, 0.2), (1, 9, 0.5), (2, 6, 0.0), (3, 2, 0.4))
    arguments = [{"filters": filters, "width": width, "rate": rate} for filters, width, rate in sizes]
    optimizer = {"kind": kind, "weight_decay": 0.01, "clip": 0.5, **({"eps": 1e-2} if kind == "adam" else {})}
    members = own(tmp_path, "Net", *arguments, epochs=2, optimizer=optimizer)
    assert grouped(members) == ([[0, 1, 2, 3]], [])
    assert_each_trains_as_alone(members, {1: {0}})
    muon = own(tmp_path, "Net", *arguments, optimizer={"kind": "muon"})
    assert grouped(muon) == ([[0, 3], [1], [2]], [])  # its updates depend on the shapes of weights
    _, result = run(members, 1)
    state = result.states([1])[1]
    build(members[1].config.network, SPLIT.shape, 10, 0).load_state_dict(state)


def test_user_defined_networks_with_and_without_mixup_are_padded_apart(tmp_path: Path) -> None:
    arguments = [{"width": 3}, {"width": 4}, {"width": 3}]
    plain = own(tmp_path, "Net", *arguments, epochs=2)
    mixed = [
        replace(each, number=each.number + 3) for each in own(tmp_path, "Net", *arguments, training={"mixup": 0.4})
    ]
    assert grouped([*plain, *mixed]) == ([[0, 1, 2], [3, 4, 5]], [])
    assert_each_trains_as_alone(mixed)


def test_user_defined_networks_whose_padding_changes_a_result_train_apart(tmp_path: Path) -> None:
    found, warnings = grouped(own(tmp_path, "Normed", {"width": 4}, {"width": 5}, {"width": 4}))
    assert found == [[0, 2], [1]]
    apart = "networks of different shapes train apart: "
    assert warnings == [
        f"nets.py:Normed: {apart}Normed cannot be stacked: its outputs in a stack differ from those alone"
    ]
    for sign in (1, -1):  # the largest of 40 units is padding only where all are negative
        found, warnings = grouped(own(tmp_path, "Largest", *({"width": width, "sign": sign} for width in (40, 50))))
        assert found == [[0], [1]]
        assert warnings == [
            f"nets.py:Largest: {apart}Largest cannot be stacked: its outputs in a stack differ from those alone"
        ]
    found, warnings = grouped(own(tmp_path, "Split", {"width": 4}, {"width": 5}))
    assert found == [[0], [1]]
    assert len(warnings) == 1


def test_members_whose_largest_arguments_make_no_network_train_one_at_a_time(tmp_path: Path) -> None:
    """The proof compares eight architectures at a time: the last one, and not the first one with three groups."""
    widths = (9, 12, 15, 18, 21, 24, 27, 30, 31)
    arguments = [{"width": 6, "groups": 3}, *({"width": width, "groups": 1} for width in widths)]
    members = own(tmp_path, "Grouped", *arguments, epochs=1)
    warnings: list[str] = []
    trainer = Trainer(SPLIT, "float64", warnings.append)
    assert [len(group) for group in trainer.groups(members)] == [10]
    trained = [set(result.metrics) for result in trainer.train(members)]
    assert trained == [{number} for number in range(10)]
    problem = "the largest arguments of these networks make none: ValueError: 31 units are not 3 equal groups"
    assert warnings == [f"nets.py:Grouped: {problem}; these 10 trials train one at a time"]
