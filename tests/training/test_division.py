"""The division of members of several shapes into stacks: nearly as good as with all mergers, and fast for many."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from torch_reference import config

from hpo.training.shapes import division
from hpo.training.shapes.template import NetworkShape


def random_shapes(seed: int, count: int, widths: Sequence[int]) -> list[NetworkShape]:
    """Return shapes of random MLPs with one to three hidden layers, for 64 features."""
    rng = random.Random(seed)
    return [_mlp_shape([rng.choice(widths) for _ in range(rng.randint(1, 3))]) for _ in range(count)]


def _mlp_shape(hidden: list[int]) -> NetworkShape:
    """Return what `network_shape` returns, without building the network."""
    sides = list(itertools.pairwise([64, *hidden, 10]))
    names = [f"layers.{1 + 3 * layer}.weight" for layer in range(len(sides))]
    tensors = {name: torch.Size((units, features)) for name, (features, units) in zip(names, sides, strict=True)}
    settings = config(hidden=hidden).network
    return NetworkShape(settings, (), tensors, dict.fromkeys(names, 1), tuple((units,) for units in hidden))


@pytest.mark.parametrize("widths", [range(8, 257), (32, 64, 128, 256), (8, 512)], ids=["any", "choices", "extremes"])
def test_the_estimated_step_is_nearly_that_of_mergers_of_all_pairs(
    widths: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    populations = [random_shapes(seed, 32, widths) for seed in range(8)]
    found = [division._merged(shapes, 32) for shapes in populations]
    monkeypatch.setattr(division, "NEAR", 32)
    best = [division._merged(shapes, 32) for shapes in populations]
    for one, other in zip(found, best, strict=True):
        assert sorted(index for _, members in one for index in members) == list(range(32))
        assert sum(us for us, _ in one) <= 1.04 * sum(us for us, _ in other)


def test_many_shapes_are_not_compared_in_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    merged = division._Cluster.merged
    monkeypatch.setattr(division._Cluster, "merged", lambda one, other: compared.append(1) or merged(one, other))
    shapes = random_shapes(0, 300, range(8, 257))
    assert len(division._merged(shapes, 32)) < 20
    assert len(compared) < 300 * 300 / 5
