"""Rungs by simulation: every trial completes or ends at a rung, with failures, repeats and several workers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.study import StudyDirection
from optuna.trial import create_trial

from hpo.search.sampling.halving import Halving
from hpo.search.sampling.rungs import Rungs, Unfinished

MINIMIZE = [StudyDirection.MINIMIZE]


@dataclass
class Trial:
    """A trial of the simulated study: `frozen` is its rung while it is frozen, `worker` has its state."""

    number: int
    epochs: int
    loss: float
    frozen: int | None = None
    worker: int = -1
    ended: str = ""
    promoted: set[int] = field(default_factory=set)


class Worker:
    """A simulated worker. It judges by what it knew at its last `sync`, and knows its own trials."""

    def __init__(self, study: Study, number: int) -> None:
        self.study, self.number = study, number
        self.rungs = Rungs(study.halving, MINIMIZE, study.repeats)
        self.known: dict[int, int | None] = {}  # unfinished trials and the rung at which they are frozen

    def sync(self) -> None:
        trials = self.study.trials
        for trial, values in self.study.reached:
            self.rungs.add(trial, *values)
        self.known = {trial.number: trial.frozen for trial in trials if not trial.ended}

    def step(self) -> bool:
        """Do what a worker does in a step; return whether it has trained or ended trials."""
        self.known |= {trial.number: trial.frozen for trial in self._own() if not trial.ended}
        study = self.study
        judged = self.rungs.judge(self._unfinished())
        hopeless = [trial for trial in self._own() if trial.frozen and trial.number in judged[trial.frozen].hopeless]
        for trial in hopeless:
            study.end(trial, "pruned")
            self.known.pop(trial.number)
        promoted = [
            study.trials[number]
            for rung in sorted(judged, reverse=True)
            for number in judged[rung].promoted
            if study.trials[number].frozen == rung
        ]
        own = [trial for trial in promoted if trial.worker == self.number]
        if len(own) >= study.population or (own and not study.to_ask):
            self._train(own[: study.population])
        elif study.to_ask:
            self._train([study.ask(self.number) for _ in range(min(study.population, study.to_ask))])
        elif promoted:  # taken over from another worker
            self._train(promoted[: study.population])
        else:
            return bool(hopeless)
        return True

    def _own(self) -> list[Trial]:
        return [trial for trial in self.study.trials if trial.worker == self.number and not trial.ended]

    def _unfinished(self) -> Unfinished:
        study = self.study
        lasts = {number: study.trials[number].epochs for number in self.known}
        at_rung = {number: rung for number, rung in self.known.items() if rung}
        return Unfinished(lasts, -(-study.to_ask // study.repeats), len(study.trials), at_rung)

    def _train(self, trials: list[Trial]) -> None:
        for trial in trials:
            epoch, trial.worker = trial.frozen or 0, self.number
            if trial.frozen:
                trial.promoted.add(trial.frozen)
            trial.frozen = None
            self.known[trial.number] = None
            stop = self.study.halving.next_stop(epoch, trial.epochs)
            if self.study.random.random() < self.study.failures:
                self.study.end(trial, "failed")
            elif stop == trial.epochs:
                self.study.end(trial, "completed")
            else:
                trial.frozen = self.known[trial.number] = stop
                loss = (trial.loss + self.study.random.random() / stop,)
                self.study.reached.append((trial.number, (stop, loss)))
                self.rungs.add(trial.number, stop, loss)
            if trial.ended:
                self.known.pop(trial.number, None)


class Study:
    """A simulated study."""

    def __init__(
        self, halving: Halving, count: int, population: int, repeats: int, failures: float, epochs: list[int], seed: int
    ) -> None:
        self.halving, self.count, self.population, self.repeats = halving, count, population, repeats
        self.failures, self.epochs, self.random = failures, epochs, random.Random(seed)
        self.trials: list[Trial] = []
        self.reached: list[tuple[int, tuple[int, tuple[float]]]] = []

    @property
    def to_ask(self) -> int:
        return self.count * self.repeats - len(self.trials)

    def ask(self, worker: int) -> Trial:
        number = len(self.trials)
        epochs = self.epochs[number // self.repeats % len(self.epochs)]
        self.trials.append(Trial(number, epochs, self.random.choice([0.0, 0.5, 1.0, 1.0]), worker=worker))
        return self.trials[-1]

    def end(self, trial: Trial, how: str) -> None:
        trial.ended, trial.frozen = how, None

    def run(self, workers: list[Worker], turns: list[int]) -> None:
        """Let workers take turns, first with views of any age, then until none of them has anything left to do."""
        for turn in turns:
            if turn % 2:
                workers[turn // 2 % len(workers)].sync()
            workers[turn // 2 % len(workers)].step()
        worked = True
        while worked:
            worked = False
            for worker in workers:
                worker.sync()
                worked |= worker.step()


HALVINGS = st.builds(Halving, st.integers(1, 4), st.integers(2, 4), st.sampled_from([0.0, 0.1, 0.5]), st.integers(0, 9))
STUDIES = st.builds(
    Study,
    HALVINGS,
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.0, 0.1, 0.5]),
    st.sampled_from([[20], [2, 30], [1, 9, 12]]),
    st.integers(0, 99),
)


@settings(max_examples=60)
@given(STUDIES, st.integers(1, 3), st.lists(st.integers(0, 11), max_size=40))
def test_every_trial_completes_fails_or_ends_at_a_rung(study: Study, workers: int, turns: list[int]) -> None:
    study.run([Worker(study, number) for number in range(workers)], turns)
    assert study.to_ask == 0
    assert all(trial.ended for trial in study.trials), "a deadlock: nothing is promoted, and nothing is hopeless"
    if not study.failures:
        assert any(trial.ended == "completed" for trial in study.trials)
    if workers == 1 and not study.failures:  # repeats of a configuration go on together, or none of them
        for rung in study.halving.rungs(max(study.epochs)):
            promoted = [trial.number // study.repeats for trial in study.trials if rung in trial.promoted]
            left = [
                trial.number // study.repeats
                for trial in study.trials
                if trial.ended == "pruned" and max(r for n, (r, _) in study.reached if n == trial.number) == rung
            ]
            assert not set(promoted) & set(left)


@given(HALVINGS, st.integers(1, 200))
def test_a_rung_that_all_have_reached_promotes_its_fraction(halving: Halving, count: int) -> None:
    rungs = Rungs(halving, MINIMIZE)
    for number in range(count):
        rungs.add(number, halving.first, (float(number),))
    at_rung = dict.fromkeys(range(count), halving.first)
    judged = rungs.judge(Unfinished(dict.fromkeys(range(count), 99), 0, count, at_rung))[halving.first]
    assert set(judged.promoted) | judged.hopeless == set(range(count))
    assert not set(judged.promoted) & judged.hopeless
    best = next((n for n in range(count) if n not in judged.promoted), count)  # all before it are promoted
    expected = (1 - halving.random) * count / halving.factor
    assert best >= expected - 1
    if halving.random == 0:
        assert expected <= len(judged.promoted) < expected + 1


def judged_with(unfinished: Unfinished, values: dict[int, dict[int, float]], repeats: int = 1) -> dict[int, Any]:
    rungs = Rungs(Halving(3, 3, 0.0, 0), MINIMIZE, repeats)
    for rung, losses in values.items():
        for number, loss in losses.items():
            rungs.add(number, rung, (loss,))
    return {rung: (list(each.promoted), set(each.hopeless)) for rung, each in rungs.judge(unfinished).items()}


def test_a_trial_that_another_worker_leaves_at_a_rung_is_not_awaited_at_the_next() -> None:
    # Trial 1 cannot be promoted from rung 3, but another worker has not ended it yet.
    unfinished = Unfinished({0: 20, 1: 20, 2: 20}, 0, 3, {0: 9, 1: 3, 2: 3})
    assert judged_with(unfinished, {3: {0: 0.1, 1: 0.3, 2: 0.2}, 9: {0: 0.1}}) == {3: ([0], {1, 2}), 9: ([0], set())}


def test_a_trial_that_missed_a_rung_is_not_awaited_there() -> None:
    # Trial 2 went past rung 3 under another pruner.
    unfinished = Unfinished({0: 20, 1: 20, 2: 20}, 0, 3, {0: 3, 1: 3, 2: 9})
    assert judged_with(unfinished, {3: {0: 0.1, 1: 0.3}, 9: {2: 0.1}})[3] == ([0], {1})


def test_epochs_that_are_no_rungs_any_more_are_not_judged() -> None:
    unfinished = Unfinished({0: 20, 1: 20, 2: 20}, 0, 3, {0: 3, 1: 3, 2: 3})
    assert judged_with(unfinished, {2: {0: 0.1}, 3: {0: 0.1, 1: 0.3, 2: 0.2}, 6: {0: 0.1}}) == {3: ([0], {1, 2})}


def test_repeats_are_judged_by_their_mean_and_promoted_together() -> None:
    values = {3: {0: 0.0, 1: 1.0, 2: 0.4, 3: 0.4, 4: 0.9, 5: 0.9}}
    at_rung = dict.fromkeys(range(6), 3)
    last = dict.fromkeys(range(6), 20)
    assert judged_with(Unfinished(last, 0, 6, at_rung), values, 2) == {3: ([2, 3], {0, 1, 4, 5})}
    # One of the repeats failed before the rung: the other one counts alone.
    without = {number: rung for number, rung in at_rung.items() if number != 3}
    losses = {0: 0.0, 1: 1.0, 2: 0.6, 4: 0.9, 5: 0.9}
    unfinished = Unfinished(dict.fromkeys(without, 20), 0, 6, without)
    assert judged_with(unfinished, {3: losses}, 2) == {3: ([0, 1], {2, 4, 5})}
    # The others of a configuration go on too, although it would not be promoted now.
    began = Unfinished(last, 0, 6, {number: 3 for number in range(6) if number != 4})
    assert judged_with(began, values, 2) == {3: ([2, 3, 4, 5], {0, 1})}


def test_a_configuration_is_judged_once_all_its_repeats_are_asked() -> None:
    values = {3: {0: 0.5, 1: 0.5, 2: 0.1}}
    unfinished = Unfinished(dict.fromkeys(range(3), 20), 1, 3, dict.fromkeys(range(3), 3))
    assert judged_with(unfinished, values, 2) == {3: ([], set())}


def test_values_of_stored_trials_count_once() -> None:
    rungs = Rungs(Halving(3, 3, 0.0, 0), [StudyDirection.MAXIMIZE])
    trial = create_trial(value=0.5, system_attrs={"hpo:rung:3": [0.25], "hpo:rung:9": [0.5], "hpo:rung:frozen": 9})
    trial.number = 4
    assert rungs.add_stored([trial]) == {4}
    assert rungs.add_stored([trial]) == set()
    assert rungs.reached(4) == (9, (-0.5,))
    assert rungs.reached(5) is None


@pytest.mark.parametrize("frozen", [False, True])
def test_a_trial_counts_as_promoted_once_it_trains_again(frozen: bool) -> None:
    # Trial 2 was promoted before the better ones came: it is one of those that may reach the next rung.
    at_rung = {number: 3 for number in range(7) if number != 2 or frozen}
    losses = {number: float(abs(number - 5)) for number in range(7)}
    promoted, hopeless = judged_with(Unfinished(dict.fromkeys(range(7), 20), 0, 7, at_rung), {3: losses})[3]
    assert promoted == [5, 4, 6] + [2] * (not frozen)
    assert hopeless == {0, 1, 3} | ({2} if frozen else set())
