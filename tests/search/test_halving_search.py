"""Successive halving in a search: every key keeps its meaning, frozen trials are neither lost nor trained twice."""

from __future__ import annotations

import datetime
import itertools
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import optuna
import pytest
from lock_step import age_heartbeats
from optuna.trial import FrozenTrial, TrialState
from tiny import DECAY, LR, StopAfter, after_epochs, curves, params, search, states, study_of, trials_of

from hpo.errors import TrainingError
from hpo.results.display.check import check_report
from hpo.search import driver as drivers
from hpo.search import loop
from hpo.search.checkpoints.time_budget import TimeBudget
from hpo.search.events import Event, FrozenTrials, Note, PopulationStarted, StudyEnded, TrialsNotPromoted
from hpo.search.launch import join, launch, submit
from hpo.search.options import LaunchOptions
from hpo.search.populations.halving_search import HalvingSearch
from hpo.search.sampling import pruners
from hpo.search.sampling.pruners import halving_of, max_epochs
from hpo.search.space import config_of
from hpo.search.study_records import CURVE
from hpo.service.queue_control import delete
from hpo.storage import (
    FROZEN,
    RUNG,
    Storage,
    StudyState,
    open_storage,
    requeue_orphaned,
    running_trials,
    set_state,
    study_names,
    summary,
)
from hpo.storage.artifacts import ArtifactFolder, artifact_folder
from hpo.storage.workers import Worker
from hpo.studyfile import Study
from hpo.training import trainer
from hpo.training.population import EpochResult
from hpo.training.stack import Member

COMPLETE, PRUNED, FAIL, RUNNING, WAITING = (
    TrialState.COMPLETE,
    TrialState.PRUNED,
    TrialState.FAIL,
    TrialState.RUNNING,
    TrialState.WAITING,
)
slow = partial(pytest.param, marks=pytest.mark.slow)
EPOCHS = 5
SIZES = {"hidden": {"choices": [[8], [5, 5]]}}


def halving_study(**changes: dict[str, Any]) -> Study:
    """Return a study of 12 trials with rungs at 1, 2 and 4 of 5 epochs, without promotions at random."""
    halving = {"pruner": "halving", "rung": 1, "factor": 2, "random_share": 0.0, "trials": 12}
    changes["search"] = {**halving, **changes.get("search", {})}
    changes["training"] = {"epochs": EPOCHS, **changes.get("training", {})}
    return study_of(**changes)


STUDY = halving_study()


class RecordingTrainer(trainer.Trainer):
    """A trainer that records which epochs of which trials it trains.

    It calls `before` with the trials and each epoch. The trials of `diverging` fail at those epochs.
    """

    trained: ClassVar[Counter[tuple[int, int]]]
    populations: ClassVar[list[tuple[int, ...]]]
    diverging: ClassVar[dict[int, int]]
    before: Callable[[Collection[int], int], None]

    def train(self, members: Sequence[Member], spent_s: float = 0) -> Generator[EpochResult, Collection[int], None]:
        epochs = super().train(members, spent_s)
        left = {member.number for member in members}
        self.populations.append(tuple(sorted(left)))
        dropped: Collection[int] | None = None
        for epoch in range(members[0].epoch + 1, members[0].config.training.epochs + 1):
            type(self).before(left, epoch)
            result = next(epochs) if dropped is None else epochs.send(dropped)
            self.trained.update((number, epoch) for number in result.metrics)
            failed = {number: "diverged" for number in left if self.diverging.get(number) == epoch}
            metrics = {number: values for number, values in result.metrics.items() if number not in failed}
            dropped = {*(yield replace(result, metrics=metrics, failed=result.failed | failed)), *failed}
            left -= {*dropped, *result.failed}
            if not left:
                return


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[RecordingTrainer]:
    """Replace the trainer by one that records the epochs it trains."""

    class FreshTrainer(RecordingTrainer):
        @staticmethod
        def before(numbers: Collection[int], epoch: int) -> None:
            pass

    FreshTrainer.trained, FreshTrainer.populations, FreshTrainer.diverging = Counter(), [], {}
    monkeypatch.setattr(drivers, "Trainer", FreshTrainer)
    monkeypatch.setattr(loop, "POLL_S", 0.01)
    return FreshTrainer


@pytest.fixture
def other(storage: Storage) -> Iterator[Storage]:
    """Open the storage a second time, as another process does."""
    other = open_storage(storage.location.full_url)
    yield other
    other.close()


@pytest.fixture(scope="session")
def unpruned(tmp_path_factory: pytest.TempPathFactory) -> Sequence[FrozenTrial]:
    """Return the trials of `STUDY` after a search without a pruner."""
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('unpruned')}/hpo.db")
    search(halving_study(search={"pruner": "none"}), storage)
    trials = trials_of(storage)
    storage.close()
    return trials


def rungs_of(trial: FrozenTrial) -> list[int]:
    keys = [key.removeprefix(RUNG) for key in trial.system_attrs if key.startswith(RUNG)]
    return sorted(map(int, keys))


def numbers_at_rungs(trials: Sequence[FrozenTrial]) -> list[int]:
    """Return how many trials have reached each rung, ascending."""
    counts = Counter(rung for trial in trials for rung in rungs_of(trial))
    return [counts[rung] for rung in sorted(counts)]


def files(storage: Storage) -> list[str]:
    folder = artifact_folder(storage.location)
    return sorted(os.listdir(folder)) if folder.exists() else []


def check_ended(storage: Storage, study: Study) -> list[FrozenTrial]:
    """Check that the study has all its trials, each ended at its rung or last epoch, and no file; return the trials."""
    trials, halving = trials_of(storage), halving_of(study)
    assert halving is not None
    assert [trial.number for trial in trials] == list(range(study.search.trials))
    for trial in trials:
        assert trial.state.is_finished()
        assert FROZEN not in trial.system_attrs
        if trial.state == FAIL:
            continue
        epochs = config_of(study, trial.params).training.epochs
        length = len(trial.system_attrs[CURVE]["val_loss"])
        assert list(trial.intermediate_values) == list(range(1, length + 1))
        assert rungs_of(trial) == [rung for rung in halving.rungs(epochs) if rung <= length - (trial.state == COMPLETE)]
        if trial.state == PRUNED:
            assert length == rungs_of(trial)[-1]
        elif study.first_settings.training.patience is None:
            assert length == epochs
    assert running_trials(storage) == []
    assert files(storage) == []
    return trials


def check_curves(trials: Sequence[FrozenTrial], others: Sequence[FrozenTrial]) -> None:
    """Check that the trials have the same parameters, and curves that begin alike."""
    assert params(trials) == params(others)
    for curve, whole in zip(curves(trials), curves(others), strict=True):
        for metric, values in curve.items():
            assert values == pytest.approx(whole[metric][: len(values)], rel=1e-9)


def reason(events: Sequence[Event]) -> str:
    assert isinstance(events[-1], StudyEnded)
    return events[-1].reason


def notes(events: Sequence[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Note))


def set_study_state(storage: Storage, state: StudyState) -> None:
    set_state(storage, summary(storage, "tiny").study_id, state)


def join_study(storage: Storage, on_event: Callable[[Event], None] = lambda event: None) -> HalvingSearch:
    joined = join("tiny", storage, device="cpu", on_event=on_event, stop=threading.Event())
    assert isinstance(joined, HalvingSearch)
    return joined


def are_frozen(at_least: int = 1) -> Callable[[Event], bool]:
    """Return a condition that is true at the first event with so many frozen trials."""
    return lambda event: isinstance(event, FrozenTrials) and sum(count for _, count in event.counts) >= at_least


# --- Rungs ---


def test_half_of_the_trials_are_promoted_from_each_rung(
    recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    events = search(halving_study(search={"population": 12}), storage)
    trials = check_ended(storage, STUDY)
    assert reason(events) == "finished"
    assert numbers_at_rungs(trials) == [12, 6, 3]
    assert states(trials).count(COMPLETE) == 2
    check_curves(trials, unpruned)
    # Each rung's best trials were promoted.
    for rung, count in ((1, 6), (2, 3), (4, 2)):
        there = [trial for trial in trials if rung in rungs_of(trial)]
        best = sorted(there, key=lambda trial: (-trial.intermediate_values[rung], trial.number))[:count]
        assert {trial.number for trial in best} == {trial.number for trial in there if len(curve_of(trial)) > rung}
    assert max(recording.trained.values()) == 1
    assert sum(recording.trained.values()) == 12 + 6 + 2 * 3 + 2
    pruned = {number for event in events if isinstance(event, TrialsNotPromoted) for number in event.members}
    assert pruned == {trial.number for trial in trials if trial.state == PRUNED}
    for trial in trials:
        assert trial.value == curve_of(trial)[-1]


def curve_of(trial: FrozenTrial, metric: str = "val_accuracy") -> list[float]:
    values: list[float] = trial.system_attrs[CURVE][metric]
    return values


@pytest.mark.parametrize("population", [1, 5, slow(100)])
def test_populations_of_any_size(
    population: int, recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    search(halving_study(search={"population": population}), storage)
    trials = check_ended(storage, STUDY)
    check_curves(trials, unpruned)
    assert max(recording.trained.values()) == 1
    assert max(map(len, recording.populations)) <= population
    # Trials that were promoted before better ones came may exceed the fraction.
    first, second, third = numbers_at_rungs(trials)
    assert first == 12
    assert 6 <= second <= 9
    assert 3 <= third <= 6


def test_trials_drawn_at_random_are_promoted_too(storage: Storage) -> None:
    study = halving_study(search={"trials": 24, "population": 24, "random_share": 0.5})
    search(study, storage)
    trials = check_ended(storage, study)
    ranked = sorted(trials, key=lambda trial: -trial.intermediate_values[1])
    promoted = [trial for trial in trials if len(rungs_of(trial)) > 1]
    assert all(trial in promoted for trial in ranked[:6])
    assert any(trial in promoted for trial in ranked[12:])


def test_a_study_of_one_trial_completes_it(storage: Storage) -> None:
    study = halving_study(search={"trials": 1})
    search(study, storage)
    assert states(check_ended(storage, study)) == [COMPLETE]


def test_no_rung_lies_below_the_last_epoch(storage: Storage) -> None:
    study = halving_study(search={"rung": EPOCHS, "trials": 5})
    search(study, storage)
    assert states(check_ended(storage, study)) == [COMPLETE] * 5


# --- Metrics and scores ---


def test_val_loss_is_minimized(storage: Storage) -> None:
    study = halving_study(search={"metric": "val_loss", "population": 12})
    search(study, storage)
    trials = check_ended(storage, study)
    assert numbers_at_rungs(trials) == [12, 6, 3]
    promoted = sorted(curve_of(trial, "val_loss")[0] for trial in trials if len(rungs_of(trial)) > 1)
    assert promoted == sorted(curve_of(trial, "val_loss")[0] for trial in trials)[:6]
    assert all(trial.system_attrs[f"{RUNG}1"] == [curve_of(trial, "val_loss")[0]] for trial in trials)


def test_trials_are_ranked_by_their_best_epoch_so_far(storage: Storage) -> None:
    # Learning rates at which the loss jumps: the best epoch is often not the last one.
    lr = {"low": 1.0, "high": 10.0, "log": True}
    study = halving_study(
        optimizer={"lr": lr}, search={"score": "best", "metric": "val_loss", "rung": 3, "population": 12}
    )
    search(study, storage)
    trials = [trial for trial in check_ended(storage, study) if trial.state != FAIL]
    assert all(trial.system_attrs[f"{RUNG}3"] == [min(curve_of(trial, "val_loss")[:3])] for trial in trials)
    assert any(min(curve_of(trial, "val_loss")[:3]) < curve_of(trial, "val_loss")[2] for trial in trials)
    for trial in trials:  # a pruned trial has its last value, as in Optuna
        loss = curve_of(trial, "val_loss")
        assert trial.value == (min(loss) if trial.state == COMPLETE else loss[-1])


@pytest.mark.parametrize("sampler", ["tpe", slow("nsga2")])
def test_several_metrics_are_ranked_by_non_domination(sampler: str, storage: Storage) -> None:
    metrics = ["val_loss", "parameters", "seconds_per_epoch"]
    hidden = {"choices": [[4], [8], [16]]}
    study = halving_study(network={"hidden": hidden}, search={"metric": metrics, "sampler": sampler, "trials": 16})
    search(study, storage)
    trials = check_ended(storage, study)
    assert all(len(trial.values) == 3 for trial in trials)
    assert any(trial.state == PRUNED for trial in trials)
    for trial in trials:
        loss, parameters, seconds = trial.values
        assert (loss, parameters) == (
            curve_of(trial, "val_loss")[-1],
            {"[4]": 310, "[8]": 610, "[16]": 1210}[trial.params["hidden"]],
        )
        assert seconds > 0


def test_a_trial_that_no_other_dominates_is_promoted(storage: Storage) -> None:
    study = halving_study(network={"hidden": {"choices": [[4], [16]]}}, search={"metric": ["val_loss", "parameters"]})
    search(
        halving_study(
            network={"hidden": {"choices": [[4], [16]]}},
            search={"metric": ["val_loss", "parameters"], "population": 12},
        ),
        storage,
    )
    trials = check_ended(storage, study)
    points = {trial.number: trial.system_attrs[f"{RUNG}1"] for trial in trials}
    front = [
        number
        for number, (loss, size) in points.items()
        if not any(a <= loss and b <= size and (a, b) != (loss, size) for a, b in points.values())
    ]
    assert 0 < len(front) <= 6
    assert all(len(rungs_of(trials[number])) > 1 for number in front)


# --- Training settings ---


def test_early_stopping_before_a_rung_completes_a_trial(storage: Storage) -> None:
    lr = {"low": 1.0, "high": 20.0, "log": True}
    settings = {"optimizer": {"lr": lr}, "training": {"epochs": 12, "patience": 2}, "data": {"stratify": False}}
    study = halving_study(**settings, search={"rung": 3})
    search(study, storage)
    trials = check_ended(storage, study)
    early = [trial for trial in trials if trial.state == COMPLETE and len(curve_of(trial)) < 12]
    assert early
    assert any(trial.state == PRUNED for trial in trials)
    for trial in trials:
        accuracy = curve_of(trial)
        since_best = len(accuracy) - 1 - accuracy.index(max(accuracy))
        assert (since_best == 2) if trial in early else since_best < 2 or trial.state == COMPLETE


def test_searched_epochs_end_trials_before_their_rungs(recording: type[RecordingTrainer], storage: Storage) -> None:
    study = halving_study(training={"epochs": {"choices": [1, 3, 5]}}, search={"trials": 15}, data={"stratify": False})
    search(study, storage)
    trials = check_ended(storage, study)
    assert {trial.params["epochs"] for trial in trials} == {1, 3, 5}
    assert all(trial.state == COMPLETE for trial in trials if trial.params["epochs"] == 1)
    assert {len(curve_of(trial)) for trial in trials if trial.state == COMPLETE} == {1, 3, 5}
    assert max(recording.trained.values()) == 1


def test_architectures_and_batch_sizes_are_trained_and_judged_together(
    recording: type[RecordingTrainer], storage: Storage, new_storage: Callable[[], Storage]
) -> None:
    changes: dict[str, Any] = {"network": SIZES, "training": {"batch_size": {"choices": [50, 60]}}}
    study = halving_study(**changes, search={"trials": 14})
    search(study, storage)
    trials = check_ended(storage, study)
    assert max(recording.trained.values()) == 1
    unpruned = new_storage()
    search(halving_study(**changes, search={"trials": 14, "pruner": "none"}), unpruned)
    check_curves(trials, trials_of(unpruned))
    for key in ("hidden", "batch_size"):
        assert any(len({trials[number].params[key] for number in each}) > 1 for each in recording.populations)


def test_no_rung_lies_within_the_warm_up(storage: Storage) -> None:
    study = halving_study(optimizer={"warmup": 2.5})
    search(study, storage)
    trials = check_ended(storage, study)
    assert {rung for trial in trials for rung in rungs_of(trial)} == {4}


def test_no_rung_lies_within_the_rise_of_onecycle() -> None:
    """And a schedule without warm-up needs none."""
    study = halving_study(optimizer={"schedule": "onecycle", "pct_start": 0.5})
    assert halving_of(study).first == max(study.search.rung, math.ceil(max_epochs(study) / 2) + 1)


@pytest.mark.parametrize(
    ("changes", "first", "lower"),
    [
        ({"search": {"rung": EPOCHS}}, 5, "search.rung"),
        (
            {"optimizer": {"schedule": "onecycle", "pct_start": {"low": 0.1, "high": 1.0}}},
            6,
            "optimizer.warmup or optimizer.pct_start",
        ),
    ],
)
def test_where_no_rung_is_before_the_last_epoch_a_line_says_so(
    changes: dict[str, Any], first: int, lower: str, storage: Storage
) -> None:
    study = halving_study(**changes)
    line = f"halving prunes no trial: its first rung, epoch {first}, is not before the last epoch, 5; "
    line += f"raise training.epochs, or lower {lower}"
    assert line in notes(search(study, storage))
    assert line in check_report(study, "cpu").splitlines()


# --- Limits and failures ---


def limited(**limits: float) -> Study:
    return halving_study(search={**limits, "trials": 40})


def test_after_the_timeout_frozen_trials_continue_and_no_trial_is_sampled(
    recording: type[RecordingTrainer], storage: Storage
) -> None:
    submit(limited(timeout=3600.0), storage)
    joined = join_study(storage)
    joined.step()
    joined.step()
    count = len(trials_of(storage))
    assert states(trials_of(storage)).count(RUNNING) > 0
    joined.began -= datetime.timedelta(hours=2)
    while joined.step():
        pass
    assert joined.end_if_done() == "timeout"
    trials = trials_of(storage)
    assert len(trials) == count < 40
    assert all(trial.state in (COMPLETE, PRUNED) for trial in trials)
    assert COMPLETE in states(trials)
    assert max(recording.trained.values()) == 1


def test_patience_counts_from_the_first_trial_that_completes(storage: Storage) -> None:
    # Without a completed trial nothing is a best trial yet, however many were pruned.
    events = search(limited(patience=1), storage)
    trials = trials_of(storage)
    assert reason(events) == "no improvement"
    assert len(trials) < 40
    assert all(trial.state in (COMPLETE, PRUNED) for trial in trials)
    best = max((trial for trial in trials if trial.state == COMPLETE), key=lambda trial: (trial.value, -trial.number))
    assert any(trial.number > best.number for trial in trials)


def test_patience_counts_completed_trials_only(storage: Storage) -> None:
    """Of 40 trials 20, 10 and 5 are promoted. 35 trials are pruned, most of them after one epoch."""
    events = search(limited(patience=8), storage)
    trials = trials_of(storage)
    assert states(trials).count(COMPLETE) < 8
    assert (reason(events), len(trials)) == ("finished", 40)
    text = "search.patience = 8 counts completed trials, and with halving about 5 of 40 complete: it will not end"
    assert text in notes(events)


def test_the_time_of_a_trial_is_that_of_all_its_populations(
    recording: type[RecordingTrainer], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent: dict[int, list[float]] = {}
    train = RecordingTrainer.train

    def spy(self: RecordingTrainer, members: Sequence[Member], spent_s: float = 0) -> Any:
        spent.setdefault(members[0].epoch, []).append(spent_s)
        return train(self, members, spent_s)

    monkeypatch.setattr(recording, "train", spy)
    study = halving_study(search={"trial_timeout": 1e6})
    search(study, storage)
    check_ended(storage, study)
    assert set(spent[0]) == {0.0}
    assert 0 < min(spent[1]) <= max(spent[1]) < min(spent[2]) + max(spent[1])
    assert min(spent[4]) > min(spent[1])


def test_a_trial_beyond_its_timeout_fails_in_a_later_population(
    recording: type[RecordingTrainer], storage: Storage
) -> None:
    recorded = recording.train

    def late_train(self: RecordingTrainer, members: Sequence[Member], spent_s: float = 0) -> Any:
        # The first populations took almost all of the time.
        return recorded(self, members, spent_s + (3600 if members[0].epoch == 2 else 0))

    recording.train = late_train  # type: ignore[method-assign]
    study = halving_study(search={"trial_timeout": 3600.0, "retries": 1})
    search(study, storage)
    trials = trials_of(storage)
    assert len(trials) == 12
    failed = [trial for trial in trials if trial.state == FAIL]
    assert failed
    assert all(trial.user_attrs["reason"].startswith("took longer than search.trial_timeout") for trial in failed)
    assert all(rungs_of(trial) == [1, 2] for trial in failed)
    assert {state for state in states(trials) if state != FAIL} == {PRUNED}


def test_a_retry_after_a_timeout_continues_and_has_the_whole_time(
    recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    recorded = recording.train
    late: list[int] = []
    spent: list[float] = []

    def late_train(self: RecordingTrainer, members: Sequence[Member], spent_s: float = 0) -> Any:
        numbers = [member.number for member in members]
        if members[0].epoch == 2 and not late:
            late.extend(numbers)
            return recorded(self, members, spent_s + 3600)
        if members[0].epoch == 2 and set(numbers) <= set(late):
            spent.append(spent_s)
        return recorded(self, members, spent_s)

    recording.train = late_train  # type: ignore[method-assign]
    study = halving_study(search={"trial_timeout": 3600.0}, training={"checkpoint": 1})
    search(study, storage)
    check_curves(check_ended(storage, study), unpruned)
    assert spent == [0.0] * len(late)
    assert max(recording.trained.values()) == 1


class MistakeError(Exception):
    """An exception of a user's network."""


def test_a_population_that_raises_at_a_later_rung_continues_alone(
    recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    raised: list[list[int]] = []

    def once(numbers: Collection[int], epoch: int) -> None:
        if epoch == 3 and not raised:
            raised.append(sorted(numbers))
            raise MistakeError

    recording.before = staticmethod(once)
    events = search(STUDY, storage)
    trials = check_ended(storage, STUDY)
    check_curves(trials, unpruned)
    assert "requeued, to be trained alone" in notes(events)
    retried = [trial for trial in trials if "hpo:attempts" in trial.system_attrs]
    assert [trial.number for trial in retried] == raised[0]
    assert FAIL not in states(trials)
    alone = [numbers for numbers in recording.populations if set(numbers) & set(raised[0])]
    after = alone[alone.index(tuple(raised[0])) + 1 :]
    assert after
    assert all(len(numbers) == 1 for numbers in after)
    assert max(recording.trained.values()) == 1


def test_a_trial_that_always_raises_at_a_later_rung_fails_alone(
    recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    best = max(unpruned, key=lambda trial: trial.intermediate_values[1]).number

    def always(numbers: Collection[int], epoch: int) -> None:
        if epoch == 2 and best in numbers:
            raise MistakeError

    recording.before = staticmethod(always)
    search(STUDY, storage)
    trials = check_ended(storage, STUDY)
    assert [trial.number for trial in trials if trial.state == FAIL] == [best]
    assert len(trials[best].system_attrs["hpo:attempts"]) == 2
    assert COMPLETE in states(trials)


def test_training_that_always_raises_ends_the_search_and_requeues_frozen_trials(
    recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    def always(numbers: Collection[int], epoch: int) -> None:
        if epoch == 2:
            raise MistakeError

    recording.before = staticmethod(always)
    with pytest.raises(TrainingError, match="same exception in 3 populations in a row"):
        search(STUDY, storage)
    assert RUNNING not in states(trials_of(storage))
    recording.before = staticmethod(lambda numbers, epoch: None)
    search(STUDY, storage)
    trials = check_ended(storage, STUDY)
    check_curves([t for t in trials if t.state != FAIL], [unpruned[t.number] for t in trials if t.state != FAIL])


def test_trials_above_the_limit_of_parameters_are_left_out(storage: Storage) -> None:
    hidden = {"choices": [[4], [8], [16]]}
    study = halving_study(network={"hidden": hidden}, search={"limits": {"parameters": 700}, "trials": 15})
    search(study, storage)
    trials = trials_of(storage)
    assert len(trials) == 15
    over = [trial for trial in trials if trial.params["hidden"] == "[16]"]
    assert over
    assert all(trial.state == PRUNED and not trial.intermediate_values for trial in over)
    assert COMPLETE in states(trials)


@pytest.mark.parametrize("epoch", [slow(1), 2, 3, slow(4)])
def test_members_that_diverge_fail(
    epoch: int, recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    best = sorted(unpruned, key=lambda trial: -trial.intermediate_values[1])[:2]
    recording.diverging |= {trial.number: epoch for trial in best}
    search(STUDY, storage)
    trials = check_ended(storage, STUDY)
    assert {trial.number for trial in trials if trial.state == FAIL} == {trial.number for trial in best}
    assert COMPLETE in states(trials)
    assert max(recording.trained.values()) == 1


def test_a_study_whose_trials_all_fail_ends(storage: Storage) -> None:
    lr = {"low": 1e30, "high": 1e35, "log": True}
    study = halving_study(optimizer={"lr": lr}, training={"precision": "float32"})
    events = search(study, storage)
    assert reason(events) == "finished"
    assert states(check_ended(storage, study)) == [FAIL] * 12


# --- Search spaces, samplers, other trials ---


def test_repeats_are_promoted_together_by_their_mean(recording: type[RecordingTrainer], storage: Storage) -> None:
    study = halving_study(search={"repeats": 2, "trials": 16, "population": 16, "metric": "val_loss"})
    search(study, storage)
    trials = check_ended(storage, study)
    pairs = list(zip(trials[::2], trials[1::2], strict=True))
    assert all(rungs_of(one) == rungs_of(two) for one, two in pairs)
    assert numbers_at_rungs(trials) == [16, 8, 4]
    means = sorted(pairs, key=lambda pair: sum(curve_of(trial, "val_loss")[0] for trial in pair))
    assert {pair[0].number for pair in means[:4]} == {one.number for one, _ in pairs if len(rungs_of(one)) > 1}
    assert max(recording.trained.values()) == 1


def test_repeats_that_fail_do_not_count(recording: type[RecordingTrainer], storage: Storage) -> None:
    recording.diverging |= {0: 1, 5: 1, 6: 2}
    study = halving_study(search={"repeats": 2, "trials": 16, "population": 3})
    search(study, storage)
    trials = check_ended(storage, study)
    assert {trial.number for trial in trials if trial.state == FAIL} >= {0, 5}
    for one, two in zip(trials[::2], trials[1::2], strict=True):
        assert FAIL in (one.state, two.state) or rungs_of(one) == rungs_of(two)
    assert COMPLETE in states(trials)


@pytest.mark.parametrize("sampler", [slow("tpe"), "cmaes", slow("qmc"), slow("gp")])
def test_samplers_of_one_metric(sampler: str, storage: Storage) -> None:
    changes: dict[str, Any] = {"optimizer": {"lr": LR, "weight_decay": DECAY}, "training": {"epochs": 3}}
    study = halving_study(**changes, search={"sampler": sampler, "trials": 16})
    search(study, storage)
    trials = check_ended(storage, study)
    assert len({trial.params["lr"] for trial in trials}) == 16


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_finite_space_is_exhausted(sampler: str, storage: Storage) -> None:
    study = halving_study(optimizer={"lr": {"choices": [0.01, 0.03, 0.1, 0.3, 1.0]}}, search={"sampler": sampler})
    events = search(study, storage)
    assert reason(events) == "space exhausted"
    trials = trials_of(storage)
    assert {trial.params["lr"] for trial in trials} == {0.01, 0.03, 0.1, 0.3, 1.0}
    assert numbers_at_rungs(trials)[0] == len(trials) == 5
    assert all(trial.state in (COMPLETE, PRUNED) for trial in trials)
    assert COMPLETE in states(trials)


def test_configurations_may_repeat_and_points_come_first(storage: Storage) -> None:
    lr = {"choices": [0.01, 0.1, 1.0]}
    study = halving_study(optimizer={"lr": lr}, search={"repeat": True, "points": [{"lr": 1.0}, {"lr": 0.1}]})
    search(study, storage)
    trials = check_ended(storage, study)
    assert [trial.params["lr"] for trial in trials[:2]] == [1.0, 0.1]


def test_repeats_of_the_last_configuration_of_a_finite_space_are_awaited(storage: Storage) -> None:
    study = halving_study(
        optimizer={"lr": {"choices": [0.01, 0.1, 1.0]}}, search={"repeats": 3, "trials": 12, "population": 2}
    )
    assert reason(search(study, storage)) == "space exhausted"
    trials = trials_of(storage)
    assert len(trials) == 9
    for start in range(0, 9, 3):
        assert len({tuple(rungs_of(trial)) for trial in trials[start : start + 3]}) == 1


def test_a_study_starts_from_another_one(storage: Storage) -> None:
    search(halving_study(), storage)
    sampled = {"sampler": "tpe", "start_from": ["tiny"], "trials": 8}
    study = study_of(name="next", training={"epochs": EPOCHS}, search={**STUDY.resolved()["search"], **sampled})
    search(study, storage)
    trials = trials_of(storage, "next")
    assert len(trials) == 8
    assert numbers_at_rungs(trials)[0] == 8
    assert all(trial.state in (COMPLETE, PRUNED) for trial in trials)


def test_enqueued_trials_climb_the_rungs(storage: Storage) -> None:
    submit(STUDY, storage, LaunchOptions(enqueue=['{"lr": 0.9}', '{"lr": 0.5}']))
    plain = optuna.load_study(study_name="tiny", storage=storage.location.full_url)
    plain.enqueue_trial({"lr": 0.8})
    plain.enqueue_trial({"lr": 7.0})
    plain.enqueue_trial({})
    search(STUDY, storage)
    trials = check_ended(storage, STUDY)
    assert [trial.params.get("lr") for trial in trials[:3]] == [0.9, 0.5, 0.8]
    assert [trial.number for trial in trials if trial.state == FAIL] == [3]
    assert numbers_at_rungs(trials)[0] == 11


def test_running_trials_of_plain_optuna_do_not_hold_up_the_end(storage: Storage) -> None:
    submit(STUDY, storage)
    plain = optuna.load_study(study_name="tiny", storage=storage.location.full_url)
    asked = plain.ask({"lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)})
    search(STUDY, storage)
    trials = trials_of(storage)
    assert trials[asked.number].state == RUNNING
    rest = [trial for trial in trials if trial.number != asked.number]
    assert len(rest) == 11
    assert all(trial.state in (COMPLETE, PRUNED) for trial in rest)
    assert numbers_at_rungs(rest)[0] == 11


# --- Extension ---


def test_trials_of_an_extension_are_judged_with_the_earlier_ones(
    recording: type[RecordingTrainer], storage: Storage
) -> None:
    search(STUDY, storage)
    before = check_ended(storage, STUDY)
    longer = halving_study(search={"trials": 24, "population": 12})
    search(longer, storage, extend=True)
    trials = check_ended(storage, longer)
    assert trials[:12] == before
    assert max(recording.trained.values()) == 1
    # Only new trials among the best half of all are promoted.
    ranked = sorted(trials, key=lambda trial: (-trial.intermediate_values[1], trial.number))
    new = {trial.number for trial in ranked[:12] if trial.number >= 12}
    assert {trial.number for trial in trials[12:] if len(rungs_of(trial)) > 1} == new


def test_an_extended_study_keeps_the_pruner_that_was_chosen_for_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruners, "MIN_TRIALS", 8)
    monkeypatch.setattr(pruners, "EPOCHS_PER_FIRST_RUNG", 3)

    def study(trials: int, name: str = "tiny") -> Study:
        return study_of(name=name, training={"epochs": 3}, search={"trials": trials, "pruner": "auto", "rung": 1})

    assert "pruner: none (4 trials of 3 epochs; " in notes(search(study(4), storage))
    events = search(study(8), storage, extend=True)
    assert "pruner: none (chosen when the study began)" in notes(events)
    assert states(trials_of(storage)) == [COMPLETE] * 8
    assert "pruner: halving (8 trials of 3 epochs)" in notes(search(study(8, "other"), storage))
    assert "pruner: halving (chosen when the study began)" in notes(search(study(9, "other"), storage, extend=True))
    for name, chosen in (("tiny", "none"), ("other", "halving")):
        for trials in (4, 9):
            report = check_report(study(trials, name), "cpu", storage_url=storage.location.full_url)
            assert f"\npruner: {chosen} (auto: chosen when the study began)" in report
    report = check_report(study(8, "new"), "cpu", storage_url=storage.location.full_url)
    assert "\npruner: halving (auto: 8 trials of 3 epochs), rungs at epoch" in report


@pytest.mark.parametrize("pruner", [slow("none"), "hyperband"])
def test_the_pruner_changes_from_one_launch_to_the_next(
    pruner: str, recording: type[RecordingTrainer], storage: Storage
) -> None:
    for count, name in ((6, pruner), (12, "halving"), (16, pruner), (20, "halving")):
        study = halving_study(search={"trials": count, "pruner": name})
        assert reason(search(study, storage, extend=True)) == "finished"
    trials = trials_of(storage)
    assert [bool(rungs_of(trial)) for trial in trials] == [False] * 6 + [True] * 6 + [False] * 4 + [True] * 4
    assert all(trial.state in (COMPLETE, PRUNED) for trial in trials)
    assert max(recording.trained.values()) == 1
    assert files(storage) == []


@pytest.mark.parametrize(
    "change", [slow({"pruner": "none"}), {"pruner": "hyperband"}, {"rung": 2}, slow({"factor": 4})]
)
def test_unfinished_trials_continue_under_another_pruner_or_at_other_rungs(
    change: dict[str, Any], recording: type[RecordingTrainer], storage: Storage
) -> None:
    search(STUDY, storage, stop_at=are_frozen(8))
    assert WAITING in states(trials_of(storage))
    changed = halving_study(search=change)
    search(changed, storage, extend=True, stop_at=after_epochs(4))
    search(STUDY, storage, extend=True)
    trials = trials_of(storage)
    assert len(trials) == 12
    assert all(trial.state in (COMPLETE, PRUNED) for trial in trials)
    assert max(recording.trained.values()) == 1
    assert files(storage) == []


# --- Pause, stop, death ---


@pytest.mark.parametrize("epochs", [1, slow(2), 4, slow(6), 7])
def test_an_interrupted_search_continues_without_training_an_epoch_again(
    epochs: int,
    recording: type[RecordingTrainer],
    storage: Storage,
    other: Storage,
    unpruned: Sequence[FrozenTrial],
) -> None:
    assert reason(search(STUDY, storage, stop_at=after_epochs(epochs))) == "interrupted"
    assert not {RUNNING, FAIL} & set(states(trials_of(storage)))
    assert FROZEN not in {key for trial in trials_of(storage) for key in trial.system_attrs}
    search(STUDY, other)
    check_curves(check_ended(storage, STUDY), unpruned)
    assert max(recording.trained.values()) == 1


@pytest.mark.parametrize(
    "condition", [are_frozen(), slow(are_frozen(8)), lambda event: isinstance(event, PopulationStarted)]
)
def test_a_search_stopped_between_populations_continues(
    condition: Callable[[Event], bool],
    recording: type[RecordingTrainer],
    storage: Storage,
    unpruned: Sequence[FrozenTrial],
) -> None:
    for _ in range(2):
        seen = itertools.count()
        search(STUDY, storage, stop_at=lambda event, seen=seen: condition(event) and next(seen) == 2)  # type: ignore[misc]
        assert RUNNING not in states(trials_of(storage))
    search(STUDY, storage)
    check_curves(check_ended(storage, STUDY), unpruned)
    assert max(recording.trained.values()) == 1


@pytest.mark.parametrize("checks", [12, slow(13), slow(14)])
def test_a_stop_at_any_moment_loses_no_state(
    checks: int, recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    for left in range(checks, checks + 15, 3):
        stop = StopAfter(left)
        launch(STUDY, storage, LaunchOptions(device="cpu"), on_event=lambda event: None, stop=stop)
        assert RUNNING not in states(trials_of(storage))
    search(STUDY, storage)
    check_curves(check_ended(storage, STUDY), unpruned)
    assert max(recording.trained.values()) == 1


def test_populations_are_full_after_an_interruption(
    recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    study = halving_study(search={"rung": 2, "trials": 24})
    search(study, storage, stop_at=after_epochs(5))
    assert [len(numbers) for numbers in recording.populations] == [4, 4, 4]
    interrupted = recording.populations[-1]
    assert set(interrupted) != set(range(4))  # the others of the first eight are frozen at the rung
    recording.populations.clear()
    search(study, storage)
    trials = check_ended(storage, study)
    assert max(recording.trained.values()) == 1
    assert recording.populations[0] == interrupted
    first_rung = [numbers for numbers in recording.populations if max(numbers) >= 8 and numbers[0] >= 8]
    while_sampling = recording.populations[: recording.populations.index(max(first_rung))]
    assert {len(numbers) for numbers in while_sampling} == {4}
    assert states(trials).count(COMPLETE) >= 1


def test_new_trials_join_waiting_ones_that_start_at_the_first_epoch(
    recording: type[RecordingTrainer], storage: Storage
) -> None:
    """Waiting trials in the middle of their training are a population of their own."""
    study = halving_study(search={"pruner": "none", "trials": 14})
    search(study, storage, stop_at=after_epochs(EPOCHS + 2))
    assert [len(numbers) for numbers in recording.populations] == [4, 4]
    recording.populations.clear()
    smaller = halving_study(search={"pruner": "none", "trials": 14, "population": 3})
    search(smaller, storage, extend=True)
    assert recording.populations == [(4, 5, 6), (7,), (8, 9, 10), (11, 12, 13)]


def test_without_checkpoints_frozen_trials_start_again(
    recording: type[RecordingTrainer], storage: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    study = halving_study(training={"checkpoint": "none"})
    search(study, storage, stop_at=are_frozen(8))
    assert files(storage) == []
    search(study, storage)
    check_curves(check_ended(storage, study), unpruned)
    assert max(recording.trained.values()) == 2


@pytest.mark.parametrize("condition", [are_frozen(8), after_epochs(4)])
def test_a_paused_study_continues_from_the_states(
    condition: Callable[[Event], bool],
    recording: type[RecordingTrainer],
    storage: Storage,
    other: Storage,
    unpruned: Sequence[FrozenTrial],
) -> None:
    def pause(event: Event) -> bool:
        if condition(event):
            set_study_state(other, StudyState.PAUSED)
        return False

    assert reason(search(STUDY, storage, stop_at=pause)) == "paused"
    assert RUNNING not in states(trials_of(storage))
    set_study_state(other, StudyState.OPEN)
    search(STUDY, other)
    check_curves(check_ended(storage, STUDY), unpruned)
    assert max(recording.trained.values()) == 1


def test_a_study_paused_and_resumed_within_an_epoch_continues(
    recording: type[RecordingTrainer], storage: Storage, other: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    paused = after_epochs(4)

    def pause(event: Event) -> bool:
        if paused(event):
            set_study_state(other, StudyState.PAUSED)
            set_study_state(other, StudyState.OPEN)
        return False

    assert reason(search(STUDY, storage, stop_at=pause)) == "finished"
    check_curves(check_ended(storage, STUDY), unpruned)


def test_the_frozen_trials_of_a_stopped_study_continue(
    recording: type[RecordingTrainer], storage: Storage, other: Storage
) -> None:
    condition = are_frozen(8)

    def stop(event: Event) -> bool:
        if condition(event):
            set_study_state(other, StudyState.STOPPED)
        return False

    study = halving_study(search={"trials": 20})
    assert reason(search(study, storage, stop_at=stop)) == "stopped"
    trials = trials_of(storage)
    assert len(trials) < 20
    assert all(trial.state in (COMPLETE, PRUNED) for trial in trials)
    assert COMPLETE in states(trials)
    set_study_state(other, StudyState.OPEN)
    search(study, storage)
    assert max(recording.trained.values()) == 1
    check_ended(storage, study)


@pytest.mark.parametrize(("rung", "condition"), [(1, are_frozen(8)), (1, after_epochs(4)), (3, after_epochs(5))])
def test_a_study_deleted_while_trials_are_frozen_leaves_nothing(
    rung: int, condition: Callable[[Event], bool], storage: Storage, other: Storage
) -> None:
    def remove(event: Event) -> bool:
        if condition(event):
            delete(other, "tiny")
        return False

    assert reason(search(halving_study(search={"rung": rung}), storage, stop_at=remove)) == "deleted"
    assert study_names(storage) == []
    assert files(storage) == []


def test_frozen_trials_of_a_dead_worker_continue_without_a_count_against_them(
    recording: type[RecordingTrainer], storage: Storage, other: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    study = halving_study(training={"checkpoint": 1})
    submit(study, storage)
    dead = join_study(other)
    other.worker = Worker("elsewhere", 1, 0.0, "another machine")
    for _ in range(3):
        dead.step()
    frozen = {trial.number for trial in running_trials(storage) if trial.frozen}
    assert len(frozen) >= 5
    age_heartbeats(storage)
    events = search(study, storage)
    assert f"{len(frozen)} orphaned trials requeued: the worker that trained them is dead" in notes(events)
    trials = check_ended(storage, study)
    check_curves(trials, unpruned)
    assert not any("hpo:attempts" in trial.system_attrs for trial in trials)
    assert max(recording.trained.values()) == 1


def test_states_without_time_at_the_rung_are_written_in_a_later_epoch(
    recording: type[RecordingTrainer], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With checkpoint = "auto", a killed worker loses no frozen trial once there was time to write its state."""
    there_is_time = False
    monkeypatch.setattr(TimeBudget, "permits", lambda self, seconds=0.0: there_is_time)
    submit(halving_study(search={"rung": 2}), storage)
    dead = join_study(storage)
    dead.step()
    assert sorted(dead._frozen) == [0, 1, 2, 3]
    assert files(storage) == []

    def start(numbers: Collection[int], epoch: int) -> None:
        nonlocal there_is_time
        there_is_time = epoch == 1

    recording.before = staticmethod(start)
    dead.step()
    assert len(dead._frozen) == 8
    assert all(dead.checkpoints.exists(number) for number in range(4))


# --- Several workers ---


def run_in_turns(searches: Sequence[HalvingSearch]) -> None:
    """Let the searches take turns until the study has ended."""
    for _ in range(200):
        worked = [each.step() for each in searches]
        if not any(worked) and any([each.end_if_done() for each in searches]):
            return
    raise AssertionError(f"the study does not end: {states(trials_of(searches[0].storage))}")


@pytest.mark.parametrize("checkpoint", [slow("none"), 1])
def test_two_workers_share_the_rungs(
    checkpoint: str | int,
    recording: type[RecordingTrainer],
    storage: Storage,
    other: Storage,
    unpruned: Sequence[FrozenTrial],
) -> None:
    study = halving_study(training={"checkpoint": checkpoint})
    submit(study, storage)
    run_in_turns([join_study(storage), join_study(other)])
    trials = check_ended(storage, study)
    check_curves(trials, unpruned)
    first, second, third = numbers_at_rungs(trials)
    assert (first, 6 <= second <= 9, 3 <= third <= 6) == (12, True, True)
    assert max(recording.trained.values()) == 1
    # The best trial of all at the first rung is promoted, whichever worker it is of.
    best = max(trials, key=lambda trial: (trial.intermediate_values[1], -trial.number))
    assert len(rungs_of(best)) > 1


def test_a_worker_takes_over_the_promoted_trials_of_another(
    recording: type[RecordingTrainer],
    storage: Storage,
    other: Storage,
    unpruned: Sequence[FrozenTrial],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    real = ArtifactFolder.open_reader
    monkeypatch.setattr(ArtifactFolder, "open_reader", lambda self, name: (read.append(name), real(self, name))[1])
    study = halving_study(training={"checkpoint": 1})
    submit(study, storage)
    busy, free = join_study(storage), join_study(other)
    for _ in range(3):
        busy.step()
    while free.step():
        pass
    assert free.end_if_done() is None
    frozen = [trial for trial in running_trials(storage) if trial.frozen]
    assert {trial.number for trial in frozen} <= set(busy._frozen)
    assert read
    assert max(Counter(read).values()) == 1  # a state that is taken over is read once
    run_in_turns([free, busy])
    check_curves(check_ended(storage, study), unpruned)
    assert max(recording.trained.values()) == 1


def test_trials_that_another_process_requeues_continue_there(
    recording: type[RecordingTrainer], storage: Storage, other: Storage, unpruned: Sequence[FrozenTrial]
) -> None:
    study = halving_study(training={"checkpoint": 1})
    submit(study, storage)
    slow, second = join_study(storage), join_study(other)
    slow.step()
    slow.step()
    assert slow._frozen
    requeued = [trial for trial in running_trials(storage) if trial.number % 2]
    assert requeue_orphaned(other, requeued)[0] == {trial.number for trial in requeued}
    run_in_turns([second, slow])
    check_curves(check_ended(storage, study), unpruned)
    assert max(recording.trained.values()) == 1
    slow.close()
    assert files(storage) == []


def test_a_worker_that_lost_its_frozen_trials_leaves_no_files(storage: Storage, other: Storage) -> None:
    study = halving_study(training={"checkpoint": 1})
    submit(study, storage)
    slow = join_study(storage)
    slow.step()
    slow.step()
    assert requeue_orphaned(other, running_trials(other))[0]
    search(study, other)
    check_ended(storage, study)
    slow.close()
    check_ended(storage, study)
    assert not slow.step()


def test_the_sampler_of_a_later_launch_knows_completed_trials_as_such(storage: Storage) -> None:
    study = halving_study(search={"sampler": "tpe", "trials": 24})
    search(study, storage)
    trials = check_ended(storage, study)
    # A tenth of the trials, rounded up, is good: completed ones come first, although all have passed rungs.
    best = sorted((trial for trial in trials if trial.state == COMPLETE), key=lambda trial: -curve_of(trial)[-1])[:3]
    assert len(best) == 3
    good, others = join_study(storage).history._observations.split(["lr"])
    assert sorted(good["lr"]) == sorted(trial.params["lr"] for trial in best)
    assert len(others["lr"]) == 21
