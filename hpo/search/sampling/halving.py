"""Successive halving: the epochs of the rungs, and which configurations to promote from each rung.

Successive halving (K. Jamieson, A. Talwalkar, "Non-stochastic best arm identification", AISTATS 2016), asynchronous as
in ASHA (L. Li et al., "A system for massively parallel hyperparameter tuning", MLSys 2020): a rung is judged by the
configurations that have reached it so far. A fraction of the promotions is drawn at random among the configurations
that are not among the best, for those that start slowly. The draw depends on the seed, the configuration and the rung
alone, so that all workers agree.

Pure functions of numbers: storage, frozen members and training play no role here.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from hpo.optuna_internals import non_domination_rank
from hpo.storage.pareto import Losses
from hpo.training.seeds import derive_seed


def sorted_by_rank(losses: Mapping[int, Losses]) -> list[int]:
    """Return the numbers, the best first: by loss or non-domination rank, equal ones by number."""
    numbers = sorted(losses)
    if not numbers:
        return []
    values = np.array([losses[number] for number in numbers])
    ranks = values[:, 0] if values.shape[1] == 1 else non_domination_rank(values)
    return [numbers[index] for index in np.argsort(ranks, kind="stable")]


Ranker = Callable[[Mapping[int, Losses]], list[int]]
"""Returns the numbers of configurations, the best first, from what they reached at a rung."""


@dataclass(frozen=True)
class Halving:
    """Settings of successive halving.

    `first` is the epoch of the first rung; each further rung is `factor` times as high. One in `factor` configurations
    is promoted, a fraction `random` of the promoted drawn at random with `seed`. The best are those that `rank` puts
    first.
    """

    first: int
    factor: int
    random: float
    seed: int
    rank: Ranker = sorted_by_rank

    def rungs(self, epochs: int) -> list[int]:
        """Return the rungs below the last epoch, ascending."""
        rungs = [self.first]
        while rungs[-1] < epochs:
            rungs.append(rungs[-1] * self.factor)
        return rungs[:-1]

    def next_stop(self, epoch: int, epochs: int) -> int:
        """Return the first rung above an epoch, or the last epoch where there is no such rung."""
        return next((rung for rung in self.rungs(epochs) if rung > epoch), epochs)

    def is_rung(self, epoch: int) -> bool:
        """Return whether an epoch is a rung."""
        return epoch in self.rungs(epoch + 1)

    def expected_epochs(self, epochs: int) -> float:
        """Return the epochs that a trial trains on average, where one in `factor` is promoted from each rung."""
        stops = [0, *self.rungs(epochs), epochs]
        return sum((end - start) / float(self.factor) ** k for k, (start, end) in enumerate(itertools.pairwise(stops)))

    def expected_completions(self, configurations: int, epochs: int) -> int:
        """Return how many of so many configurations reach the last epoch, where none fails or ends early."""
        for _ in self.rungs(epochs):
            configurations = -(-configurations // self.factor)
        return configurations

    def promoted(self, rung: int, losses: Mapping[int, Losses], final: bool) -> list[int]:
        """Return the configurations to promote from a rung, the best first.

        `losses` are the values of all configurations that have reached the rung, by number, also of those promoted
        before. `final` says that no other will reach the rung: then the number to promote is rounded up, not down.
        """
        ranked = self.rank(losses)
        count = -(-len(ranked) // self.factor) if final else len(ranked) // self.factor
        if count == 0:
            return []
        best = self._best(count)
        return ranked[:best] + [number for number in ranked[best:] if self._is_drawn(rung, number)]

    def hopeless(self, rung: int, losses: Mapping[int, Losses], expected: int) -> set[int]:
        """Return the configurations that cannot be promoted, whatever the others reach.

        `expected` is the largest number of configurations that may reach the rung in the end.
        """
        best = self._best(-(-expected // self.factor))
        return {number for number in self.rank(losses)[best:] if not self._is_drawn(rung, number)}

    def most_promoted(self, rung: int, numbers: Collection[int], expected: int) -> int:
        """Return how many configurations may be promoted, if `expected` of these `numbers` reach the rung."""
        return self._best(-(-expected // self.factor)) + sum(self._is_drawn(rung, number) for number in numbers)

    def _best(self, count: int) -> int:
        """Return how many of `count` configurations to promote are the best ones; the others are drawn."""
        return max(1, round(count * (1 - self.random)))

    def _is_drawn(self, rung: int, number: int) -> bool:
        """Return whether a configuration is promoted although it is not among the best.

        The probability makes the expected share of such promotions `random`.
        """
        others = self.factor - (1 - self.random)  # for each promoted configuration
        return _draw(self.seed, rung, number) < self.random / others


@functools.cache  # a rung is judged before every population, and a hash takes microseconds
def _draw(seed: int, rung: int, number: int) -> float:
    """Return a number between 0 and 1 that seed, rung and configuration determine."""
    return derive_seed("promotion", seed, rung, number) / 2**53
