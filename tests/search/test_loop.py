"""The search loop: training, learning curves, pruning, failures of single members, events and precision."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from tiny import (
    DECAY,
    StopAfter,
    after_epochs,
    are_close,
    check_whole,
    curves,
    params,
    search,
    states,
    study_of,
    trials_of,
)

from hpo.data import load_split
from hpo.errors import HpoError, StorageError
from hpo.search.events import EpochEnded, Event, Note, PopulationEnded, PopulationStarted, StudyEnded, StudyStarted
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.space import config_of
from hpo.storage import Storage, load_study
from hpo.studyfile import Study
from hpo.training.device_data import to_device
from hpo.training.population import train
from hpo.training.stack import Member

NewStorage = Callable[[], Storage]


def check_events(events: Sequence[Event], trials: Sequence[FrozenTrial]) -> None:
    """Check the order of population and epoch events, and their counts against the states of the stored trials."""
    events = [event for event in events if not isinstance(event, Note)]
    started, ended = events[0], events[-1]
    assert isinstance(started, StudyStarted)
    assert isinstance(ended, StudyEnded)
    completed, pruned, failed = started.finished, started.pruned, started.failed
    population: PopulationStarted | None = None
    for event in events[1:-1]:
        if isinstance(event, PopulationStarted):
            assert population is None
            population, epoch, left = event, 0, len(event.members)
            assert 0 < left <= started.population
        elif isinstance(event, EpochEnded):
            assert population is not None
            assert (event.epoch, event.epochs) == (epoch + 1, population.epochs)
            assert event.left <= left
            epoch, left = event.epoch, event.left
        else:
            assert isinstance(event, PopulationEnded)
            assert population is not None
            ended_members = event.completed + event.pruned + event.failed
            not_trainable = epoch == 0 and event.failed == left
            assert ended_members == len(population.members) - (0 if not_trainable else left)
            completed, pruned, failed = completed + event.completed, pruned + event.pruned, failed + event.failed
            population = None
    assert (ended.completed, ended.pruned, ended.failed) == (completed, pruned, failed)
    found = states(trials)
    assert [found.count(s) for s in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)] == [
        completed,
        pruned,
        failed,
    ]


def train_alone(study: Study, trial: FrozenTrial) -> dict[str, list[float]]:
    """Train the trial's parameters and seed without other members; return the learning curve."""
    split = to_device(load_split(study), study.data.split_seed, torch.device("cpu"))
    member = Member(trial.number, config_of(study, trial.params), trial.user_attrs["seed"])
    curve: dict[str, list[float]] = {}
    for result in train([member], split, "float64"):
        for metric, value in result.metrics[trial.number].items():
            curve.setdefault(metric, []).append(value)
    return curve


def test_trials_are_grouped_by_epochs_and_trained_by_their_parameters(storage: Storage) -> None:
    study = study_of(
        network={"hidden": {"choices": [[8], [6, 4], []]}, "dropout": {"low": 0.0, "high": 0.4}},
        optimizer={"kind": {"choices": ["sgd", "momentum", "adam"]}, "momentum": {"low": 0.5, "high": 0.95}},
        training={"batch_size": {"low": 30, "high": 60, "step": 15}, "epochs": {"low": 1, "high": 3, "log": True}},
        search={"trials": 10, "population": 10},
    )
    events = search(study, storage)
    trials = trials_of(storage)
    check_whole(trials, 10)
    check_events(events, trials)
    for trial in trials:
        epochs = trial.params["epochs"]
        assert list(trial.intermediate_values) == list(range(1, epochs + 1))
        assert are_close(curves([trial]), [train_alone(study, trial)])
        assert isinstance(trial.params["batch_size"], int)
        assert trial.params["batch_size"] in (30, 45, 60)
        assert isinstance(json.loads(trial.params["hidden"]), list)
    assert len({trial.params["optimizer.kind"] for trial in trials}) > 1
    assert len({trial.params["epochs"] for trial in trials}) > 1
    groups = [event.members for event in events if isinstance(event, PopulationStarted)]
    assert sorted(number for group in groups for number in group) == list(range(10))
    assert [len({trials[number].params["epochs"] for number in group}) for group in groups] == [1] * len(groups)
    assert len(groups) == len({trial.params["epochs"] for trial in trials})


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
@pytest.mark.parametrize("score", ["last", "best"])
def test_score_is_the_last_or_best_value_of_the_metric(metric: str, score: str, storage: Storage) -> None:
    study = study_of(
        optimizer={"lr": {"low": 0.5, "high": 3.0}},
        training={"epochs": 4},
        search={"metric": metric, "score": score, "population": 6},
    )
    events = search(study, storage)
    stored = load_study(storage, "tiny")
    best = min if metric == "val_loss" else max
    assert stored.direction.name == ("MINIMIZE" if metric == "val_loss" else "MAXIMIZE")
    for trial, curve in zip(stored.trials, curves(stored.trials), strict=True):
        assert set(curve) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
        values = curve[metric]
        assert trial.intermediate_values == dict(enumerate(values, start=1))
        if score == "best":
            assert trial.value == best(values)
            assert trial.user_attrs["score_epoch"] == values.index(best(values)) + 1
        else:
            assert trial.value == values[-1]
            assert "score_epoch" not in trial.user_attrs
    if score == "best":
        assert any(trial.user_attrs["score_epoch"] < 4 for trial in stored.trials)
    best_values = [event.best for event in events if isinstance(event, EpochEnded)]
    assert best_values[-1] == stored.best_value, "the last event shows the best value of the study"
    (ended,) = [event for event in events if isinstance(event, PopulationEnded)]
    assert ended.best == stored.best_value


def test_diverging_member_fails_alone_and_is_counted(new_storage: NewStorage) -> None:
    def study(weight_decay: float) -> Study:
        return study_of(
            network={"hidden": {"choices": [[8], [8, 8]]}},
            optimizer={"lr": 0.5, "weight_decay": {"choices": [0.0, weight_decay, 1e-3]}},
            training={"epochs": 4},
            search={"sampler": "grid", "population": 4},
        )

    diverging, stable = new_storage(), new_storage()
    events = search(study(1e40), diverging)
    search(study(1e-6), stable)
    trials = trials_of(diverging)
    check_whole(trials, 6)
    check_events(events, trials)
    assert {trial.params["weight_decay"] for trial in trials if trial.state == TrialState.FAIL} == {1e40}
    for trial, other in zip(trials, trials_of(stable), strict=True):
        if trial.params["weight_decay"] < 1:
            assert trial.state == TrialState.COMPLETE
            assert are_close(curves([trial]), curves([other]))
        else:
            assert trial.state == TrialState.FAIL
            assert trial.value is None
            assert trial.user_attrs["reason"].startswith("diverged: ")
            (curve,) = curves([trial])
            assert 0 < len(curve["val_loss"]) == len(trial.intermediate_values) < 4
    assert isinstance(events[-1], StudyEnded)
    assert (events[-1].reason, events[-1].failed) == ("finished", 2)


def test_study_with_failed_trials_only_ends(storage: Storage) -> None:
    events = search(study_of(optimizer={"lr": {"low": 1e200, "high": 1e201}}), storage)
    check_events(events, trials_of(storage))
    assert states(trials_of(storage)) == [TrialState.FAIL] * 6
    assert {event.best for event in events if isinstance(event, EpochEnded | PopulationEnded)} == {None}


def test_invalid_architecture_fails_with_a_reason_and_others_are_trained(storage: Storage) -> None:
    points = [{"kernel": kernel, "lr": 0.1 + place / 100} for place, kernel in enumerate([3, 9, 3, 7, 9, 3])]
    study = study_of(
        network={"kind": "cnn", "conv": [2], "pool": 3, "hidden": [], "kernel": {"choices": [3, 7, 9]}},
        search={"trials": 6, "population": 6, "points": points},
    )
    events = search(study, storage)
    trials = trials_of(storage)
    check_events(events, trials)
    for trial in trials:
        assert trial.state == (TrialState.COMPLETE if trial.params["kernel"] == 3 else TrialState.FAIL)
    reasons = Counter(trial.user_attrs["reason"] for trial in trials if trial.state == TrialState.FAIL)
    assert all("no pixel is left of a 8x8 image" in reason for reason in reasons)
    warnings = {event.text for event in events if isinstance(event, Note) and event.level == "warning"}
    assert warnings == {f"{'1 trial' if count == 1 else '2 trials'} failed: {text}" for text, count in reasons.items()}


def study_with_pruner(pruner: str, **changes: object) -> Study:
    return study_of(
        network={"dropout": {"low": 0.0, "high": 0.4}},
        optimizer={"lr": {"low": 1e-4, "high": 1.0, "log": True}},
        training={"epochs": 4},
        search={"trials": 16, "population": 8, "pruner": pruner, **changes},
    )


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruned_trials_have_their_last_value_and_learning_curve(pruner: str, metric: str, storage: Storage) -> None:
    events = search(study_with_pruner(pruner, metric=metric, score="best"), storage)
    trials = trials_of(storage)
    check_whole(trials, 16)
    check_events(events, trials)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert 0 < len(pruned) < 16
    for trial, curve in zip(pruned, curves(pruned), strict=True):
        assert trial.value == curve[metric][-1] == trial.intermediate_values[trial.last_step or 0]
        assert len(curve[metric]) == len(trial.intermediate_values) < 4
    completed = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert all(len(trial.intermediate_values) == 4 for trial in completed)
    assert any(event.left < 8 for event in events if isinstance(event, EpochEnded) and event.epoch == 1)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruner_decides_the_same_after_an_interruption(pruner: str, new_storage: NewStorage) -> None:
    uninterrupted, interrupted = new_storage(), new_storage()
    search(study_with_pruner(pruner), uninterrupted)
    search(study_with_pruner(pruner), interrupted, stop_at=after_epochs(4))
    assert len(trials_of(interrupted)) == 8
    search(study_with_pruner(pruner), interrupted)
    assert states(trials_of(interrupted)) == states(trials_of(uninterrupted))
    assert are_close(curves(trials_of(interrupted)), curves(trials_of(uninterrupted)))


def test_without_a_pruner_no_trial_is_pruned(storage: Storage) -> None:
    search(study_with_pruner("none"), storage)
    assert states(trials_of(storage)) == [TrialState.COMPLETE] * 16


@pytest.mark.parametrize("order", [1, -1])
def test_hyperband_prunes_after_all_members_have_reported(order: int) -> None:
    history = SamplerHistory(study_of(training={"epochs": 2}, search={"pruner": "hyperband"}), [])
    numbers = [number for number, _ in history.ask(9)][::order]
    history.report(1, {number: 0.1 * rank for rank, number in enumerate(numbers)})
    assert history.prune(sorted(numbers)) == set(numbers[:6])


def test_members_dropped_from_a_population_are_not_trained() -> None:
    study = study_with_pruner("none")
    split = to_device(load_split(study), 0, torch.device("cpu"))
    members = [Member(number, config_of(study, {"lr": 0.1, "dropout": 0.0}), number) for number in range(3)]
    epochs = train(members, split, "float64")
    assert set(next(epochs).metrics) == {0, 1, 2}
    assert set(epochs.send({0, 2}).metrics) == {1}
    epochs.close()


@pytest.mark.parametrize(
    ("has", "reason"),
    [
        (True, "the training is shorter than a measurement of bfloat16"),
        (False, "this CPU has no bfloat16 instructions"),
    ],
)
def test_bfloat16_is_not_measured_in_vain(
    has: bool, reason: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.search.driver.has_bfloat16", lambda device: has)
    note, started, *_ = search(study_of(training={"epochs": 1, "precision": "auto"}), storage)
    assert note == Note(f"precision: float32 ({reason})")
    assert isinstance(started, StudyStarted)
    assert started.precision == "float32"


def test_precision_chosen_by_auto_is_stored_and_reused(
    new_storage: NewStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo.search.driver.has_bfloat16", lambda device: True)
    monkeypatch.setattr("hpo.search.driver.pays", lambda members, steps: True)
    study = study_of(training={"epochs": 1, "precision": "auto"}, search={"trials": 4})
    storage = new_storage()
    note, started, *_ = search(study, storage, stop_at=after_epochs(1))
    assert isinstance(note, Note)
    assert "bfloat16 trains" in note.text
    assert isinstance(started, StudyStarted)
    assert started.precision in ("float32", "bfloat16")
    run = load_study(storage, "tiny").user_attrs["hpo:run"]
    assert (run["precision"], run["device"]) == (started.precision, "cpu")
    other = "float32" if started.precision == "bfloat16" else "bfloat16"
    load_study(storage, "tiny").set_user_attr("hpo:run", {**run, "precision": other})
    restarted, *_ = search(study, storage)
    assert isinstance(restarted, StudyStarted)
    assert restarted.precision == other
    float64_storage = new_storage()
    search(study_of(), float64_storage)
    assert load_study(float64_storage, "tiny").user_attrs["hpo:run"]["precision"] == "float64"


def test_storage_error_requeues_trials(storage: Storage) -> None:
    def fail(event: Event) -> None:
        if isinstance(event, EpochEnded):
            raise StorageError("hpo.db: the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        launch(study_of(), storage, LaunchOptions(device="cpu"), on_event=fail, stop=threading.Event())
    assert states(trials_of(storage)) == [TrialState.WAITING] * 4


def test_events_are_json(storage: Storage) -> None:
    events = search(study_of(optimizer={"weight_decay": DECAY}), storage)
    names = [event.to_json()["event"] for event in events]
    epochs = ["epoch_ended"] * 2
    population = ["population_started", *epochs, "population_ended"]
    assert names == ["study_started", "note", *population, *population, "study_ended"]
    assert events[2].to_json() == {"event": "population_started", "members": [0, 1, 2, 3], "epochs": 2}
    assert params(trials_of(storage))[0].keys() == {"lr", "weight_decay"}


def test_cmaes_continues_from_stored_trials(storage: Storage) -> None:
    options = {"sampler": "cmaes", "population": 4}
    search(study_of(optimizer={"weight_decay": DECAY}, search={**options, "trials": 12}), storage)
    study = study_of(optimizer={"weight_decay": DECAY}, search={**options, "trials": 16})
    expected = SamplerHistory(study, trials_of(storage)).ask(4)
    search(study, storage, extend=True)
    assert [trial.params for trial in trials_of(storage)[12:]] == [values for _, values in expected]
    # A sampler without the twelve stored trials samples other configurations.
    assert [values for _, values in SamplerHistory(study).ask(16)[12:]] != [values for _, values in expected]


def test_stop_ends_the_sampling_of_trials() -> None:
    assert len(SamplerHistory(study_of()).ask(6, StopAfter(2).is_set)) == 2


def test_missing_trials_in_the_storage_end_the_search(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the created trials no next number is free: the search must end instead of looping forever."""
    monkeypatch.setattr(storage, "create_trials", lambda *args: [])
    with pytest.raises(HpoError, match="study 'tiny': trials are missing in its storage"):
        search(study_of(), storage)
