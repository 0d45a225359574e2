"""Conditional parameters in a search: grids, samplers, points, the baseline, extension and start_from."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial
from tiny import after_epochs, check_same_trials, check_whole, search, study_of, trials_of

from hpo.errors import StudyFileError, UsageError
from hpo.results.display.check import parameter_line
from hpo.search.points import baseline, check_points, points
from hpo.search.sampling.in_memory_study import STUDY, InMemoryStudy
from hpo.search.sampling.pruners import max_epochs
from hpo.search.sampling.samplers import check_search
from hpo.search.sampling.tpe import IncrementalTPESampler, Observations
from hpo.search.space import belongs, combination, distributions, groups, identity, is_whole, size, size_text
from hpo.storage import Storage
from hpo.studyfile import Study, parse_study

STEPS = {"low": 0.2, "high": 0.6, "step": 0.2}
LOG = {"low": 1e-3, "high": 0.1, "log": True}


def of_kinds(search: dict[str, Any] | None = None, **optimizer: Any) -> Study:
    """Return a study with different conditional parameters for each optimizer."""
    cases = {
        "momentum": {"momentum": {"low": 0.5, "high": 0.9}, "lr": {"low": 1e-3, "high": 0.1, "log": True}},
        "adam": {"beta1": {"low": 0.8, "high": 0.95}, "beta2": {"choices": [0.99, 0.999]}},
    }
    return study_of(
        network={"dropout": {"low": 0.0, "high": 0.4}},
        optimizer={
            "kind": {"choices": ["sgd", "momentum", "adam"]},
            "lr": LOG,
            "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
            "when": {"kind": cases},
            **optimizer,
        },
        training={"epochs": 1},
        search={"trials": 24, "population": 6, **(search or {})},
    )


@st.composite
def finite(draw: st.DrawFn) -> Study:
    """Draw a study with a finite search space and conditions on one or two keys."""
    cases = {
        kind: {key: STEPS for key in draw(st.lists(st.sampled_from(keys), unique=True))}
        for kind, keys in {"sgd": ["lr", "clip"], "momentum": ["momentum"], "adam": ["lr", "beta1", "beta2"]}.items()
    }
    return study_of(
        network={"batch_norm": {"choices": [False, True]}, "when": {"batch_norm": {"true": {"dropout": STEPS}}}},
        optimizer={
            "kind": {"choices": ["sgd", "momentum", "adam"]},
            "lr": draw(st.sampled_from([0.1, STEPS])),
            "when": {"kind": cases},
        },
    )


@settings(max_examples=30)
@given(finite())
def test_finite_space_lists_every_configuration_once(study: Study) -> None:
    found = [combination(study, index) for index in range(int(size(study)))]
    assert len({identity(values) for values in found}) == len(found)
    assert all(belongs(study, distributions(study), values) for values in found)
    kinds = {kind: sum(values["optimizer.kind"] == kind for values in found) for kind in ("sgd", "momentum", "adam")}
    for kind, count in kinds.items():  # without batch norm, and with it and its conditional dropout
        parameters = study.applicable_parameters({"optimizer.kind": kind})
        of_optimizer = [each for each in parameters if each.setting[0] == "optimizer"]
        assert count == 3 ** (len(of_optimizer) - 1) * (1 + 3)


def test_grid_trains_each_configuration_once(storage: Storage) -> None:
    study = study_of(
        optimizer={
            "kind": {"choices": ["sgd", "adam"]},
            "lr": 0.1,
            "when": {"kind": {"adam": {"lr": STEPS, "beta1": {"choices": [0.8, 0.9]}}}},
        },
        training={"epochs": 1},
        search={"sampler": "grid", "trials": 100, "population": 4},
    )
    assert size_text(study) == "7 different trials"
    search(study, storage)
    trials = trials_of(storage)
    check_whole(trials, 7)
    assert [trial.params["optimizer.kind"] for trial in trials] == ["sgd", *["adam"] * 6]
    assert trials[0].params == {"optimizer.kind": "sgd"}


@pytest.mark.parametrize("sampler", ["random", "tpe", pytest.param("gp", marks=pytest.mark.slow), "cmaes", "qmc"])
def test_every_sampler_samples_only_applicable_parameters(storage: Storage, sampler: str) -> None:
    count = 14 if sampler == "gp" else 24  # gp is slow
    search(of_kinds({"sampler": sampler, "trials": count}), storage)
    study, trials = of_kinds(), trials_of(storage)
    check_whole(trials, count)
    assert all(belongs(study, distributions(study), trial.params) for trial in trials)
    assert {trial.params["optimizer.kind"] for trial in trials} == {"sgd", "momentum", "adam"}
    conditional = [value for trial in trials for name, value in trial.params.items() if name in ("momentum", "beta1")]
    assert len(set(conditional)) == len(conditional)  # sampled for each trial


@pytest.mark.parametrize("sampler", ["random", "qmc"])  # TPE's proposals depend on the trials that have ended
def test_interrupted_search_resumes_to_the_same_trials(new_storage: Callable[[], Storage], sampler: str) -> None:
    study, interrupted, uninterrupted = of_kinds({"sampler": sampler, "trials": 18}), new_storage(), new_storage()
    search(study, uninterrupted)
    search(study, interrupted, stop_at=after_epochs(2))
    search(study, interrupted)
    check_same_trials(trials_of(interrupted), trials_of(uninterrupted))


def random_values(draw: random.Random, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return random values of the parameters in a space."""
    return {
        name: draw.choice(each.choices) if hasattr(each, "choices") else draw.uniform(each.low, each.high)
        for name, each in space.items()
    }


def test_tpe_samples_conditional_parameters_like_optuna() -> None:
    study = of_kinds()
    space, draw, mirror = distributions(study), random.Random(3), InMemoryStudy()
    trials = optuna.create_study(storage=mirror, direction=StudyDirection.MAXIMIZE)
    observations = Observations(space, trials)
    for number in range(60):
        values = random_values(draw, groups(study, {})[0])
        for group in groups(study, values)[1:]:
            values |= random_values(draw, group)
        trial_space = {name: space[name] for name in values}
        state = TrialState.RUNNING if number > 55 else TrialState.COMPLETE
        value = None if state == TrialState.RUNNING else draw.random()
        mirror.create_new_trial(STUDY, create_trial(state=state, value=value, params=values, distributions=trial_space))
        observations.add(mirror.get_trial(number))
    trial = mirror.get_trial(mirror.create_new_trial(STUDY))
    for kind in ("sgd", "momentum", "adam"):
        for group in groups(study, {"optimizer.kind": kind}):
            values = IncrementalTPESampler(7, observations).sample_relative(trials, trial, group)
            expected = TPESampler(seed=7, multivariate=True, constant_liar=True).sample_relative(trials, trial, group)
            assert values == expected
            assert values.keys() == group.keys()


def test_tpe_learns_conditional_parameters_from_applicable_trials() -> None:
    study = of_kinds()
    space = distributions(study)
    observations = Observations(space, optuna.create_study(direction="maximize"))
    draw = random.Random(1)
    for number in range(120):
        beta1 = draw.uniform(0.8, 0.95)
        adam = {
            "optimizer.kind": "adam",
            "dropout": 0.1,
            "lr": 0.01,
            "weight_decay": 1e-4,
            "beta1": beta1,
            "beta2": 0.99,
        }
        sgd = {"optimizer.kind": "sgd", "dropout": 0.1, "lr": 0.01, "weight_decay": 1e-4}
        values, score = (adam, -abs(beta1 - 0.9)) if number % 2 else (sgd, -1.0)
        trial_space = {name: space[name] for name in values}
        trial = create_trial(state=TrialState.COMPLETE, value=score, params=values, distributions=trial_space)
        trial.number = number
        observations.add(trial)
    group = next(each for each in groups(study, {"optimizer.kind": "adam"}) if "beta1" in each)
    good, others = observations.split(group)
    assert len(good["beta1"]) + len(others["beta1"]) == 60
    proposed = [
        IncrementalTPESampler(seed, observations)._sample(None, None, group)["beta1"]  # type: ignore[arg-type]
        for seed in range(20)
    ]
    assert abs(np.mean(proposed) - 0.9) < 0.01


def test_points_and_baseline_have_only_applicable_parameters() -> None:
    common = {"dropout": 0.1, "weight_decay": 1e-4}
    study = of_kinds({"points": [{**common, "optimizer.kind": "sgd", "lr": 0.01}]})
    check_points(study)
    assert points(study) == [{**common, "optimizer.kind": "sgd", "lr": 0.01}]
    assert set(baseline(study)) == {"optimizer.kind", "dropout", "weight_decay", "lr"}
    momentum = of_kinds({}).resolved() | {"baseline": {"optimizer.kind": "momentum", "momentum": 0.9}}
    found = baseline(parse_study(momentum, ""))
    assert found["momentum"] == 0.9
    assert found["lr.momentum"] == pytest.approx(0.01)
    assert "lr" not in found
    outside = of_kinds({"points": [{**common, "optimizer.kind": "adam", "lr": 0.01, "beta1": 0.5, "beta2": 0.99}]})
    with pytest.raises(StudyFileError, match=r"search\.points\.0\.beta1: lies outside the range"):
        check_points(outside)


def test_configuration_needs_exactly_the_applicable_parameters() -> None:
    study = of_kinds()
    space = distributions(study)
    sgd = {"optimizer.kind": "sgd", "dropout": 0.1, "lr": 0.01, "weight_decay": 1e-4}
    assert is_whole(study, sgd)
    assert belongs(study, space, sgd)
    assert not is_whole(study, {**sgd, "optimizer.kind": "adam"})
    assert not belongs(study, space, {**sgd, "momentum": 0.6})
    # The learning rate of "momentum" is another parameter.
    assert not belongs(study, space, {**sgd, "optimizer.kind": "momentum", "momentum": 0.6})


def test_cmaes_needs_two_unconditional_numbers() -> None:
    study = of_kinds(
        {"sampler": "cmaes"}, weight_decay=0.0, lr=0.1, when={"kind": {"adam": {"beta1": STEPS, "beta2": STEPS}}}
    )
    with pytest.raises(StudyFileError, match=r"search\.sampler: cmaes needs at least two searched numbers that every"):
        check_search(study)


def test_max_epochs_and_parameter_lines_include_conditional_parameters() -> None:
    study = study_of(
        network={"hidden": {"choices": [[100], [100, 100]]}},
        training={
            "batch_size": {"choices": [30, 60]},
            "when": {"batch_size": {"30": {"epochs": {"low": 5, "high": 9}}}},
        },
    )
    assert max_epochs(study) == 9
    assert parameter_line(study.parameters[-1]) == "epochs: 5 to 9, whole numbers, where batch_size is 30"


def test_study_is_extended_by_a_choice_with_conditional_parameters(storage: Storage) -> None:
    kinds: dict[str, Any] = {"kind": {"choices": ["sgd", "adam"]}, "when": {"kind": {"adam": {"beta1": STEPS}}}}
    short = {"trials": 4, "sampler": "tpe"}
    search(study_of(optimizer=kinds, training={"epochs": 1}, search=short), storage)
    more = {
        "kind": {"choices": ["sgd", "adam", "momentum"]},
        "when": {"kind": {"adam": {"beta1": {"low": 0.2, "high": 0.8, "step": 0.2}}, "momentum": {"momentum": STEPS}}},
    }
    search(study_of(optimizer=more, training={"epochs": 1}, search={**short, "trials": 12}), storage, extend=True)
    trials = trials_of(storage)
    check_whole(trials, 12)
    assert "momentum" in {name for trial in trials for name in trial.params}
    fixed = {**more, "when": {"kind": {"adam": {"beta1": 0.8}, "momentum": {"momentum": STEPS}}}}
    with pytest.raises(UsageError, match=r"optimizer\.when\.kind\.adam\.beta1"):
        search(study_of(optimizer=fixed, training={"epochs": 1}, search={**short, "trials": 13}), storage, extend=True)


def test_start_from_skips_known_conditional_trials(storage: Storage) -> None:
    kinds: dict[str, Any] = {
        "kind": {"choices": ["sgd", "adam"]},
        "lr": 0.1,
        "when": {"kind": {"adam": {"beta1": STEPS}}},
    }
    changes = {"optimizer": kinds, "training": {"epochs": 1}}
    search(study_of(**changes, search={"trials": 3}), storage)
    known = {identity(trial.params) for trial in trials_of(storage)}
    search(study_of(**changes, name="next", search={"trials": 9, "start_from": ["tiny"]}), storage)
    assert known.isdisjoint({identity(trial.params) for trial in trials_of(storage, "next")})
    assert len(trials_of(storage, "next")) == 4 - len(known)
