"""The lean TPE proposes what Optuna's own does: the same good trials, the same densities, the same proposals."""

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
TWO = {name: SPACE[name] for name in ("lr", "dropout")}
MISSING = float("nan")
VALUES = st.sampled_from([0.0, -0.0, 0.5, 0.25, 1.0, -1.0, float("inf"), -float("inf")])  # few, so many are equal
ENDED = st.one_of(
    st.builds(lambda value: (TrialState.COMPLETE, value, {}), VALUES),
    st.builds(
        lambda reports: (TrialState.PRUNED, None, reports),
        st.dictionaries(st.integers(1, 3), VALUES | st.just(MISSING), max_size=2),
    ),
    st.just((TrialState.RUNNING, None, {})),
    st.just((TrialState.FAIL, None, {})),
)


def sampled(draw: random.Random, space: dict[str, BaseDistribution]) -> dict[str, Any]:
    """Values drawn uniformly, on the log scale where the distribution has one."""
    values: dict[str, Any] = {}
    for name, distribution in space.items():
        match distribution:
            case CategoricalDistribution():
                values[name] = draw.choice(distribution.choices)
            case FloatDistribution(log=True):
                value = float(np.exp(draw.uniform(np.log(distribution.low), np.log(distribution.high))))
                values[name] = min(max(value, distribution.low), distribution.high)
            case FloatDistribution(step=None):
                values[name] = draw.uniform(distribution.low, distribution.high)
            case FloatDistribution() | IntDistribution():
                assert distribution.step is not None
                steps = draw.randint(0, round((distribution.high - distribution.low) / distribution.step))
                values[name] = distribution.low + steps * distribution.step
    return values


def in_memory(*directions: StudyDirection) -> tuple[Study, InMemoryStudy]:
    mirror = InMemoryStudy()
    return optuna.create_study(storage=mirror, directions=directions), mirror


def noted(trials: Sequence[FrozenTrial], space: dict[str, BaseDistribution], study: Study) -> Observations:
    observations = Observations(space, study)
    for trial in trials:
        observations.add(trial)
    return observations


@given(st.lists(ENDED, max_size=60), st.sampled_from(DIRECTIONS), st.randoms(use_true_random=False))
def test_the_good_trials_are_those_of_optuna(
    ends: list[tuple[TrialState, float | None, dict[int, float]]], direction: StudyDirection, draw: random.Random
) -> None:
    study, mirror = in_memory(direction)
    for state, value, reports in ends:
        mirror.create_new_trial(
            STUDY,
            create_trial(
                state=state, value=value, params=sampled(draw, TWO), distributions=TWO, intermediate_values=reports
            ),
        )
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
    ended = sum(trial.state != TrialState.RUNNING for trial in trials)
    expected = _split_trials(study, trials, default_gamma(ended))
    found = noted(study.get_trials(deepcopy=False), TWO, study).split(TWO)
    for ours, theirs in zip(found, expected, strict=True):
        assert {name: list(column) for name, column in ours.items()} == {
            name: [trial.params[name] for trial in theirs] for name in TWO
        }


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(0, 80), st.sets(st.sampled_from(sorted(SPACE)), min_size=1))
def test_the_densities_are_those_of_optuna(seed: int, trials: int, names: set[str]) -> None:
    space = {name: SPACE[name] for name in sorted(names)}
    draw = random.Random(seed)
    rows = [sampled(draw, space) for _ in range(trials)]
    observed = {name: np.array([space[name].to_internal_repr(row[name]) for row in rows]) for name in space}
    sampler = TPESampler(seed=seed)
    estimator = _ParzenEstimator(observed, space, sampler._parzen_estimator_parameters)
    wide = _ParzenEstimator({name: np.array([]) for name in space}, space, sampler._parzen_estimator_parameters)
    for source in (estimator, wide):  # candidates near the kernels, and far from them
        candidates = source.sample(np.random.RandomState(seed % 2**31), 24)
        theirs = estimator.log_pdf(candidates)
        ours = log_density(estimator._mixture_distribution, estimator._transform(candidates))
        # Optuna's own normal integrals are good to 1e-7.
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("space", "directions"),
    [(TWO, DIRECTIONS[:1]), (TWO, (*DIRECTIONS, DIRECTIONS[1])), (SPACE, DIRECTIONS[1:]), (SPACE, DIRECTIONS)],
    ids=["floats", "floats-three-objectives", "all-kinds", "all-kinds-two-objectives"],
)
def test_the_proposals_are_those_of_optuna(
    space: dict[str, BaseDistribution], directions: Sequence[StudyDirection]
) -> None:
    """A search in populations, with members that complete, are pruned, fail, or run for longer."""
    study, mirror = in_memory(*directions)
    observations = Observations(space, study)
    draw = random.Random(1)
    running: list[int] = []
    for number in range(80):
        study._thread_local.cached_all_trials = None
        trial = mirror.get_trial(mirror.create_new_trial(STUDY))
        ours = IncrementalTPESampler(number, observations).sample_relative(study, trial, space)
        theirs = TPESampler(seed=number, multivariate=True, constant_liar=True).sample_relative(study, trial, space)
        assert ours == theirs
        assert bool(ours) == (observations.ended >= 10)
        for name, value in (ours or sampled(draw, space)).items():
            mirror.set_trial_param(number, name, space[name].to_internal_repr(value), space[name])
        observations.add(mirror.get_trial(number))
        running.append(number)
        if len(running) == 8:
            draw.shuffle(running)
            for done in running[2:]:
                lr = float(mirror.get_trial(done).params["lr"])
                end = draw.choice([TrialState.COMPLETE] * 3 + [TrialState.PRUNED, TrialState.FAIL])
                if len(directions) == 1:  # nothing is reported of several objectives
                    mirror.set_trial_intermediate_value(done, draw.randint(1, 3), lr)
                elif end == TrialState.PRUNED:  # but some trials exceed a limit
                    mirror.set_trial_system_attr(done, "constraints:x", lr)
                values = [abs(np.log10(lr) + place + 2) for place in range(len(directions))]
                mirror.set_trial_state_values(done, end, values if end == TrialState.COMPLETE else None)
                observations.add(mirror.get_trial(done))
            del running[2:]


def test_what_is_forgotten_was_never_there() -> None:
    draw = random.Random(2)
    trials = []
    for number in range(100):
        state = TrialState.COMPLETE if number < 70 else TrialState.RUNNING
        value = draw.random() if number < 70 else None
        trials.append(create_trial(state=state, value=value, params=sampled(draw, TWO), distributions=TWO))
        trials[-1].number = number
    study, _ = in_memory(StudyDirection.MAXIMIZE)
    observations = noted(trials, TWO, study)
    observations.forget(80)
    expected = noted(trials[:80], TWO, study)
    for ours, theirs in zip(observations.split(TWO), expected.split(TWO), strict=True):
        assert {name: list(column) for name, column in ours.items()} == {n: list(c) for n, c in theirs.items()}
