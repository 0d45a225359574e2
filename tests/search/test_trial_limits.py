"""Limits of trials (`[search.limits]`): trials that exceed a limit are infeasible and not trained."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.samplers._tpe.sampler import _split_trials
from optuna.trial import TrialState, create_trial
from tiny import check_whole, search, study_of, trials_of

from hpo.errors import StudyFileError, UsageError
from hpo.search.events import TrialsLeftOut
from hpo.search.sampling.sampler_history import SamplerHistory
from hpo.search.sampling.tpe import IncrementalTPESampler, Observations
from hpo.search.space import Values, distributions
from hpo.storage import Storage, best_trials, load_study
from hpo.studyfile import Study

LAYERS = {"hidden": {"choices": [[4], [100]]}}
LIMIT = 2000  # parameters: 310 with a hidden layer of 4 units, 7,510 with one of 100


def limited_study(**changes: Any) -> Study:
    """Return a study whose larger networks exceed its limit."""
    search_table = {"limits": {"parameters": LIMIT}, "sampler": "tpe", "trials": 16, **changes}
    return study_of(network=LAYERS, training={"epochs": 1}, search=search_table)


@pytest.mark.parametrize("pruner", ["none", "hyperband"])
def test_networks_over_the_limit_are_not_trained(storage: Storage, pruner: str) -> None:
    events = search(limited_study(pruner=pruner), storage)
    trials = trials_of(storage)
    check_whole(trials, 16)
    large = [trial for trial in trials if trial.params["hidden"] == "[100]"]
    assert large
    for trial in large:
        assert (trial.state, trial.values) == (TrialState.PRUNED, None)
        assert trial.constraints == {"parameters": 7510 - LIMIT}
        assert trial.user_attrs["reason"] == "7,510 parameters, more than search.limits.parameters = 2,000"
        assert not trial.intermediate_values
    small = [trial for trial in trials if trial not in large]
    assert {trial.state for trial in small} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(trial.constraints == {"parameters": 310 - LIMIT} for trial in small)
    left_out = [number for event in events if isinstance(event, TrialsLeftOut) for number in event.members]
    assert sorted(left_out) == [trial.number for trial in large]
    best = best_trials(storage, "tiny", 16)
    assert {trial.params["hidden"] for trial in best} == {"[4]"}
    assert load_study(storage, "tiny").best_trial.number == best[0].number


def test_a_network_that_does_not_fit_into_memory_fails_alone(storage: Storage) -> None:
    """The network is refused before allocation: a system may grant more memory than it has."""
    study = study_of(
        optimizer={"lr": 0.1},
        network={"hidden": {"choices": [[4], [10**6, 10**6], [2**50]]}},
        search={"trials": 3, "sampler": "grid"},
    )
    search(study, storage)
    trials = load_study(storage, "tiny").trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "FAIL"]
    assert [trial.user_attrs.get("reason") for trial in trials[1:]] == [
        "a single network does not fit into the memory of cpu: use a smaller network or batch size",
        "network.hidden: makes a layer of at least 2^56 weights, too many for any machine",
    ]


def test_tpe_learns_to_stay_within_the_limit() -> None:
    space = distributions(limited_study())
    observations = Observations(space, optuna.create_study(direction="maximize"))
    for number in range(40):
        state = TrialState.PRUNED if number % 2 else TrialState.COMPLETE
        params = {"hidden": "[100]" if number % 2 else "[4]", "lr": 0.01}
        attrs = {"constraints:parameters": 5510.0 if number % 2 else -1690.0}
        value = None if number % 2 else 0.5
        trial = create_trial(state=state, value=value, params=params, distributions=space, system_attrs=attrs)
        trial.number = number
        observations.add(trial)
    proposed = [IncrementalTPESampler(seed, observations)._sample(None, None, space) for seed in range(20)]  # type: ignore[arg-type]
    assert [values["hidden"] for values in proposed].count("[4]") >= 18  # a random sampler gives about ten


@pytest.mark.parametrize("sampler", ["tpe", "gp", "nsga2"])
def test_a_study_with_a_limit_can_start_from_one_without(storage: Storage, sampler: str) -> None:
    """Trials of the other study have no constraints, but these samplers need them for all trials or none."""
    search(study_of(name="before", network=LAYERS, training={"epochs": 1}, search={"trials": 14}), storage)
    search(limited_study(start_from=["before"], sampler=sampler, trials=4), storage)
    trials = trials_of(storage)
    check_whole(trials, 4)
    assert {trial.params["hidden"] for trial in trials if trial.state == TrialState.COMPLETE} == {"[4]"}


def test_infeasible_trials_of_another_study_are_no_good_examples() -> None:
    def excess(values: Values) -> dict[str, float]:
        return {"constraints:parameters": 5510.0 if values["hidden"] == "[100]" else -1690.0}

    study = limited_study()
    known = []
    for number in range(40):
        params = {"hidden": "[100]" if number % 2 else "[4]", "lr": 0.01 + number / 1000}
        known.append(create_trial(value=number % 2, params=params, distributions=distributions(study)))
    large = [
        [values["hidden"] for _, values in SamplerHistory(study, (), known, *constraints).ask(20)].count("[100]")
        for constraints in ([excess], [])
    ]
    assert large[0] <= 5 < 13 <= large[1]  # a random sampler gives about ten


def test_infeasible_trials_are_ranked_as_in_optuna() -> None:
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    observations = Observations(space, optuna.create_study(direction="maximize"))
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    outcomes = [(TrialState.PRUNED, None, 50.0), (TrialState.PRUNED, None, 5.0), (TrialState.PRUNED, None, -1.0)]
    outcomes += [(TrialState.COMPLETE, 0.1, -1.0), (TrialState.COMPLETE, 0.9, 3.0)]
    for number, (state, value, excess) in enumerate(outcomes):
        attrs = {"constraints:parameters": excess}
        study.add_trial(
            create_trial(state=state, value=value, params={"x": number / 10}, distributions=space, system_attrs=attrs)
        )
        observations.add(study.trials[-1])
    for count in range(6):
        below, _ = _split_trials(study, study.trials, count)
        assert {trial.number for trial in below} == {merit[-1] for merit in observations._best_first[:count]}


def test_a_limit_below_every_network_is_refused(storage: Storage) -> None:
    study = study_of(network={"hidden": [100]}, search={"limits": {"parameters": LIMIT}})
    with pytest.raises(StudyFileError, match="is below the 7,510 parameters that every network of this study has"):
        search(study, storage)


def test_a_limit_must_be_a_number_and_cannot_change(storage: Storage) -> None:
    for limits, problem in (
        ({"parameters": 0}, r"search\.limits\.parameters: must be at least 1 \(got 0\)"),
        ({"parameter": 9}, r"search\.limits\.parameter: unknown key \(did you mean 'parameters'\?\)"),
        (9, r"search\.limits: must be a table \(got 9\)"),
        ({"low": 1, "high": 9}, r"search\.limits\.low: unknown key"),
    ):
        with pytest.raises(StudyFileError, match=problem):
            limited_study(limits=limits)
    search(limited_study(trials=2), storage)
    with pytest.raises(UsageError, match=r"search\.limits\.parameters: 2000 -> 10"):
        search(limited_study(trials=3, limits={"parameters": 10}), storage, extend=True)
