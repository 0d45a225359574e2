"""Trials that raise, hang or kill their process: retries alone, retry limits, and failure without other members."""

from __future__ import annotations

import threading
from collections.abc import Collection, Generator, Sequence

import pytest
from deadlines import deadline
from lock_step import age_heartbeats
from optuna.trial import FrozenTrial, TrialState, create_trial
from tiny import check_whole, curves, params, search, states, study_of, trials_of

from hpo.errors import HpoError
from hpo.search import driver as drivers
from hpo.search.events import Event, Note, PopulationStarted, StudyStarted
from hpo.search.space import distributions
from hpo.storage import Storage, load_study, requeue_orphaned, running_trials
from hpo.storage.heartbeats import attempt_record
from hpo.storage.workers import Worker
from hpo.studyfile import Study
from hpo.training import trainer
from hpo.training.population import EpochResult
from hpo.training.stack import Member, MemberMetrics, Stack

STUDY = study_of(search={"trials": 6, "population": 4})
DEAD_WORKER = Worker("elsewhere", 1, 0.0, "another machine")


class RaisingTrainer(trainer.Trainer):
    """A trainer that raises in the second epoch of each population with a bad trial, at most `times` times."""

    bad: Collection[int] = ()
    times = 99
    error: Exception = RuntimeError("the network's own\nmistake")

    def train(self, members: Sequence[Member], spent_s: float = 0) -> Generator[EpochResult, Collection[int], None]:
        epochs = super().train(members)
        dropped = yield next(epochs)
        if type(self).times > 0 and {member.number for member in members} & set(self.bad):
            type(self).times -= 1
            raise self.error
        while True:
            try:
                dropped = yield epochs.send(dropped or set())
            except StopIteration:
                return


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> type[RaisingTrainer]:
    """Replace the trainer by one that raises; the test sets which trials are bad."""

    class FailingTrainer(RaisingTrainer):
        pass

    monkeypatch.setattr(drivers, "Trainer", FailingTrainer)
    return FailingTrainer


def populations(events: list[Event]) -> list[tuple[int, ...]]:
    return [event.members for event in events if isinstance(event, PopulationStarted)]


def warnings(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Note) and event.level == "warning"]


def test_trial_that_always_raises_fails_alone(raising: type[RaisingTrainer], storage: Storage) -> None:
    raising.bad = {1}
    events = search(STUDY, storage)
    trials = trials_of(storage)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 4]
    # Requeued trials come first, each alone.
    assert populations(events) == [(0, 1, 2, 3), (0,), (1,), (2,), (3,), (4, 5)]
    assert trials[1].user_attrs["reason"] == "RuntimeError: the network's own mistake"
    ends = trials[1].system_attrs["hpo:attempts"]
    assert [end["ended"] for end in ends] == ["raised", "raised"]
    assert all(end["reason"] == trials[1].user_attrs["reason"] for end in ends)
    assert all("raise self.error" in end["traceback"] for end in ends)
    assert [len(trial.system_attrs.get("hpo:attempts", [])) for trial in trials] == [1, 2, 1, 1, 0, 0]
    assert trials[1].intermediate_values.keys() == {1}
    assert len(warnings(events)) == 2
    assert "trials 0, 1, 2, 3: RuntimeError: the network's own mistake; requeued, to be trained alone" in warnings(
        events
    )


def test_retried_trial_has_the_same_result(
    raising: type[RaisingTrainer], storage: Storage, new_storage: object
) -> None:
    raising.bad, raising.times = {0, 5}, 1
    search(STUDY, storage)
    trials = trials_of(storage)
    check_whole(trials, 6)
    assert states(trials) == [TrialState.COMPLETE] * 6
    raising.bad = ()
    uninterrupted = new_storage()  # type: ignore[operator]
    search(STUDY, uninterrupted)
    assert params(trials) == params(trials_of(uninterrupted))
    assert [curve.keys() for curve in curves(trials)] == [curve.keys() for curve in curves(trials_of(uninterrupted))]
    assert [trial.value for trial in trials] == pytest.approx([trial.value for trial in trials_of(uninterrupted)])


def test_without_retries_a_raising_population_fails(raising: type[RaisingTrainer], storage: Storage) -> None:
    raising.bad, raising.times = {2}, 1
    search(study_of(search={"trials": 6, "population": 4, "retries": 0}), storage)
    assert [trial.state.name for trial in trials_of(storage)] == [*["FAIL"] * 4, *["COMPLETE"] * 2]


def test_training_that_always_raises_ends_the_search_and_requeues_other_trials(
    raising: type[RaisingTrainer], storage: Storage
) -> None:
    raising.bad = range(100)
    # A state after the first epoch, which a slow machine has time to write, would let a retry complete.
    study = study_of(training={"checkpoint": "none"}, search={"trials": 50, "population": 4})
    with pytest.raises(
        HpoError, match=r"raised the same exception in 3 populations in a row \(RuntimeError: .*launch again"
    ):
        search(study, storage)
    assert [trial.state.name for trial in trials_of(storage)] == ["FAIL", "FAIL", "WAITING", "WAITING"]
    raising.bad = ()
    search(study, storage)
    trials = trials_of(storage)
    check_whole(trials, 50)
    assert states(trials).count(TrialState.FAIL) == 2


def test_hpo_error_is_not_retried(raising: type[RaisingTrainer], storage: Storage) -> None:
    raising.bad, raising.error = {1}, HpoError("a single network does not fit into the memory")
    events = search(STUDY, storage)
    assert [trial.state.name for trial in trials_of(storage)] == [*["FAIL"] * 4, *["COMPLETE"] * 2]
    assert populations(events) == [(0, 1, 2, 3), (4, 5)]


def test_trial_beyond_its_timeout_fails_and_the_study_continues(storage: Storage) -> None:
    study = study_of(search={"trials": 5, "population": 4, "trial_timeout": 1e-9})
    events = search(study, storage)
    trials = trials_of(storage)
    check_whole(trials, 5)
    assert states(trials) == [TrialState.FAIL] * 5
    reason = "took longer than search.trial_timeout, 1e-09 s (epoch 1)"
    assert all(trial.user_attrs["reason"] == reason for trial in trials)
    assert populations(events) == [(0, 1, 2, 3), (0,), (1,), (2,), (3,), (4,), (4,)]


def test_timeout_too_large_for_a_clock_means_no_timeout(storage: Storage) -> None:
    search(study_of(search={"trials": 1, "trial_timeout": 1e300}), storage)
    assert states(trials_of(storage)) == [TrialState.COMPLETE]


def test_hanging_trial_fails_after_its_timeout(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    released, epoch, limit = threading.Event(), Stack.epoch, round(deadline(1))

    def hang(stack: Stack, number: int) -> MemberMetrics:
        if 1 in stack.numbers and number == 2:
            released.wait()
        return epoch(stack, number)

    monkeypatch.setattr(Stack, "epoch", hang)
    try:
        search(study_of(search={"trials": 6, "population": 4, "trial_timeout": limit}), storage)
    finally:
        released.set()
    trials = trials_of(storage)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 4]
    assert trials[1].user_attrs["reason"] == f"took longer than search.trial_timeout, {limit} s (epoch 2)"


def create_trials_of_dead_workers(study: Study, storage: Storage, deaths: int, count: int) -> list[FrozenTrial]:
    """Create WAITING trials whose worker has died `deaths` times."""
    search(study, storage, stop_at=lambda event: isinstance(event, StudyStarted))
    attrs = {"hpo:attempts": [attempt_record("died", "gone", DEAD_WORKER) for _ in range(deaths)]}
    waiting = [
        create_trial(
            state=TrialState.WAITING,
            params={"lr": 0.1 / (number + 1)},
            distributions=distributions(study),
            user_attrs={"seed": number},
            system_attrs=attrs,
        )
        for number in range(count)
    ]
    return storage.create_trials(load_study(storage, "tiny")._study_id, waiting)


@pytest.mark.parametrize(("deaths", "expected"), [(1, [(0, 1, 2, 3), (4, 5)]), (2, [(0,), (1,), (2,), (3, 4, 5)])])
def test_trial_with_two_dead_workers_is_trained_alone(
    deaths: int, expected: list[tuple[int, ...]], storage: Storage
) -> None:
    create_trials_of_dead_workers(STUDY, storage, deaths, 3)
    events = search(STUDY, storage)
    check_whole(trials_of(storage), 6)
    assert populations(events) == expected


def test_trial_fails_after_four_dead_workers(storage: Storage) -> None:
    create_trials_of_dead_workers(STUDY, storage, 3, 2)
    storage.worker = DEAD_WORKER
    storage.claim([1, 2], 1)
    (orphan,) = [running for running in running_trials(storage) if running.number == 0]
    assert orphan.orphaned is None
    age_heartbeats(storage)
    orphan = running_trials(storage)[0]
    assert orphan.orphaned == "no heartbeat from process 1 on elsewhere for 60 s"
    assert requeue_orphaned(storage, [orphan]) == (set(), {0})
    search(STUDY, storage)
    trials = trials_of(storage)
    check_whole(trials, 6)
    assert states(trials) == [TrialState.FAIL, *[TrialState.COMPLETE] * 5]
    assert trials[0].user_attrs["reason"] == f"its process died 4 times: {orphan.orphaned}"


def test_enqueued_trial_outside_the_search_space_fails_with_a_reason(storage: Storage) -> None:
    search(STUDY, storage, stop_at=lambda event: isinstance(event, StudyStarted))
    load_study(storage, "tiny").enqueue_trial({"learning_rate": 0.1})
    search(STUDY, storage)
    trials = trials_of(storage)
    assert [trial.state.name for trial in trials] == ["FAIL", *["COMPLETE"] * 5]
    assert trials[0].user_attrs["reason"] == "enqueued: learning_rate is not searched; searched are lr"
