"""Comparison of the incremental TPE sampler with Optuna's: good trials, densities and proposals are equal."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.sampler import _split_trials, default_gamma
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.sampling.in_memory_study import STUDY, InMemoryStudy
from hpo.search.sampling.tpe import IncrementalTPESampler, Observations, log_density

optuna.logging.set_verbosity(optuna.logging.WARNING)

DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MAXIMIZE)
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-6, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.6),
    "momentum": FloatDistribution(0.0, 0.9, step=0.1),
    "layers": IntDistribution(1, 8),
    "units": IntDistribution(8, 512, log=True),
    "activation": CategoricalDistribution(["relu", "tanh", "sigmoid"]),
}
TWO_PARAMETERS = {name: SPACE[name] for name in ("lr", "dropout")}
NAN = float("nan")
VALUES = st.sampled_from([0.0, -0.0, 0.5, 0.25, 1.0, -1.0, float("inf"), -float("inf")])  # few, so many are equal
OUTCOMES = st.one_of(
    st.builds(lambda value: (TrialState.COMPLETE, value, {}), VALUES),
    st.builds(
        lambda reports: (TrialState.PRUNED, None, reports),
        st.dictionaries(st.integers(1, 3), VALUES | st.just(NAN), max_size=2),
    ),
    st.just((TrialState.RUNNING, None, {})),
    st.just((TrialState.FAIL, None, {})),
)


def random_values(rng: random.Random, space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Return values drawn uniformly, on a log scale for log distributions."""
    values: dict[str, Any] = {}
    for name, distribution in space.items():
        match distribution:
            case CategoricalDistribution():
                values[name] = rng.choice(distribution.choices)
            case FloatDistribution(log=True):
                value = float(np.exp(rng.uniform(np.log(distribution.low), np.log(distribution.high))))
                values[name] = min(max(value, distribution.low), distribution.high)
            case FloatDistribution(step=None):
                values[name] = rng.uniform(distribution.low, distribution.high)
            case FloatDistribution() | IntDistribution():
                assert distribution.step is not None
                steps = rng.randint(0, round((distribution.high - distribution.low) / distribution.step))
                values[name] = distribution.low + steps * distribution.step
    return values


def in_memory(*directions: StudyDirection) -> tuple[Study, InMemoryStudy]:
    mirror = InMemoryStudy()
    return optuna.create_study(storage=mirror, directions=directions), mirror


def observations_of(trials: Sequence[FrozenTrial], space: dict[str, BaseDistribution], study: Study) -> Observations:
    observations = Observations(space, study)
    for trial in trials:
        observations.add(trial)
    return observations


@given(st.lists(OUTCOMES, max_size=60), st.sampled_from(DIRECTIONS), st.randoms(use_true_random=False))
def test_good_and_bad_trials_are_split_as_in_optuna(
    outcomes: list[tuple[TrialState, float | None, dict[int, float]]], direction: StudyDirection, rng: random.Random
) -> None:
    study, mirror = in_memory(direction)
    for state, value, reports in outcomes:
        mirror.create_new_trial(
            STUDY,
            create_trial(
                state=state,
                value=value,
                params=random_values(rng, TWO_PARAMETERS),
                distributions=TWO_PARAMETERS,
                intermediate_values=reports,
            ),
        )
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    ended = sum(trial.state != TrialState.RUNNING for trial in trials)
    expected = _split_trials(study, trials, default_gamma(ended))
    good_and_bad = observations_of(study.get_trials(deepcopy=False), TWO_PARAMETERS, study).split(TWO_PARAMETERS)
    for hpo_values, optuna_trials in zip(good_and_bad, expected, strict=True):
        assert {name: list(column) for name, column in hpo_values.items()} == {
            name: [trial.params[name] for trial in optuna_trials] for name in TWO_PARAMETERS
        }


FROZEN_OUTCOMES = st.tuples(
    st.dictionaries(st.sampled_from([1, 3, 9]), VALUES, max_size=3),  # the rungs that a trial has reached
    st.sampled_from([TrialState.RUNNING, TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]),
    VALUES,
)


@given(st.lists(FROZEN_OUTCOMES, max_size=60), st.sampled_from(DIRECTIONS), st.randoms(use_true_random=False))
def test_frozen_trials_are_split_as_pruned_ones_in_optuna(
    outcomes: list[tuple[dict[int, float], TrialState, float]], direction: StudyDirection, rng: random.Random
) -> None:
    study, mirror = in_memory(direction)
    observations = Observations(TWO_PARAMETERS, study)
    sign = 1 if direction == StudyDirection.MINIMIZE else -1
    for number, (reached, state, value) in enumerate(outcomes):
        values = random_values(rng, TWO_PARAMETERS)
        shared: dict[str, Any] = {"params": values, "distributions": TWO_PARAMETERS}
        trial = create_trial(state=TrialState.RUNNING, **shared)
        trial.number = number
        observations.add(trial)
        for step in sorted(reached):
            observations.freeze(number, step, (sign * reached[step],))
        as_in_optuna = TrialState.PRUNED if reached and state == TrialState.RUNNING else state
        result = value if state == TrialState.COMPLETE else None
        mirror.create_new_trial(
            STUDY, create_trial(state=as_in_optuna, value=result, intermediate_values=reached, **shared)
        )
        if state != TrialState.RUNNING:
            ended = create_trial(state=state, value=result, intermediate_values=reached, **shared)
            ended.number = number
            observations.add(ended)
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    ended_count = sum(trial.state != TrialState.RUNNING for trial in trials)
    assert observations.ended == ended_count
    expected = _split_trials(study, trials, default_gamma(ended_count))
    for hpo_values, optuna_trials in zip(observations.split(TWO_PARAMETERS), expected, strict=True):
        assert {name: list(column) for name, column in hpo_values.items()} == {
            name: [trial.params[name] for trial in optuna_trials] for name in TWO_PARAMETERS
        }


def test_frozen_trials_of_several_objectives_come_after_completed_ones_by_step_and_domination() -> None:
    study, _ = in_memory(*DIRECTIONS)
    observations = Observations(TWO_PARAMETERS, study)
    for number in range(30):
        values = {"lr": 1e-3, "dropout": number / 100}
        shared: dict[str, Any] = {"params": values, "distributions": TWO_PARAMETERS}
        completed = {0: [0.5, 0.5], 1: [9.0, 0.1]}
        state = TrialState.COMPLETE if number in completed else TrialState.RUNNING
        trial = create_trial(state=state, values=completed.get(number), **shared)
        trial.number = number
        observations.add(trial)
        if number >= 25:  # the losses of trial 29 dominate all others at step 9
            observations.freeze(number, 9, (50.0 - number, 50.0 - number))
        elif number >= 2:
            observations.freeze(number, 3, (0.0, 0.0))
    good, others = observations.split(["dropout"])
    assert list(good["dropout"]) == [0.0, 0.01, 0.29]  # a tenth of 30
    assert len(others["dropout"]) == 27


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 80), st.sets(st.sampled_from(sorted(SPACE)), min_size=1))
def test_densities_are_equal_to_those_of_optuna(seed: int, trials: int, names: set[str]) -> None:
    space = {name: SPACE[name] for name in sorted(names)}
    rng = random.Random(seed)
    rows = [random_values(rng, space) for _ in range(trials)]
    observed = {name: np.array([space[name].to_internal_repr(row[name]) for row in rows]) for name in space}
    sampler = TPESampler(seed=seed)
    estimator = _ParzenEstimator(observed, space, sampler._parzen_estimator_parameters)
    wide = _ParzenEstimator({name: np.array([]) for name in space}, space, sampler._parzen_estimator_parameters)
    for source in (estimator, wide):  # candidates near the kernels and far away
        candidates = source.sample(np.random.RandomState(seed % 2**31), 24)
        optuna_values = estimator.log_pdf(candidates)
        hpo_values = log_density(estimator._mixture_distribution, estimator._transform(candidates))
        # Optuna's normal integrals have an error of up to 1e-7.
        np.testing.assert_allclose(hpo_values, optuna_values, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "directions"),
    [
        (TWO_PARAMETERS, DIRECTIONS[:1]),
        (TWO_PARAMETERS, (*DIRECTIONS, DIRECTIONS[1])),
        (SPACE, DIRECTIONS[1:]),
        (SPACE, DIRECTIONS),
    ],
    ids=["floats", "floats-three-objectives", "all-kinds", "all-kinds-two-objectives"],
)
def test_proposals_are_equal_to_those_of_optuna(
    space: dict[str, BaseDistribution], directions: Sequence[StudyDirection]
) -> None:
    """Search in populations, with members that complete, are pruned, fail or continue to run."""
    study, mirror = in_memory(*directions)
    observations = Observations(space, study)
    rng = random.Random(1)
    running: list[int] = []
    for number in range(80):
        study._thread_local.cached_all_trials = None
        trial = mirror.get_trial(mirror.create_new_trial(STUDY))
        hpo_values = IncrementalTPESampler(number, observations).sample_relative(study, trial, space)
        optuna_values = TPESampler(seed=number, multivariate=True, constant_liar=True).sample_relative(
            study, trial, space
        )
        assert hpo_values == optuna_values
        assert bool(hpo_values) == (observations.ended >= 10)
        for name, value in (hpo_values or random_values(rng, space)).items():
            mirror.set_trial_param(number, name, space[name].to_internal_repr(value), space[name])
        observations.add(mirror.get_trial(number))
        running.append(number)
        if len(running) == 8:
            rng.shuffle(running)
            for done in running[2:]:
                lr = float(mirror.get_trial(done).params["lr"])
                end = rng.choice([TrialState.COMPLETE] * 3 + [TrialState.PRUNED, TrialState.FAIL])
                if len(directions) == 1:  # trials of several objectives report nothing
                    mirror.set_trial_intermediate_value(done, rng.randint(1, 3), lr)
                elif end == TrialState.PRUNED:  # some trials exceed a limit
                    mirror.set_trial_system_attr(done, "constraints:x", lr)
                values = [abs(np.log10(lr) + index + 2) for index in range(len(directions))]
                mirror.set_trial_state_values(done, end, values if end == TrialState.COMPLETE else None)
                observations.add(mirror.get_trial(done))
            del running[2:]


def test_forgotten_trials_do_not_change_the_split() -> None:
    rng = random.Random(2)
    trials = []
    for number in range(100):
        state = TrialState.COMPLETE if number < 70 else TrialState.RUNNING
        value = rng.random() if number < 70 else None
        trials.append(
            create_trial(
                state=state, value=value, params=random_values(rng, TWO_PARAMETERS), distributions=TWO_PARAMETERS
            )
        )
        trials[-1].number = number
    study, _ = in_memory(StudyDirection.MAXIMIZE)
    observations = observations_of(trials, TWO_PARAMETERS, study)
    observations.forget(80)
    expected = observations_of(trials[:80], TWO_PARAMETERS, study)
    for part, expected_part in zip(observations.split(TWO_PARAMETERS), expected.split(TWO_PARAMETERS), strict=True):
        assert {name: list(column) for name, column in part.items()} == {
            name: list(column) for name, column in expected_part.items()
        }
