"""Divide members of several shapes into stacks: together where padding costs less than a further stack, else apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from hpo.training.shapes.template import NetworkShape

STEP_US = 30.0
"""Microseconds of a stack's step that do not depend on its members: Python, autograd, loss and optimizer.

This and the other constants are fitted by `python benchmarks/shapes.py --cost` on one thread of a 2-core AMD EPYC,
with an error of 15% on average (docs/explanation/log.md). Another machine has other constants, but their ratios decide.
"""

LAYER_US = 900.0
"""Microseconds of a layer with its activation, batch norm and dropout that do not depend on its members."""

US_PER_PRODUCT = 9.2e-5
"""Microseconds of a multiplication and addition of the forward pass, with those of the backward pass."""

US_PER_PARAMETER = 8e-3
"""Microseconds of updating a parameter."""

US_PER_OUTPUT = 1.6e-2
"""Microseconds of an output of a layer: batch norm, activation and dropout, forward and backward."""

NEAR = 8
"""Places between two stacks, in order of depth and size, that are merged first: to compare all pairs takes minutes."""

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

    def work(self, batch_size: int) -> tuple[float, float, float, float, float]:
        """Return the work of a step: steps, layers, products, parameters and outputs of layers, all in all."""
        products = parameters = outputs = 0
        for name, (shape, positions) in self.weights.items():
            count, elements = self.counts[name], math.prod(shape)
            products += count * elements * positions * batch_size
            parameters += count * elements
            outputs += count * shape[0] * positions * batch_size
        return 1, len(self.weights), products, parameters, outputs

    def step_us(self, batch_size: int) -> float:
        """Return the estimated duration of a step on one core, in microseconds."""
        costs = (STEP_US, LAYER_US, US_PER_PRODUCT, US_PER_PARAMETER, US_PER_OUTPUT)
        return sum(cost * work for cost, work in zip(costs, self.work(batch_size), strict=True))


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

    At first each shape is a stack, in order of depth and size. Those that are near each other in this order are merged
    first, then any. The first members of a stack have all layers.
    """
    by_shape: dict[tuple[object, ...], list[int]] = {}
    for index in _sorted(shapes, range(len(shapes))):
        by_shape.setdefault(tuple(shapes[index].tensors.items()), []).append(index)
    clusters = [_cluster(shapes, members) for members in by_shape.values()]
    for distance in (NEAR, len(clusters)):
        clusters = _merge(clusters, batch_size, distance)
    return [(each.step_us(batch_size), _sorted(shapes, each.members)) for each in clusters]


def _merge(stacks: Sequence[_Cluster], batch_size: int, distance: int) -> list[_Cluster]:
    """Merge the two stacks, at most so far apart, that save most as one stack, until no merger saves time."""
    clusters = dict(enumerate(stacks))
    costs = [each.step_us(batch_size) for each in stacks]
    order = list(clusters)
    mergers: list[tuple[float, int, int]] = []  # a heap: minus the saved time, and the numbers of both stacks

    def add_merger(place: int, other: int) -> None:
        if 0 <= place < other < len(order):
            one, two = order[place], order[other]
            saved = costs[one] + costs[two] - clusters[one].merged(clusters[two]).step_us(batch_size)
            if saved > 0:
                heappush(mergers, (-saved, one, two))

    for place in range(len(order)):
        for other in range(place + 1, place + 1 + min(distance, len(order))):
            add_merger(place, other)
    while mergers:
        _, one, two = heappop(mergers)
        if one not in clusters or two not in clusters:
            continue
        place, removed = order.index(one), order.index(two)
        order[place] = len(costs)
        del order[removed]
        clusters[order[place]] = clusters.pop(one).merged(clusters.pop(two))
        costs.append(clusters[order[place]].step_us(batch_size))
        for other in range(place - distance, place + distance + 1):
            add_merger(min(place, other), max(place, other))
        for other in range(removed - distance, removed):  # two stacks that have come closer
            if place not in (other, other + distance):
                add_merger(other, other + distance)
    return [clusters[number] for number in order]


def work(shapes: Sequence[NetworkShape], batch_size: int) -> tuple[float, float, float, float, float]:
    """Return the work of a step of a stack of members of one shape: see `_Cluster.work`."""
    return _cluster(shapes, list(range(len(shapes)))).work(batch_size)


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
