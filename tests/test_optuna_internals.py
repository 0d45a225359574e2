"""Optuna's private names, attributes and methods that hpo relies on, as the installed Optuna has them."""

from __future__ import annotations

import ast
import inspect
import typing
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.pruners import HyperbandPruner, MedianPruner
from optuna.samplers import QMCSampler, TPESampler
from optuna.storages import InMemoryStorage, RDBStorage

import hpo
from hpo import optuna_internals

PACKAGE = Path(hpo.__file__).parent

OVERRIDDEN = {
    RDBStorage._get_trials: ["study_id", "states", "included_trial_ids", "trial_id_greater_than"],
    TPESampler._sample_relative: ["study", "trial", "search_space"],
    TPESampler._sample: ["study", "trial", "search_space"],
    QMCSampler._find_sample_id: ["study", "search_space"],
    HyperbandPruner._get_bracket_id: ["study", "trial"],
}
"""Methods that hpo's subclasses override, with their parameters."""

ATTRIBUTES = [
    (TPESampler(seed=0), ["_n_startup_trials", "_n_ei_candidates", "_rng", "_parzen_estimator_cls", "_compare"]),
    (TPESampler(seed=0), ["_parzen_estimator_parameters"]),
    (MedianPruner(), ["_n_startup_trials"]),
    (HyperbandPruner(), ["_pruners"]),
    (InMemoryStorage(), ["_studies", "_trial_id_to_study_id_and_number", "_max_trial_id", "_set_trial"]),
    (optuna.create_study(), ["_study_id", "_stop_flag"]),
    (optuna.trial.create_trial(value=0.0), ["_trial_id"]),
]
"""Instances, with the private attributes that hpo reads or sets."""

COLUMNS = {
    "studies": ["study_id", "study_name"],
    "study_directions": ["study_direction_id", "direction", "study_id", "objective"],
    "study_user_attributes": ["study_user_attribute_id", "study_id", "key", "value_json"],
    "study_system_attributes": ["study_system_attribute_id", "study_id", "key", "value_json"],
    "trials": ["trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"],
    "trial_params": ["param_id", "trial_id", "param_name", "param_value", "distribution_json"],
    "trial_values": ["trial_value_id", "trial_id", "objective", "value", "value_type"],
    "trial_intermediate_values": [
        "trial_intermediate_value_id",
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    ],
    "trial_user_attributes": ["trial_user_attribute_id", "trial_id", "key", "value_json"],
    "trial_system_attributes": ["trial_system_attribute_id", "trial_id", "key", "value_json"],
    "trial_heartbeats": ["trial_heartbeat_id", "trial_id", "heartbeat"],
}
"""Tables that hpo's transactions write, with all of their columns."""


@pytest.mark.parametrize("method", OVERRIDDEN, ids=lambda method: method.__qualname__)
def test_a_method_that_hpo_overrides_has_the_parameters_that_hpo_expects(method: typing.Any) -> None:
    assert list(inspect.signature(method).parameters)[1:] == OVERRIDDEN[method]


@pytest.mark.parametrize(("instance", "names"), ATTRIBUTES, ids=lambda each: type(each).__name__)
def test_private_attributes_exist(instance: object, names: list[str]) -> None:
    assert [name for name in names if not hasattr(instance, name)] == []


def test_the_tables_have_the_columns_that_hpo_writes() -> None:
    tables: dict[str, sa.Table] = dict(optuna_internals.models.BaseModel.metadata.tables)
    assert tables.keys() - {"version_info"} == COLUMNS.keys()
    assert {name: sorted(tables[name].columns.keys()) for name in COLUMNS} == {
        name: sorted(columns) for name, columns in COLUMNS.items()
    }


def test_only_one_module_imports_private_names_of_optuna() -> None:
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optuna":
                names = [*(node.module or "").split("."), *(each.name for each in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for each in node.names for part in each.name.split(".") if "optuna" in each.name]
            else:
                continue
            if any(name.startswith("_") for name in names):
                importing.add(path.relative_to(PACKAGE).as_posix())
    assert importing == {"optuna_internals.py"}
