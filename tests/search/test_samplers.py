"""Every sampler in real searches: seeds, interruptions, learning from trials, finite search spaces."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
from optuna.trial import TrialState
from tiny import (
    DECAY,
    DROPOUT,
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

from hpo.errors import StudyFileError
from hpo.search.events import Note, StudyEnded
from hpo.search.plan import plan
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.sampling.samplers import check_search
from hpo.storage import Storage
from hpo.studyfile import Study

NewStorage = Callable[[], Storage]
SLOW_SAMPLERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("gp", "cmaes", "nsga2")]
SAMPLERS = ["random", "tpe", *SLOW_SAMPLERS, "qmc", "grid"]
PAST_STARTUP = 12  # trials: tpe and gp sample at random until 10 are complete


def mixed_study(sampler: str, **changes: Any) -> Study:
    """Return a study with parameters of every kind; for grid, all of them finite."""
    lr = {"low": 0.1, "high": 0.5, "step": 0.1} if sampler == "grid" else {"low": 1e-3, "high": 1.0, "log": True}
    decay = {"choices": [1e-6, 1e-3]} if sampler == "grid" else DECAY
    return study_of(
        network={"dropout": DROPOUT, "batch_norm": {"choices": [False, True]}},
        optimizer={"lr": lr, "weight_decay": decay},
        training={"epochs": 1},
        search={"trials": PAST_STARTUP, "sampler": sampler, "population": 5, **changes},
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_gives_the_same_trials_and_curves_twice(sampler: str, new_storage: NewStorage) -> None:
    study, storages = mixed_study(sampler), (new_storage(), new_storage())
    for storage in storages:
        search(study, storage)
    first, second = map(trials_of, storages)
    check_whole(first, PAST_STARTUP)
    assert params(first) == params(second)
    assert curves(first) == curves(second)
    other = new_storage()
    search(mixed_study(sampler, seed=1), other)
    assert sampler == "grid" or params(trials_of(other)) != params(first)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_continues_after_an_interruption(sampler: str, storage: Storage) -> None:
    study = mixed_study(sampler, trials=17)
    search(study, storage, stop_at=after_epochs(5))  # more than the ten complete trials that cmaes starts from
    assert sum(state == TrialState.COMPLETE for state in states(trials_of(storage))) >= 10
    search(study, storage)
    check_whole(trials_of(storage), 17)


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_an_interruption_does_not_change_the_sequence_of_trials(sampler: str, new_storage: NewStorage) -> None:
    study = study_of(optimizer={"weight_decay": DECAY}, training={"epochs": 2}, search={"sampler": sampler})
    whole, interrupted = new_storage(), new_storage()
    search(study, whole)
    search(study, interrupted, stop_at=after_epochs(3))
    assert TrialState.WAITING in states(trials_of(interrupted))
    search(study, interrupted)
    assert params(trials_of(interrupted)) == params(trials_of(whole))
    assert are_close(curves(trials_of(interrupted)), curves(trials_of(whole)))


def test_random_trials_and_curves_are_the_same_in_every_population_size(new_storage: NewStorage) -> None:
    all_trials = []
    for population in (8, 32, 1):
        storage = new_storage()
        count = 33 if population > 1 else 5
        search(
            study_of(
                network={"dropout": {"low": 0.0, "high": 0.5}, "hidden": {"choices": [[8], [6, 4]]}},
                search={"trials": count, "population": population},
            ),
            storage,
        )
        all_trials.append(trials_of(storage))
    trials_of_8, trials_of_32, trials_of_1 = all_trials
    assert params(trials_of_8) == params(trials_of_32)
    assert params(trials_of_1) == params(trials_of_8)[:5]
    assert are_close(curves(trials_of_8), curves(trials_of_32))
    assert are_close(curves(trials_of_1), curves(trials_of_8)[:5])
    assert [trial.user_attrs["seed"] for trial in trials_of_8] == [trial.user_attrs["seed"] for trial in trials_of_32]


@pytest.mark.parametrize(
    ("changes", "members"),
    [
        ({"sampler": "random"}, 12),
        ({"sampler": "qmc", "pruner": "none"}, 12),
        ({"sampler": "grid"}, 12),
        ({"sampler": "tpe"}, 3),
        ({"sampler": "random", "pruner": "median"}, 3),
        ({"sampler": "random", "patience": 5}, 3),
        ({"sampler": "random", "timeout": 60.0}, 3),
    ],
)
def test_only_trials_that_depend_on_no_other_are_one_population(changes: dict[str, Any], members: int) -> None:
    assert plan(mixed_study(population="auto", **changes), "cpu").population == members


def test_log_ranges_are_sampled_on_a_log_scale() -> None:
    study = study_of(optimizer={"lr": {"low": 1e-6, "high": 1e-2, "log": True}, "weight_decay": DECAY})
    proposed = [values for _, values in SamplerHistory(study, []).ask(400)]
    for name, low, high in (("lr", 1e-6, 1e-2), ("weight_decay", 1e-6, 1e-2)):
        places = sorted(math.log(values[name] / low) / math.log(high / low) for values in proposed)
        for quarter in (1, 2, 3):
            assert abs(places[100 * quarter] - quarter / 4) < 0.1


def distances_after_learning(study: Study, trials: int, population: int = 4) -> list[float]:
    """Return the distance, in decades, of each proposed trial from the best point lr = 0.1, weight_decay = 1e-4."""
    history = SamplerHistory(study, [])
    distances = []
    for _ in range(trials // population):
        for number, values in history.ask(population):
            distance = math.hypot(math.log10(values["lr"] / 0.1), math.log10(values["weight_decay"] / 1e-4))
            distances.append(distance)
            history.report(1, {number: -distance})
            history.tell(number, TrialState.COMPLETE, [-distance])
    return distances


@pytest.mark.parametrize(
    ("sampler", "trials"), [("tpe", 60), ("gp", 20), pytest.param("cmaes", 100, marks=pytest.mark.slow)]
)
def test_samplers_learn_from_completed_trials(sampler: str, trials: int) -> None:
    wide = {"lr": {"low": 1e-5, "high": 1.0, "log": True}, "weight_decay": {"low": 1e-8, "high": 1.0, "log": True}}
    learned = distances_after_learning(study_of(optimizer=wide, search={"sampler": sampler}), trials)
    chance = distances_after_learning(study_of(optimizer=wide, search={"sampler": "random"}), trials)
    assert sum(learned[-8:]) < 0.5 * sum(chance[-8:])


def test_members_of_a_population_have_different_values() -> None:
    study = study_of(optimizer={"weight_decay": DECAY}, search={"sampler": "tpe"})
    history = SamplerHistory(study, [])
    for number, values in history.ask(12):
        history.tell(number, TrialState.COMPLETE, [values["lr"]])
    proposed = history.ask(16)
    assert len({values["lr"] for _, values in proposed}) == 16


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc"])
def test_an_exhausted_finite_space_ends_the_study_with_a_note(sampler: str, storage: Storage) -> None:
    study = study_of(
        network={"dropout": {"low": 0.0, "high": 0.7, "step": 0.1}},
        optimizer={"lr": 0.1, "weight_decay": {"low": 0.0, "high": 0.01, "step": 0.01}},
        training={"epochs": 1},
        search={"trials": 40, "sampler": sampler, "population": 5},
    )
    for _ in range(2):
        *_, note, ended = search(study, storage)
        check_whole(trials_of(storage), 16)
        assert isinstance(note, Note)
        assert "16 different trials" in note.text
        assert isinstance(ended, StudyEnded)
        assert (ended.reason, ended.completed) == ("space exhausted", 16)
    assert {trial.params["dropout"] for trial in trials_of(storage)} == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}


def test_repeat_trains_equal_configurations_under_other_seeds(storage: Storage) -> None:
    study = study_of(
        network={"dropout": {"choices": [0.0, 0.4]}}, optimizer={"lr": 0.1}, search={"trials": 5, "repeat": True}
    )
    events = search(study, storage)
    trials = trials_of(storage)
    assert states(trials) == [TrialState.COMPLETE] * 5
    assert len({str(curve) for curve in curves(trials)}) == 5
    assert isinstance(events[-1], StudyEnded)
    assert events[-1].reason == "finished"


def test_grid_tries_the_whole_space_in_order(storage: Storage) -> None:
    study = study_of(
        network={"hidden": {"choices": [[8], [4, 4]]}},
        optimizer={"lr": {"low": 0.1, "high": 0.35, "step": 0.1}},
        training={"epochs": 1, "batch_size": {"low": 30, "high": 75, "step": 30}},
        search={"trials": 12, "sampler": "grid", "population": 5},
    )
    search(study, storage, stop_at=after_epochs(2))
    *_, ended = search(study, storage)
    assert isinstance(ended, StudyEnded)
    assert ended.reason == "finished"
    assert [tuple(trial.params.values()) for trial in trials_of(storage)] == [
        (hidden, lr, batch) for hidden in ("[8]", "[4, 4]") for lr in (0.1, 0.2, 0.3) for batch in (30, 60)
    ]


def test_grid_with_repeat_restarts_also_after_an_interruption(storage: Storage) -> None:
    study = study_of(
        optimizer={"lr": {"choices": [0.1, 0.2, 0.3]}},
        training={"epochs": 1},
        search={"trials": 7, "sampler": "grid", "repeat": True, "population": 2},
    )
    search(study, storage, stop_at=after_epochs(1))
    assert len(trials_of(storage)) == 2
    search(study, storage)
    assert [trial.params["lr"] for trial in trials_of(storage)] == [0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1]


def test_a_study_without_searched_parameters_trains_one_trial(storage: Storage) -> None:
    events = search(study_of(optimizer={"lr": 0.1}, search={"trials": 3, "sampler": "tpe"}), storage)
    check_whole(trials_of(storage), 1)
    assert any(isinstance(event, Note) and "holds only 1 different trial" in event.text for event in events)


def test_a_single_choice_logs_no_warning(storage: Storage) -> None:
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger("optuna").addHandler(handler)
    try:
        study = study_of(
            network={"activation": {"choices": ["tanh"]}},
            training={"epochs": 1},
            search={"trials": PAST_STARTUP, "sampler": "tpe"},
        )
        search(study, storage)
    finally:
        logging.getLogger("optuna").removeHandler(handler)
    assert {trial.params["activation"] for trial in trials_of(storage)} == {"tanh"}
    assert logged == []


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "qmc"])
def test_the_largest_seed_is_valid(sampler: str) -> None:
    study = study_of(optimizer={"weight_decay": DECAY}, search={"sampler": sampler, "seed": 2**63 - 1})
    assert len(SamplerHistory(study, []).ask(2)) == 2


@pytest.mark.parametrize(
    ("training", "key"),
    [
        ({"precision": {"choices": ["float32", "auto"]}}, "training.precision.choices.1"),
        (
            {
                "precision": "float32",
                "batch_size": {"choices": [20, 30]},
                "when": {"batch_size": {"30": {"precision": "auto"}}},
            },
            "training.when.batch_size.30.precision",
        ),
    ],
)
def test_auto_precision_cannot_be_one_of_several_choices(training: dict[str, Any], key: str) -> None:
    with pytest.raises(StudyFileError) as caught:
        check_search(study_of(training=training))
    assert caught.value.key == key
    assert "is chosen once for all trials, so it cannot be one of several choices" in str(caught.value)


@pytest.mark.parametrize("other", [0.1, {"choices": [0.1, 0.2]}])
def test_cmaes_needs_two_numeric_parameters(other: Any, storage: Storage) -> None:
    study = study_of(optimizer={"lr": other, "weight_decay": DECAY}, search={"sampler": "cmaes"})
    with pytest.raises(StudyFileError, match=r"^studies/tiny.toml: search.sampler: cmaes needs at least two"):
        check_search(study)
    with pytest.raises(StudyFileError):
        search(study, storage)
    assert storage.get_all_studies() == []
