"""Divide members of several shapes into stacks: together where padding costs less than a further stack, else apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpo.training.shapes.template import NetworkShape

STEP_US = 300.0
"""Microseconds of a stack's step that do not depend on its members: Python, autograd, loss and optimizer."""

LAYER_US = 100.0
"""Microseconds of a layer with its activation, batch norm and dropout that do not depend on its members."""

US_PER_PRODUCT = 6 / 60e3
"""Microseconds of a multiplication and addition of the forward pass, with those of the backward pass."""

US_PER_PARAMETER = 2.5e-3
"""Microseconds of updating a parameter."""

US_PER_UNIT = 8e-3
"""Microseconds of an output of a layer: batch norm, activation and dropout, forward and backward."""

Weights = Mapping[str, tuple[Sequence[int], int]]
"""Weight of a network -> its shape and the number of positions that it is applied at."""


@dataclass(frozen=True)
class _Cluster:
    """Members of one stack, the first ones with the most layers; `counts` has the members that have each weight."""

    members: list[int]
    weights: Weights
    counts: Mapping[str, int]

    def merged(self, other: _Cluster) -> _Cluster:
        names = {**self.weights, **other.weights}
        weights = {name: _larger(self.weights.get(name), other.weights.get(name)) for name in names}
        counts = {name: self.counts.get(name, 0) + other.counts.get(name, 0) for name in names}
        return _Cluster([*self.members, *other.members], weights, counts)

    def step_us(self, batch_size: int) -> float:
        """Return the estimated duration of a step on one core, in microseconds."""
        total = STEP_US
        for name, (shape, positions) in self.weights.items():
            parameters, outputs = math.prod(shape), shape[0] * positions * batch_size
            of_member = US_PER_PRODUCT * parameters * positions * batch_size
            of_member += US_PER_PARAMETER * parameters + US_PER_UNIT * outputs
            total += LAYER_US + self.counts[name] * of_member
        return total


def _larger(
    one: tuple[Sequence[int], int] | None, other: tuple[Sequence[int], int] | None
) -> tuple[Sequence[int], int]:
    if one is None or other is None:
        found = one or other
        assert found is not None, "one of the networks has the weight"
        return found
    return tuple(map(max, one[0], other[0])), max(one[1], other[1])


def divide(
    keys: Sequence[str], shapes: Sequence[NetworkShape], batch_sizes: Sequence[int], cores: int
) -> list[list[int]]:
    """Return the members of each stack, as indices; there is at least one stack a core.

    `keys` are equal for members that can share a stack; these have the same batch size.
    """
    stacks = []
    for key in dict.fromkeys(keys):
        members = [index for index, each in enumerate(keys) if each == key]
        for us, stack in _merged([shapes[index] for index in members], batch_sizes[members[0]]):
            stacks.append((us / batch_sizes[members[0]], [members[index] for index in stack]))
    return _balanced(stacks, cores)


def _merged(shapes: Sequence[NetworkShape], batch_size: int) -> list[tuple[float, list[int]]]:
    """Return the stacks of members that can share one: estimated microseconds of a step, and the members' indices.

    At first each shape is a stack. The two stacks that save most as one stack are merged, until no merger saves time.
    Members are ordered by depth and size, so that the first ones have all layers.
    """
    by_shape: dict[tuple[object, ...], list[int]] = {}
    for index, shape in enumerate(shapes):
        by_shape.setdefault(tuple(shape.tensors.items()), []).append(index)
    clusters = [_cluster(shapes, members) for members in by_shape.values()]
    costs = {id(each): each.step_us(batch_size) for each in clusters}

    def saving(one: _Cluster, other: _Cluster) -> tuple[float, _Cluster]:
        merged = one.merged(other)
        return costs[id(one)] + costs[id(other)] - merged.step_us(batch_size), merged

    pairs = {(id(a), id(b)): (a, b, *saving(a, b)) for i, a in enumerate(clusters) for b in clusters[:i]}
    while pairs and (best := max(pairs.values(), key=lambda pair: pair[2]))[2] > 0:
        one, other, _, merged = best
        clusters = [each for each in clusters if each is not one and each is not other]
        pairs = {key: pair for key, pair in pairs.items() if not {id(one), id(other)} & set(key)}
        costs[id(merged)] = merged.step_us(batch_size)
        pairs |= {(id(merged), id(each)): (merged, each, *saving(merged, each)) for each in clusters}
        clusters.append(merged)
    return [(costs[id(each)], _sorted(shapes, each.members)) for each in clusters]


def _cluster(shapes: Sequence[NetworkShape], members: list[int]) -> _Cluster:
    weights = shapes[members[0]].weights
    return _Cluster(members, weights, dict.fromkeys(weights, len(members)))


def _sorted(shapes: Sequence[NetworkShape], members: Sequence[int]) -> list[int]:
    """Return members by depth and size, the largest first; equal shapes keep their order."""

    def size(index: int) -> tuple[int, int]:
        weights = shapes[index].weights.values()
        return -len(weights), -sum(math.prod(shape) * positions for shape, positions in weights)

    return sorted(members, key=lambda index: (*size(index), str(shapes[index].tensors)))


def _balanced(stacks: list[tuple[float, list[int]]], cores: int) -> list[list[int]]:
    """Return the stacks, cut in halves where a core would wait for the others, with the most expensive ones first."""
    found = sorted(stacks, key=lambda stack: -stack[0])
    while len(found[0][1]) > 1 and (
        len(found) < cores or (cores > 1 and found[0][0] > 1.25 * sum(us for us, _ in found) / cores)
    ):
        us, members = found.pop(0)
        middle = len(members) // 2
        found += [(us / 2, members[:middle]), (us / 2, members[middle:])]
        found.sort(key=lambda stack: -stack[0])
    return [members for _, members in found]
