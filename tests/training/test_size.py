"""Sizes of networks equal torch's counts; sizes of members and populations follow their rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch_reference import KINDS, config

from hpo.errors import HpoError
from hpo.training.networks.builtin import build
from hpo.training.size import (
    MAX_AUTO_POPULATION,
    MEMORY_FRACTION,
    count_parameters,
    device_memory,
    measure_network,
    member_size,
    network_size,
    population_size,
)
from hpo.training.state_layout import state_layout

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"batch_norm": True, "dropout": 0.5},
        {"hidden": []},
        {"kind": "cnn", "conv": [3, 4], "kernel": 2, "batch_norm": True},
        {"kind": "cnn", "conv": [3], "kernel": 2, "padding": 2, "pool": 1, "hidden": [], "dropout": 0.5},
    ],
)
def test_the_computed_size_of_a_network_equals_the_measured_one(more: dict[str, Any]) -> None:
    settings = config(**more).network
    extent = network_size(settings, (2, 8, 9), 10)
    assert extent == measure_network(build(settings, (2, 8, 9), 10, seed=4), (2, 8, 9))
    assert count_parameters(settings, (2, 8, 9), 10) == extent.parameters


def test_the_classic_cifar_network() -> None:
    settings = config("cnn", conv=[6, 16], kernel=5, hidden=[120, 84], dropout=0.5)
    assert member_size(settings, (3, 32, 32), 10, "float32").parameters == 62006


def test_the_size_of_a_small_network() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 5))
    extent = measure_network(network, (1, 8, 8))
    assert extent.parameters == 2 * 9 + 2 + 72 * 5 + 5
    assert extent.activations == 72 + 72 + 72 + 5
    assert extent.products == 72 * 9 + 5 * 72
    assert network.training
    assert not network[0]._forward_hooks


def test_member_size_grows_with_optimizer_state_types_and_batches() -> None:
    def size(precision: str = "float32", kind: str = "sgd", **more: Any) -> int:
        return member_size(config(optimizer={"kind": kind}, **more), (1, 8, 8), 10, precision).member_bytes

    assert size() < size(kind="momentum") < size(kind="adam")
    assert size("float32") < size("float64")
    assert size("bfloat16", batch_size=1000) < size("float32", batch_size=1000)
    assert size() < size(batch_size=64) < size(batch_size=64, hidden=[100, 100])
    assert all(size(kind=kind) >= size() for kind in KINDS)


@pytest.mark.parametrize("keep", ["none", "best"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_a_frozen_member_is_that_of_its_tensors(kind: str, precision: str, keep: str) -> None:
    settings = config(optimizer={"kind": kind}, training={"keep": keep})
    layout = state_layout(settings, (1, 8, 8), 10, precision)
    parts = [layout.fixed, *layout.moments * [layout.trained], *[layout.fixed] * (keep == "best")]
    tensors = sum(math.prod(shape) * dtype.itemsize for part in parts for shape, dtype in part.values())
    assert member_size(settings, (1, 8, 8), 10, precision).frozen_bytes == tensors


def test_a_configured_population_size_is_used() -> None:
    assert population_size(7, 3, 10**15, CPU) == 7
    assert population_size(500, 1000, 1, CPU) == 500


@pytest.mark.parametrize(
    ("trials", "members"), [(1, 1), (2, 1), (4, 1), (5, 2), (64, 16), (100, 25), (10_000, MAX_AUTO_POPULATION["cpu"])]
)
def test_auto_means_at_least_four_populations(trials: int, members: int) -> None:
    assert population_size("auto", trials, 1, CPU) == members


@pytest.mark.parametrize(("trials", "members"), [(1, 1), (5, 5), (32, 32), (100, 64)])
def test_auto_fills_the_cores_where_trials_are_independent(trials: int, members: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "get_num_threads", lambda: 4)
        assert population_size("auto", trials, 1, CPU, independent=True) == members


def test_the_size_of_any_built_in_network_is_computed_without_building_it() -> None:
    settings = config(hidden=[10**6, 10**6])
    weights = 64 * 10**6 + 10**12 + 10**7
    size = member_size(settings, (1, 8, 8), 10, "float32")
    assert size.parameters == weights + 2 * 10**6 + 10
    assert size.member_bytes > size.least_bytes >= 8 * size.parameters


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"hidden": [2**40]},
            "^network.hidden: makes a layer of at least 2.46 weights, too many for any machine$",
        ),
        ({"kind": "cnn", "kernel": 10**9}, "^network.conv: no pixel is left of a 8x8 image"),
        ({"kind": "cnn", "conv": [2**63 - 1], "kernel": 1}, "^network.conv: makes a layer of at least 2.6. weights"),
        ({"kind": "cnn", "kernel": 1, "padding": 2**63 - 1}, "^network.conv: makes a layer of at least 2.13. outputs"),
    ],
)
def test_a_network_too_large_for_any_machine(more: dict[str, Any], message: str) -> None:
    with pytest.raises(HpoError, match=message):
        member_size(config(**more), (1, 8, 8), 10, "float32")


def test_auto_fits_into_memory() -> None:
    planned = device_memory(CPU) * MEMORY_FRACTION
    assert population_size("auto", 1000, int(planned / 5), CPU) == 5
    assert population_size("auto", 1000, int(planned * 5), CPU) == 1
