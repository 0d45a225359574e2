"""Enqueued trials: `--enqueue` and Optuna's `enqueue_trial`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from objectives import objective_study
from optuna.trial import TrialState
from tiny import DECAY, after_epochs, check_whole, search, states, study_of, trials_of

from hpo.errors import StudyClosedError, UsageError
from hpo.search.enqueueing import network_values, objective_values
from hpo.search.events import Note
from hpo.search.launch import submit
from hpo.search.options import LaunchOptions
from hpo.search.points import FIXED, trial_seed
from hpo.storage import FAILURE_REASON, Storage, StudyState, set_state, study_names, summary
from hpo.studyfile import Study

CASES = {
    "kind": {"choices": ["sgd", "adam"]},
    "weight_decay": DECAY,
    "when": {"kind": {"adam": {"beta1": {"low": 0.5, "high": 0.9}}}},
}


def conditional_study(**search: Any) -> Study:
    return study_of(
        optimizer=CASES, training={"epochs": 1, "batch_size": {"low": 20, "high": 60, "step": 20}},
        network={"dropout": {"low": 0.0, "high": 0.4, "step": 0.1}}, search=search,
    )  # fmt: skip


@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_enqueued_trials_are_trained_first_and_once(storage: Storage, sampler: str) -> None:
    study = conditional_study(sampler=sampler)
    enqueued = ['{"lr": 0.01}', '{"lr": 0.02, "optimizer.kind": "adam", "beta1": 0.6}']
    submit(study, storage, LaunchOptions(enqueue=enqueued))
    submit(study, storage, LaunchOptions(enqueue=enqueued[:1]))
    assert states(trials_of(storage)) == [TrialState.WAITING] * 2
    search(study, storage)
    trials = trials_of(storage)
    check_whole(trials, 6)
    assert trials[0].params["lr"] == 0.01
    assert [trials[1].params[name] for name in ("lr", "optimizer.kind", "beta1")] == [0.02, "adam", 0.6]
    assert trials[0].datetime_start <= min(trial.datetime_start for trial in trials[2:])  # type: ignore[type-var]
    assert trials[0].params.keys() >= {"lr", "weight_decay", "dropout", "batch_size", "optimizer.kind"}
    assert len({trial.user_attrs["seed"] for trial in trials}) == 6


def test_extension_trains_enqueued_trials_next(storage: Storage) -> None:
    search(conditional_study(trials=4), storage)
    more = conditional_study(trials=6)
    with pytest.raises(
        UsageError, match=r"--enqueue: study 'tiny' has 4 of its 4 trials, and these make 5; give --trials 5"
    ):
        submit(conditional_study(trials=4), storage, LaunchOptions(enqueue=['{"lr": 0.01}']))
    submit(more, storage, LaunchOptions(extend=True, enqueue=['{"lr": 0.01}']))
    search(more, storage)
    trials = trials_of(storage)
    check_whole(trials, 6)
    assert trials[4].params["lr"] == 0.01
    same = json.dumps({name: value for name, value in trials[0].params.items()})
    # The same configuration is already trained: no new trial.
    submit(conditional_study(trials=7), storage, LaunchOptions(extend=True, enqueue=[same]))
    assert len(trials_of(storage)) == 6


def test_enqueue_in_a_paused_study_is_refused(storage: Storage) -> None:
    submit(conditional_study(), storage)
    set_state(storage, summary(storage, "tiny").study_id, StudyState.PAUSED)
    with pytest.raises(StudyClosedError, match="paused"):
        submit(conditional_study(), storage, LaunchOptions(enqueue=['{"lr": 0.01}']))


INVALID_VALUES = [
    ("{lr: 1}", "is not JSON"),
    ("[1]", "must be a JSON object of values by parameter"),
    ("{}", "must be a JSON object of values by parameter"),
    ('{"l": 1}', r"l is not searched \(did you mean 'lr'\?\)"),
    ('{"lr": 7}', "lr cannot be 7: it is from 0.001 to 1.0"),
    ('{"lr": "a"}', "lr cannot be 'a': it is from 0.001 to 1.0"),
    ('{"lr": true}', "lr cannot be true"),
    ('{"lr": null}', "lr cannot be None"),
    ('{"lr": {"low": 1}}', "lr cannot be"),
    ('{"dropout": 0.15}', "dropout cannot be 0.15: it is from 0.0 to 0.4 in steps of 0.1"),
    ('{"batch_size": 30}', "batch_size cannot be 30: it is a whole number from 20 to 60 in steps of 20"),
    ('{"batch_size": 20.5}', "batch_size cannot be 20.5"),
    ('{"optimizer.kind": "rmsprop"}', 'optimizer.kind cannot be \'rmsprop\': it is one of "sgd", "adam"'),
    ('{"optimizer.kind": ["sgd"]}', "optimizer.kind cannot be"),
    ('{"beta1": 0.6}', 'beta1 is searched only where optimizer.kind is "adam"; add that value'),
]


def test_invalid_values_are_refused_before_the_study_is_stored(storage: Storage) -> None:
    for text, problem in INVALID_VALUES:
        with pytest.raises(UsageError, match=problem) as caught:
            network_values(conditional_study(), ['{"lr": 0.01}', text], storage)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="lr cannot be 7"):
        submit(conditional_study(), storage, LaunchOptions(enqueue=['{"lr": 7}']))
    assert study_names(storage) == []


CHOICES = study_of(
    network={"hidden": {"choices": [[8], [4, 4]]}, "batch_norm": {"choices": [True, False]}},
    optimizer={"lr": 0.1},
    training={"epochs": 1},
    search={"trials": 1},
)


def test_value_equal_to_a_choice_or_to_its_stored_text_is_invalid(storage: Storage) -> None:
    with pytest.raises(UsageError, match=r"hidden cannot be '\[8\]': it is one of \[8\], \[4, 4\]$"):
        network_values(CHOICES, ['{"hidden": "[8]"}'], storage)
    with pytest.raises(UsageError, match=r"batch_norm cannot be 1: it is one of true, false$"):
        network_values(CHOICES, ['{"batch_norm": 1}'], storage)
    assert network_values(CHOICES, ['{"hidden": [8], "batch_norm": true}'], storage) == [
        {"hidden": "[8]", "batch_norm": True}
    ]


def test_optuna_may_enqueue_a_list_by_its_stored_text(storage: Storage) -> None:
    submit(CHOICES, storage)
    optuna_study = optuna.load_study(study_name="tiny", storage=storage.location.full_url)
    optuna_study.enqueue_trial({"hidden": "[4, 4]", "batch_norm": True})
    search(CHOICES, storage)
    (trial,) = trials_of(storage)
    assert (trial.state, trial.params) == (TrialState.COMPLETE, {"hidden": "[4, 4]", "batch_norm": True})


def test_enqueue_with_repeats_or_points_left_is_refused(storage: Storage) -> None:
    point = {"lr": 0.5}
    with pytest.raises(UsageError, match=r"1 of search\.points have to run first"):
        submit(study_of(search={"points": [point]}), storage, LaunchOptions(enqueue=['{"lr": 0.01}']))
    with pytest.raises(UsageError, match=r"not possible with search\.repeats"):
        submit(study_of(search={"repeats": 2}), storage, LaunchOptions(enqueue=['{"lr": 0.01}']))
    with pytest.raises(UsageError, match="has 0 of its 6 trials, and these make 7; give --trials 7"):
        submit(
            study_of(), storage, LaunchOptions(enqueue=[json.dumps({"lr": 0.1 + number / 100}) for number in range(7)])
        )
    assert network_values(study_of(), ['{"lr": 1}'], storage) == [{"lr": 1.0}]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "qmc", "grid", "nsga2"])
def test_trials_enqueued_by_optuna_are_trained_or_fail_with_a_reason(storage: Storage, sampler: str) -> None:
    optimizer = {"lr": {"choices": [0.01, 0.02, 0.03, 0.04]}, "weight_decay": {"choices": [0.0, 0.01]}}
    pruner = "none" if sampler == "nsga2" else "median"
    study = study_of(optimizer=optimizer, search={"trials": 5, "sampler": sampler, "pruner": pruner})
    submit(study, storage)
    optuna_study = optuna.load_study(study_name="tiny", storage=storage.location.full_url)
    optuna_study.enqueue_trial({"lr": 0.02}, user_attrs={"memo": "mine"})
    optuna_study.enqueue_trial({"lr": 7})
    optuna_study.enqueue_trial({})
    search(study, storage)
    trials = trials_of(storage)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert trials[0].params["lr"] == 0.02
    assert trials[0].user_attrs == {"memo": "mine", "seed": trial_seed(study, 0)}
    assert trials[1].user_attrs[FAILURE_REASON] == "enqueued: lr cannot be 7: it is one of 0.01, 0.02, 0.03, 0.04"
    complete = [trial for trial in trials if trial.number != 1]
    assert all(trial.params.keys() == {"lr", "weight_decay"} for trial in complete)
    assert len({json.dumps(trial.params) for trial in complete}) == 4


def test_enqueued_trial_has_the_same_parameters_after_a_requeue(storage: Storage) -> None:
    study = study_of(search={"trials": 3})
    submit(study, storage)
    optuna.load_study(study_name="tiny", storage=storage.location.full_url).enqueue_trial({"lr": 0.125})
    search(study, storage, stop_at=after_epochs(1))
    (first, *_) = trials_of(storage)
    assert (first.state, first.params) == (TrialState.WAITING, {"lr": 0.125})
    search(study, storage)
    check_whole(trials_of(storage), 3)
    assert trials_of(storage)[0].params == {"lr": 0.125}


def test_trial_enqueued_by_optuna_fails_in_a_study_with_repeats(storage: Storage) -> None:
    study = study_of(search={"trials": 3, "repeats": 2})
    submit(study, storage)
    optuna.load_study(study_name="tiny", storage=storage.location.full_url).enqueue_trial({"lr": 0.125})
    search(study, storage)
    (first, *others) = trials_of(storage)
    assert (
        first.user_attrs[FAILURE_REASON]
        == "enqueued: not possible with search.repeats, which numbers the trials; use search.points"
    )
    assert states(others) == [TrialState.COMPLETE] * 2


def test_objective_function_gets_enqueued_values(storage: Storage, tmp_path: Path) -> None:
    """`--enqueue` works like Optuna's `enqueue_trial`, and trials enqueued by Optuna are trained as well."""
    study = objective_study(tmp_path, trials=6, pruner="none")
    submit(
        study,
        storage,
        LaunchOptions(enqueue=['{"x": 1.5}', '{"x": 40, "kinds": "square"}', '{"kind": "square", "x": null}']),
    )
    optuna.load_study(study_name="own", storage=storage.location.full_url).enqueue_trial({"x": 2.5}, {"memo": 1})
    with pytest.warns(UserWarning, match="Fixed parameter x with value 40 is out of range"):
        events = search(study, storage, device="auto", enqueue=['{"x": 1.5}'])  # already enqueued
    trials = trials_of(storage, "own")
    assert [trial.params.get("x") for trial in trials[:2]] == [1.5, 40]
    assert trials[0].system_attrs[FIXED] == {"x": 1.5}
    assert (trials[3].params["x"], trials[3].user_attrs["memo"]) == (2.5, 1)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", *["COMPLETE"] * 3]
    assert "not a valid type" in trials[2].user_attrs[FAILURE_REASON]
    misspelt = "trial 1: objective.py:objective did not suggest kinds, which was enqueued (did you mean 'kind'?)"
    assert misspelt in [event.text for event in events if isinstance(event, Note)]
    for text, problem in (
        ("[1]", "must be a JSON object"),
        ('{"x": NaN}', "is not JSON"),
        ("{}", "must be a JSON object"),
    ):
        with pytest.raises(UsageError, match=problem):
            objective_values(study, [text], storage)
    with pytest.raises(
        UsageError, match="study 'own' has 6 of its 6 trials, and these make 7; give --trials 7 --extend"
    ):
        submit(study, storage, LaunchOptions(enqueue=['{"x": 9}']))
