"""Simulate searches on a table of complete learning curves, where an epoch costs nothing.

A configuration that the sampler proposes is replaced by the nearest one of the table that the search has not had yet.
The samplers are random sampling and TPE by Optuna's formulas (`TPE`), the pruners Optuna's own, and successive halving
is that of hpo. A configuration that diverged fails, and costs the epochs until then.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner
from optuna.trial import TrialState
from scipy.special import ndtr, ndtri
from sklearn.ensemble import ExtraTreesRegressor

from hpo.search.sampling.halving import Halving
from hpo.search.sampling.in_memory_study import InMemoryStudy, in_memory_trial
from hpo.search.sampling.pruners import IncrementalHyperbandPruner, IncrementalMedianPruner

Array = NDArray[np.float64]

Ranker = Callable[[Array, int], Array]
"""Curves up to a rung [configurations, epochs] and the last epoch -> scores, higher is better."""

STARTUP, CANDIDATES, MOST_GOOD, FLAT = 10, 24, 25, 25
"""Constants of Optuna's TPE."""


@dataclass(frozen=True)
class Table:
    """Configurations in the unit cube, and their learning curves; a diverged one is 0 from that epoch on."""

    name: str
    points: Array
    curves: Array
    ends: NDArray[np.int64]  # epochs trained: all, or those until a configuration diverged

    @cached_property
    def expected(self) -> Array:
        """The expected final value of each configuration under another seed: out of bag, of a forest of trees.

        Values below the best by more than 3 points count as 3 points, so that cliffs do not blur the best region.
        """
        trees = ExtraTreesRegressor(200, min_samples_leaf=3, bootstrap=True, oob_score=True, random_state=0)
        found: Array = trees.fit(self.points, np.maximum(self.final, self.final.max() - 0.03)).oob_prediction_
        return found

    @property
    def epochs(self) -> int:
        """The number of epochs of a complete curve."""
        return int(self.curves.shape[1])

    @property
    def final(self) -> Array:
        """The value of each configuration after the last epoch."""
        return self.curves[:, -1]


def read_table(path: Path, rows: int | None = None) -> Table:
    """Read the table of a task; parameters that span two decades or more are on a log scale."""
    with np.load(path, allow_pickle=False) as stored:
        columns = [stored[name][:rows].astype(float) for name in stored.files if name.startswith("param_")]
        curves = stored["val_accuracy"][:rows].astype(float)
    scaled = [np.log(column) if column.max() > 100 * column.min() > 0 else column for column in columns]
    points = np.stack([(column - column.min()) / (column.max() - column.min()) for column in scaled], axis=1)
    diverged = np.isnan(curves)
    ends = np.where(diverged.any(axis=1), np.minimum(diverged.argmax(axis=1) + 1, curves.shape[1]), curves.shape[1])
    return Table(path.stem, points, np.where(diverged, 0.0, curves), ends)


def slow_starters(configurations: int = 2000, epochs: int = 27, share: float = 0.1) -> Table:
    """Return a made-up table in which the best configurations have the worst values until half of the epochs.

    `share` of the configurations, one corner of the space, start slowly and end best.
    """
    random = np.random.default_rng(0)
    points = random.random((configurations, 3))
    slow = points[:, 0] < share
    inside = np.where(slow, points[:, 0] / share, (points[:, 0] - share) / (1 - share))
    distance = np.sqrt((inside - 0.5) ** 2 + 0.3 * (points[:, 1] - 0.3) ** 2)
    final = np.where(slow, 0.95 - 0.02 * distance, 0.88 - 0.25 * distance)
    epoch = np.arange(1, epochs + 1)
    fast = 1 - np.exp(-epoch / (1 + 3 * points[:, 2:]))
    late = 1 / (1 + np.exp(-(epoch - 0.6 * epochs) / (0.06 * epochs)))
    curves = 0.1 + (final[:, np.newaxis] - 0.1) * np.where(slow[:, np.newaxis], late / late[-1], fast)
    curves += random.normal(0, 0.003, curves.shape)
    return Table("slow starters", points, curves, np.full(configurations, epochs))


@dataclass
class Run:
    """A simulated search: member-epochs trained, member-epochs for which there was room, and the completed trials."""

    trained: int = 0
    room: int = 0
    completed: list[tuple[int, int]] = field(default_factory=list)  # member-epochs so far, row of the table

    def train(self, ends: NDArray[np.int64], start: int, stop: int, population: int) -> None:
        """Add a population that trains from one epoch to another."""
        epochs = np.minimum(ends, stop) - start
        self.trained += int(epochs.sum())
        self.room += int(epochs.max()) * population

    def incumbents(self, table: Table) -> tuple[Array, NDArray[np.int64]]:
        """Return the member-epochs after which each trial completed, and the row that the search would return then."""
        rows = np.array([row for _, row in self.completed], int)
        best = np.maximum.accumulate(table.final[rows]) if len(rows) else np.empty(0)
        first = np.searchsorted(best, best, side="left")  # the first trial with the value
        return np.array([spent for spent, _ in self.completed], float), rows[first]

    def epochs_to(self, table: Table, values: Array, target: float) -> float:
        """Return the member-epochs until the incumbent has a value of at least `target`, or infinity."""
        spent, rows = self.incumbents(table)
        reached = values[rows] >= target
        return float(spent[reached.argmax()]) if reached.any() else math.inf

    def value_at(self, table: Table, values: Array, at: Array) -> Array:
        """Return the incumbent's value after so many member-epochs, -inf before the first trial completes."""
        spent, rows = self.incumbents(table)
        found: Array = np.concatenate([[-math.inf], values[rows]])[np.searchsorted(spent, at, side="right")]
        return found


class Sampler:
    """Random sampling without replacement from the table."""

    def __init__(self, table: Table, seed: int) -> None:
        self.table = table
        self.random = np.random.RandomState(seed)
        self.rows: list[int] = []  # row of each trial
        self._free = np.ones(len(table.points), bool)

    def ask(self, count: int) -> list[int]:
        """Return the numbers of new trials."""
        return [self._ask() for _ in range(count)]

    def _ask(self) -> int:
        distances = ((self.table.points - self._propose()) ** 2).sum(axis=1)
        distances[~self._free] = math.inf
        self.rows.append(row := int(distances.argmin()))
        self._free[row] = False
        return len(self.rows) - 1

    def _propose(self) -> Array:
        point: Array = self.random.random_sample((self.table.points.shape[1],))
        return point

    def tell(self, number: int, epoch: int, value: float) -> None:
        """Add the value that a trial has reached, also where it goes on or was pruned."""

    def fail(self, number: int) -> None:
        """Forget a trial that diverged."""


class TPE(Sampler):
    """Multivariate TPE with constant liar, by Optuna's formulas: completed trials first, pruned ones by step."""

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed)
        self._merits: dict[int, tuple[int, float, int]] = {}
        self._order: list[tuple[int, float, int]] = []
        self._failed: set[int] = set()

    def tell(self, number: int, epoch: int, value: float) -> None:
        if (before := self._merits.get(number)) is not None:
            self._order.remove(before)
        self._merits[number] = merit = (-epoch, -value, number)
        insort(self._order, merit)

    def fail(self, number: int) -> None:
        self._failed.add(number)
        if (before := self._merits.pop(number, None)) is not None:
            self._order.remove(before)

    def _propose(self) -> Array:
        if len(self._order) < STARTUP:
            return super()._propose()
        good = sorted(number for *_, number in self._order[: min(math.ceil(0.1 * len(self._order)), MOST_GOOD)])
        others = np.ones(len(self.rows), bool)
        others[[*good, *self._failed]] = False
        points = self.table.points[self.rows]
        below, above = Kernels(points[good]), Kernels(points[others])
        candidates = below.sample(self.random, CANDIDATES)
        best: Array = candidates[(below.log_density(candidates) - above.log_density(candidates)).argmax()]
        return best


class Kernels:
    """A Parzen estimator in the unit cube: Optuna's kernels, truncated normal, with a prior in the middle."""

    def __init__(self, points: Array) -> None:
        count, dimensions = points.shape
        order = points.argsort(axis=0)
        ends = np.zeros((1, dimensions)), np.ones((1, dimensions))
        gaps = np.diff(np.concatenate([ends[0], np.take_along_axis(points, order, 0), ends[1]]), axis=0)
        widths = np.maximum(gaps[:-1], gaps[1:])
        if count >= 2:
            widths[0], widths[-1] = gaps[1], gaps[-2]
        sigmas = np.empty_like(points)
        np.put_along_axis(sigmas, order, np.clip(widths, 1 / min(100.0, 2.0 + count), 1), 0)
        self._mu = np.concatenate([points, np.full((1, dimensions), 0.5)])
        self._sigma = np.concatenate([sigmas, np.ones((1, dimensions))])
        weights = np.ones(count + 1)
        if count > FLAT:
            weights[: count - FLAT] = np.linspace(1 / count, 1, count - FLAT)
        self._weights = weights / weights.sum()
        self._low, self._high = ndtr(-self._mu / self._sigma), ndtr((1 - self._mu) / self._sigma)
        inside = np.log((self._high - self._low) * self._sigma).sum(axis=1)
        self._constant = np.log(self._weights) - inside - 0.5 * dimensions * math.log(2 * math.pi)

    def sample(self, random: np.random.RandomState, count: int) -> Array:
        """Return samples, [count, dimensions]."""
        kernel = random.choice(len(self._weights), count, p=self._weights)
        low, high = self._low[kernel], self._high[kernel]
        uniform = low + random.random_sample(low.shape) * (high - low)
        found: Array = np.clip(self._mu[kernel] + self._sigma[kernel] * ndtri(uniform), 0, 1)
        return found

    def log_density(self, points: Array) -> Array:
        """Return the logarithm of the density at each point."""
        scaled = (points[:, np.newaxis] - self._mu) / self._sigma
        kernels = self._constant - 0.5 * np.einsum("ckd,ckd->ck", scaled, scaled)
        highest = kernels.max(axis=1)
        total: Array = np.log(np.exp(kernels - highest[:, np.newaxis]).sum(axis=1)) + highest
        return total


def complete_all(sampler: Sampler, trials: int, population: int) -> Run:
    """Train all trials to the last epoch, a population at a time."""
    run = Run()
    for _ in range(0, trials, population):
        _finish(run, sampler, sampler.ask(population), 0, population)
    return run


def _finish(run: Run, sampler: Sampler, numbers: Sequence[int], start: int, population: int) -> None:
    """Train trials from an epoch to the last one."""
    table = sampler.table
    rows = np.array([sampler.rows[number] for number in numbers])
    run.train(table.ends[rows], start, table.epochs, population)
    for number, row in zip(numbers, rows, strict=True):
        if table.ends[row] < table.epochs:
            sampler.fail(number)
        else:
            sampler.tell(number, 10**6, table.final[row])
            run.completed.append((run.trained, int(row)))


def prune(sampler: Sampler, trials: int, population: int, pruner: BasePruner) -> Run:
    """Train a population at a time and ask one of Optuna's pruners after each epoch."""
    table, run, storage = sampler.table, Run(), InMemoryStudy()
    study = optuna.create_study(storage=storage, direction="maximize", study_name=str(sampler.random.randint(2**31)))
    for _ in range(0, trials, population):
        members = sampler.ask(population)
        for number in members:
            storage.put(in_memory_trial(number, TrialState.RUNNING, {}, {}))
        for epoch in range(1, table.epochs + 1):
            ends = np.array([table.ends[sampler.rows[number]] for number in members])
            run.train(np.full(len(members), epoch), epoch - 1, epoch, population)
            for number in [number for number, end in zip(members, ends, strict=True) if end == epoch < table.epochs]:
                members.remove(number)
                sampler.fail(number)
                storage.set_trial_state_values(number, TrialState.FAIL)
            for number in members:
                value = float(table.curves[sampler.rows[number], epoch - 1])
                storage.set_trial_intermediate_value(number, epoch, value)
            if epoch == table.epochs:
                break
            running = {number: storage.get_trial(number) for number in members}
            if population > 1 and isinstance(pruner, IncrementalHyperbandPruner):  # as hpo: all values first
                for trial in running.values():
                    pruner.prune(study, trial)
            for number in [number for number, trial in running.items() if pruner.prune(study, trial)]:
                members.remove(number)
                sampler.tell(number, epoch, float(table.curves[sampler.rows[number], epoch - 1]))
                storage.set_trial_state_values(number, TrialState.PRUNED)
            if not members:
                break
        for number in members:
            value = float(table.final[row := sampler.rows[number]])
            run.completed.append((run.trained, row))
            sampler.tell(number, 10**6, value)
            storage.set_trial_state_values(number, TrialState.COMPLETE, [value])
            if isinstance(pruner, IncrementalMedianPruner):
                pruner.add(storage.get_trial(number))
    return run


@dataclass(frozen=True)
class Rule:
    """How successive halving promotes.

    `rungs` replaces the rungs of first and factor. `to_the_end` lets those drawn at random at the first rung train to
    the last epoch at once, `whole` so many first populations. Promoted trials train once there are `least` of them.
    """

    first: int = 3
    factor: int = 3
    random: float = 0.1
    rungs: tuple[int, ...] = ()
    to_the_end: bool = False
    whole: int = 0
    least: int = 16


def last_value(curves: Array, epochs: int) -> Array:
    """Rank by the last value."""
    return curves[:, -1]


def halve(sampler: Sampler, trials: int, population: int, rule: Rule, seed: int, ranker: Ranker = last_value) -> Run:
    """Search by successive halving in full populations: the highest rung that has one, then new configurations.

    Once all configurations are asked for, populations are partial, the lowest rung first.
    """
    search = _HalvingRun(sampler, population, rule, seed, ranker)
    while True:
        if search.promote(partly=False, new=len(sampler.rows) < trials):
            continue
        if len(sampler.rows) < trials:
            whole = len(sampler.rows) < rule.whole * population
            search.train(sampler.ask(min(population, trials - len(sampler.rows))), 0, whole)
        elif not search.promote(partly=True, new=False):
            return search.run


class _HalvingRun:
    def __init__(self, sampler: Sampler, population: int, rule: Rule, seed: int, ranker: Ranker) -> None:
        self.run = Run()
        self._sampler, self._population, self._rule, self._ranker = sampler, population, rule, ranker
        self._halving = Halving(rule.first, rule.factor, rule.random, seed)
        epochs = sampler.table.epochs
        self._rungs = list(rule.rungs) or self._halving.rungs(epochs)
        self._reached: dict[int, list[int]] = {rung: [] for rung in self._rungs}
        self._advanced: dict[int, set[int]] = {rung: set() for rung in self._rungs}

    def train(self, numbers: Sequence[int], start: int, to_the_end: bool = False) -> None:
        """Train trials from one rung to the next, and freeze them there."""
        sampler, table = self._sampler, self._sampler.table
        if start:
            self._advanced[start].update(numbers)
        elif to_the_end:  # they count at each rung
            for rung in self._rungs:
                lasting = [number for number in numbers if table.ends[sampler.rows[number]] > rung]
                self._reached[rung] += lasting
                self._advanced[rung].update(lasting)
        stop = next((rung for rung in self._rungs if rung > start), table.epochs)
        if stop == table.epochs or to_the_end:
            _finish(self.run, sampler, numbers, start, self._population)
            return
        rows = np.array([sampler.rows[number] for number in numbers])
        self.run.train(table.ends[rows], start, stop, self._population)
        for number, row in zip(numbers, rows, strict=True):
            if table.ends[row] <= stop and table.ends[row] < table.epochs:
                sampler.fail(number)
            else:
                self._reached[stop].append(number)
                sampler.tell(number, stop, float(table.curves[row, stop - 1]))

    def promote(self, partly: bool, new: bool) -> bool:
        """Train a population of promoted trials; return whether there was one."""
        for rung in self._rungs if partly else reversed(self._rungs):
            best, drawn = self._promoted(rung, final=not new and self._complete_below(rung))
            if self._rule.to_the_end and rung == self._rungs[0]:
                if len(drawn) >= self._rule.least or (partly and drawn):
                    self.train(drawn[: self._population], rung, to_the_end=True)
                    return True
                waiting = best
            else:
                waiting = best + drawn
            if len(waiting) >= self._rule.least or (partly and waiting):
                self.train(waiting[: self._population], rung)
                return True
        return False

    def _complete_below(self, rung: int) -> bool:
        """Return whether nothing more can reach the rung: all promoted below have gone on."""
        below = [each for each in self._rungs if each < rung]
        return all(not any(self._promoted(each, final=True)) for each in below)

    def _promoted(self, rung: int, final: bool) -> tuple[list[int], list[int]]:
        """Return the trials to promote that have not gone on: the best, and those drawn at random."""
        numbers = self._reached[rung]
        if not numbers:
            return [], []
        table = self._sampler.table
        rows = [self._sampler.rows[number] for number in numbers]
        scores = self._ranker(table.curves[rows, :rung], table.epochs)
        losses = {number: (-float(score),) for number, score in zip(numbers, scores, strict=True)}
        promoted = self._halving.promoted(rung, losses, final)
        count = -(-len(numbers) // self._rule.factor) if final else len(numbers) // self._rule.factor
        best = max(1, round(count * (1 - self._rule.random)))
        gone = self._advanced[rung]
        return [n for n in promoted[:best] if n not in gone], [n for n in promoted[best:] if n not in gone]
