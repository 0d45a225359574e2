"""Multi-objective studies: values of trials, samplers that learn from the Pareto front, invalid settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import optuna
import pytest
from objectives import objective_study
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from schemas import schema
from tiny import after_epochs, check_whole, search, study_of, trials_of

from hpo.errors import StudyFileError
from hpo.results.export.best import export
from hpo.results.ranking import top_lines
from hpo.search.plan import member_of, plan, to_planned_device
from hpo.search.sampling.samplers import GENERATION, check_search
from hpo.search.space import config_of
from hpo.search.study_records import CURVE
from hpo.storage import Storage, best_trials, load_study
from hpo.storage.artifacts import checkpoint_files
from hpo.storage.pareto import trials_since_best
from hpo.studyfile import Study
from hpo.training.population import train

SIZES = {"hidden": {"choices": [[4], [8], [16]]}}
PARAMETERS = {"[4]": 310, "[8]": 610, "[16]": 1210}  # 64 inputs, 10 classes: 75 n + 10
MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE


def multi_metric_study(*metrics: str, epochs: int = 2, keep: str = "none", **search_keys: Any) -> Study:
    """Return a study that searches the size of the network and the learning rate."""
    search_table = {"metric": list(metrics), "sampler": "tpe", "trials": 12, **search_keys}
    data = {"stratify": False}
    return study_of(data=data, network=SIZES, training={"epochs": epochs, "keep": keep}, search=search_table)


def test_a_trial_has_a_value_for_each_metric(storage: Storage) -> None:
    search(multi_metric_study("val_accuracy", "val_loss", "parameters", "seconds_per_epoch"), storage)
    stored = load_study(storage, "tiny")
    assert stored.directions == [MAXIMIZE, MINIMIZE, MINIMIZE, MINIMIZE]
    assert stored.metric_names == ["val_accuracy", "val_loss", "parameters", "seconds_per_epoch"]
    trials = trials_of(storage)
    check_whole(trials, 12)
    for trial in trials:
        curve = trial.system_attrs[CURVE]
        accuracy, loss, parameters, seconds = trial.values
        assert (accuracy, loss) == (curve["val_accuracy"][-1], curve["val_loss"][-1])
        assert parameters == PARAMETERS[trial.params["hidden"]]
        assert 0 < seconds < 60
        assert list(trial.intermediate_values.values()) == curve["val_accuracy"]


def test_a_plateau_follows_the_validation_loss_where_another_metric_is_maximized(storage: Storage) -> None:
    """The accuracy rises while the loss falls: reductions by it would come in other epochs."""
    optimizer = {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.3}
    study = study_of(optimizer=optimizer, training={"epochs": 6}, search={"metric": "val_accuracy", "trials": 4})
    search(study, storage)
    split = to_planned_device(study, plan(study, "cpu"))[0]

    def losses(trial: FrozenTrial, metric: str) -> list[float]:
        """Return the validation losses of the trial alone, with reductions by a metric of its stored curve."""
        member = member_of(study, trial.number, config_of(study, trial.params))
        given = replace(member, val_losses=tuple(trial.system_attrs[CURVE][metric]))
        return [each.metrics[trial.number]["val_loss"] for each in train([given], split, "float64")]

    for trial in trials_of(storage):
        stored = pytest.approx(trial.system_attrs[CURVE]["val_loss"], abs=1e-9)
        assert losses(trial, "val_loss") == stored
        assert losses(trial, "val_accuracy") != stored


def test_all_metrics_come_from_the_best_epoch_of_the_first_metric(storage: Storage) -> None:
    search(multi_metric_study("val_loss", "val_accuracy", epochs=5, score="best"), storage)
    epochs = set()
    for trial in trials_of(storage):
        curve = trial.system_attrs[CURVE]
        best = min(range(5), key=lambda epoch, losses=curve["val_loss"]: losses[epoch])
        assert trial.values == [curve["val_loss"][best], curve["val_accuracy"][best]]
        assert trial.user_attrs["score_epoch"] == best + 1
        epochs.add(best)
    assert len(epochs) > 1  # otherwise the last epoch would pass as well


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("gp", marks=pytest.mark.slow), "nsga2"])
def test_an_interrupted_search_resumes(storage: Storage, sampler: str) -> None:
    study = multi_metric_study("val_loss", "parameters", sampler=sampler, trials=16)
    search(study, storage, stop_at=after_epochs(3))
    search(study, storage)
    check_whole(trials_of(storage), 16)
    best = best_trials(storage, "tiny", 99)
    assert [trial.number for trial in load_study(storage, "tiny").best_trials] == sorted(trial.number for trial in best)


def test_grid_scores_every_combination_by_all_metrics(storage: Storage) -> None:
    lrs = {"choices": [0.01, 0.1]}
    search_table = {"metric": ["val_loss", "parameters"], "sampler": "grid", "trials": 6}
    search(study_of(network=SIZES, optimizer={"lr": lrs}, search=search_table), storage)
    assert sorted(trial.values[1] for trial in trials_of(storage)) == sorted([*PARAMETERS.values()] * 2)


def test_nsga2_continues_its_generations_after_a_restart(storage: Storage) -> None:
    points = [{"lr": 0.5, "hidden": [16]}]
    study = multi_metric_study(
        "val_loss", "parameters", sampler="nsga2", trials=110, population=8, epochs=1, points=points
    )
    search(study, storage, stop_at=after_epochs(10))
    before = len(trials_of(storage))
    search(study, storage)
    trials = trials_of(storage)
    generations = [trial.system_attrs[GENERATION] for trial in trials]
    assert 50 < before < 110
    assert set(generations) == {0, 1}
    assert generations[0] == 0  # a point of the study file has no parents
    assert generations.count(0) < 50 + 3 * 8  # 50 trials, and random trials that ran when it was full
    # Children inherit from the best half, so they are nearer to the front than random trials.
    first, second = ([t for t, g in zip(trials, generations, strict=True) if g == n] for n in (0, 1))
    assert _mean_loss(second) < _mean_loss(first)


def _mean_loss(trials: list[FrozenTrial]) -> float:
    return sum(trial.values[0] for trial in trials) / len(trials)


def test_checkpoints_are_stored_for_the_trials_on_the_front(storage: Storage) -> None:
    search(multi_metric_study("val_loss", "parameters", keep="last"), storage)
    best = {trial.number for trial in best_trials(storage, "tiny", 5)}
    study_id = load_study(storage, "tiny")._study_id
    assert {file.number for file in checkpoint_files(storage, study_id)} == best


@pytest.mark.parametrize(
    ("search_keys", "problem"),
    [
        ({"metric": ["val_loss"]}, r"search\.metric: must be one metric, or a list of different metrics"),
        ({"metric": ["val_loss", "val_loss"]}, r"search\.metric: must be one metric, or a list of different metrics"),
        ({"metric": ["parameters", "val_loss"]}, r"search\.metric: must begin with the metric of the learning curves"),
        ({"metric": "parameters"}, r"search\.metric: unknown metric 'parameters'; known: val_accuracy"),
        ({"metric": ["val_loss", "flops"]}, r"search\.metric\.1: .*flops"),
        ({"metric": ["val_loss", "parameters"], "pruner": "median"}, r"search\.pruner: median and hyperband compare"),
        ({"metric": ["val_loss", "parameters"], "sampler": "cmaes"}, r"search\.sampler: cmaes supports one metric"),
    ],
)
def test_invalid_settings_of_several_metrics_are_refused(search_keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(StudyFileError, match=problem):
        check_search(study_of(optimizer={"weight_decay": {"low": 0.0, "high": 0.1}}, search=search_keys))


def ended_trial(*values: float, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    return create_trial(state=state, values=values or None)


@pytest.mark.parametrize(
    ("trials", "directions", "since"),
    [
        ([], [MINIMIZE], 0),
        ([ended_trial(0.5), ended_trial(0.4), ended_trial(0.4), ended_trial(0.6)], [MINIMIZE], 2),
        ([ended_trial(0.5), ended_trial(0.4), ended_trial(0.6, state=TrialState.PRUNED)], [MAXIMIZE], 2),
        ([ended_trial(0.5, 9), ended_trial(0.4, 8), ended_trial(0.6, 9), ended_trial(0.5, 9)], [MAXIMIZE, MINIMIZE], 1),
        ([ended_trial(0.5, 9), ended_trial(0.4, 8), ended_trial(0.4, 8), ended_trial(0.3, 8)], [MAXIMIZE, MINIMIZE], 2),
        ([ended_trial(0.5, 9), ended_trial(math.inf, 9), ended_trial(state=TrialState.FAIL)], [MINIMIZE, MINIMIZE], 1),
    ],
)
def test_trials_since_best_counts_trials_without_improvement(
    trials: list[FrozenTrial], directions: list[StudyDirection], since: int
) -> None:
    for number, trial in enumerate(trials):
        trial.number = number
    assert trials_since_best(trials, directions) == since


TWO_VALUES = """
def objective(trial):
    x = trial.suggest_float("x", -2, 2)
    return x**2, (x - 1) ** 2
"""


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_an_objective_may_return_two_values(storage: Storage, tmp_path: Path, sampler: str) -> None:
    study = objective_study(tmp_path, TWO_VALUES, direction=["minimize", "minimize"], sampler=sampler, trials=12)
    search(study, storage)
    front = load_study(storage, "own").best_trials
    lines = top_lines(storage, "own", 99)
    assert len(lines) == len(front) < 12
    assert lines[0].startswith(f"Front-1 (trial {min(front, key=lambda trial: trial.values).number}) | value 0: ")
    exported = export(storage, "own")
    jsonschema.validate(exported, schema("front"))
    for entry in exported["front"]:
        jsonschema.validate(entry, schema("objective"))
        assert entry["values"] == {"value 0": entry["value"], "value 1": pytest.approx((entry["params"]["x"] - 1) ** 2)}


def test_an_objective_that_returns_another_number_of_values_fails(storage: Storage, tmp_path: Path) -> None:
    study = objective_study(tmp_path, TWO_VALUES, direction=["minimize"] * 3, trials=2)
    search(study, storage)
    assert {trial.state for trial in load_study(storage, "own").trials} == {TrialState.FAIL}


def test_cmaes_is_refused_for_an_objective_of_two_values(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=r"search\.sampler: cmaes optimizes one direction only"):
        objective_study(tmp_path, TWO_VALUES, direction=["minimize", "maximize"], sampler="cmaes")


def test_a_study_created_by_optuna_has_a_front(storage: Storage) -> None:
    plain = optuna.create_study(storage=storage, study_name="plain", directions=["minimize", "maximize"])
    for values in ((1.0, 2.0), (2.0, 3.0), (2.0, 1.0)):
        plain.add_trial(create_trial(values=values))
    assert top_lines(storage, "plain", 9) == [
        "Front-1 (trial 0) | value 0: 1.0000, value 1: 2.0000",
        "Front-2 (trial 1) | value 0: 2.0000, value 1: 3.0000",
    ]
    assert top_lines(storage, "plain", 1)[1:] == ["and 1 more on the front; -n 2 shows all"]
