"""Rungs of a study under successive halving: the values that its trials reached, and who goes on, waits or ends.

A configuration is judged at a rung once all its trials have reached the rung or ended, by the mean over its repeats.
Values of other workers' trials count like those of this worker. Which trials are frozen here is not known here.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from hpo.search.sampling.halving import Halving
from hpo.storage import FROZEN, RUNG
from hpo.storage.pareto import Losses, losses


def stored_values(trial: FrozenTrial) -> dict[int, Sequence[float]]:
    """Return the objective values that a stored trial reached at rungs, by epoch."""
    keys = (key for key in trial.system_attrs if key.startswith(RUNG) and key != FROZEN)
    return {int(key.removeprefix(RUNG)): trial.system_attrs[key] for key in keys}


@dataclass(frozen=True)
class Unfinished:
    """The trials that may still reach a rung: the last epoch of each by number, and the configurations not yet asked.

    `count` is the number of the study's trials. `at_rung` has the rung of each trial that is frozen or waiting there.
    """

    last_epochs: Mapping[int, int]
    to_ask: int
    count: int
    at_rung: Mapping[int, int] = field(default_factory=dict)


@dataclass
class Rungs:
    """The values at each rung, by trial number. `repeats` trials with consecutive numbers are one configuration."""

    halving: Halving
    directions: Sequence[StudyDirection]
    repeats: int = 1
    _losses: defaultdict[int, dict[int, Losses]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, number: int, epoch: int, values: Sequence[float]) -> None:
        """Add the values, one a metric, that a trial reached at a rung."""
        self._losses[epoch][number] = losses(values, self.directions)

    def add_stored(self, trials: Iterable[FrozenTrial]) -> set[int]:
        """Add the values in the attributes of stored trials; return the numbers of trials with new values."""
        new = set()
        for trial in trials:
            for rung, values in stored_values(trial).items():
                if trial.number not in self._losses[rung]:
                    self.add(trial.number, rung, values)
                    new.add(trial.number)
        return new

    def reached(self, number: int) -> tuple[int, Losses] | None:
        """Return the highest rung that a trial has reached, with its losses there."""
        rungs = [rung for rung, reached in self._losses.items() if number in reached]
        return (max(rungs), self._losses[max(rungs)][number]) if rungs else None

    def judge(self, unfinished: Unfinished) -> dict[int, Judgement]:
        """Return the judgement of every rung that a trial has reached, ascending."""
        judged: dict[int, Judgement] = {}
        most: float = math.inf  # the configurations that can be promoted from the rung below
        stay: set[int] = set()  # the trials that cannot be promoted from a rung below
        new = range(unfinished.count // self.repeats, unfinished.count // self.repeats + unfinished.to_ask)
        for rung in sorted(filter(self.halving.is_rung, self._losses)):
            pending = self._pending(rung, unfinished) - stay
            reached = self._configurations(rung, pending, unfinished)
            awaited = {number // self.repeats for number in pending} | set(new)
            expected = max(len(reached), int(min(most, len(reached.keys() | awaited))))
            hopeless = self.halving.hopeless(rung, reached, expected)
            continued = self._continued(rung, unfinished)
            promoted = self.halving.promoted(rung, reached, final=not awaited)
            promoted = list(dict.fromkeys([*promoted, *continued]))
            judged[rung] = Judgement(
                self._numbers(rung, promoted), frozenset(self._numbers(rung, hopeless - continued.keys()))
            )
            stay |= {number for number in judged[rung].hopeless if unfinished.at_rung.get(number) == rung}
            most = self.halving.most_promoted(rung, reached.keys() | awaited, expected)
            most += len(hopeless & continued.keys())
        return judged

    def _continued(self, rung: int, unfinished: Unfinished) -> dict[int, None]:
        """Return the configurations with a trial that was promoted from a rung: their other trials are promoted too."""
        later = self._reached_from(rung + 1)
        return {
            number // self.repeats: None
            for number in self._losses[rung]
            if number in later or (number in unfinished.last_epochs and number not in unfinished.at_rung)
        }

    def _reached_from(self, epoch: int) -> set[int]:
        """Return the trials that have reached a rung at an epoch or after it."""
        return {number for rung, reached in self._losses.items() if rung >= epoch for number in reached}

    def _pending(self, rung: int, unfinished: Unfinished) -> set[int]:
        """Return the trials that have not reached a rung, nor a later one, and may still do so."""
        reached = self._reached_from(rung)
        return {n for n, last in unfinished.last_epochs.items() if last > rung and n not in reached}

    def _configurations(self, rung: int, pending: set[int], unfinished: Unfinished) -> dict[int, Losses]:
        """Return the mean losses of the configurations that have reached a rung with all their trials."""
        grouped: defaultdict[int, list[Losses]] = defaultdict(list)
        for number, reached in self._losses[rung].items():
            grouped[number // self.repeats].append(reached)
        incomplete = {number // self.repeats for number in pending}
        if unfinished.to_ask and unfinished.count % self.repeats:
            incomplete.add(unfinished.count // self.repeats)  # its other repeats are not asked yet
        return {
            configuration: each[0] if len(each) == 1 else tuple(map(statistics.fmean, zip(*each, strict=True)))
            for configuration, each in grouped.items()
            if configuration not in incomplete
        }

    def _numbers(self, rung: int, configurations: Iterable[int]) -> list[int]:
        """Return the trials of these configurations that have reached a rung."""
        trials = (c * self.repeats + repeat for c in configurations for repeat in range(self.repeats))
        return [number for number in trials if number in self._losses[rung]]


@dataclass(frozen=True)
class Judgement:
    """The judgement of a rung: the trials to promote, the best first, and those that cannot be promoted any more."""

    promoted: Sequence[int]
    hopeless: frozenset[int]
