"""Exports of single trials: the best one, the confirmed winner, one by number, or the Pareto front.

    hpo.best/3       a trial of a network study (best.schema.json; best-1 and best-2 describe the older versions)
    hpo.objective/2  a trial of an objective study (objective.schema.json; objective-1 describes the older version)
    hpo.optuna/1     a trial of a study of another program (optuna.schema.json)
    hpo.front/1      several such objects: the Pareto front of a study with several metrics (front.schema.json)

In `hpo.best/3`, `config` is a study file of that trial alone, with the epochs that it, or its confirmation, was trained
for. The object is enough for `hpo replay`: it contains the seed, the versions and the hashes of data and code. An
objective study's parameters are for the user's code, whose hashes are in `code`. Exporting changes nothing in the
storage.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo.errors import HpoError
from hpo.results.certificate import certificate_of
from hpo.results.completed_trial import completed_trial
from hpo.results.confirm.result import Confirmation, find_confirmation
from hpo.results.confirm.text import winner_tree
from hpo.results.derived_names import with_suffix
from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import score, values_of
from hpo.results.selection import params_of
from hpo.results.study_facts import counts_by_state, metrics_of, reported_curve
from hpo.search.points import trial_split
from hpo.search.study_records import (
    CODE,
    CURVE,
    DATA,
    RUN,
    STUDY,
    any_stored_study,
    config_as_trained,
    precision_of,
    user_attrs_of,
    with_epochs,
)
from hpo.storage import IDENTITY, WORKER, Storage, StudySummary, best_trials, load_study, summary
from hpo.studyfile import Config, ObjectiveStudy, Study
from hpo.studyfile.keys import SEARCHABLE, unused_keys
from hpo.text import encode_non_finite
from hpo.versions import provenance

VERSION = 3
SCHEMA = f"hpo.best/{VERSION}"
OBJECTIVE_SCHEMA = "hpo.objective/2"
OPTUNA_SCHEMA = "hpo.optuna/1"
FRONT_SCHEMA = "hpo.front/1"
SUFFIX = "-best"


def export(storage: Storage, name: str, confirmed: bool = False, trial: int | None = None) -> dict[str, Any]:
    """Return the export of a study's best trial, or of its Pareto front where it has several metrics.

    With `confirmed` it is the winner of the confirmation, with `trial` the completed trial of that number. Raises
    HpoError where there is no such trial, and where the study has not been confirmed.
    """
    stored = load_study(storage, name)
    confirmation = None
    if confirmed:
        any_stored_study(stored)  # refuses the study of another program
        confirmation = find_confirmation(storage, name)
        if confirmation is None:
            raise HpoError(f"study {name!r} has not been confirmed: run `hpo confirm` first")
        trial = confirmation.winner.candidate.trial
    if trial is not None:
        trials = [completed_trial(storage, name, trial)]
    else:
        trials = [storage.get_trial(each._trial_id) for each in best_trials(storage, stored._study_id)]
    if not trials:
        raise no_best_trial(storage, name, "there is nothing to export")
    attrs, found = user_attrs_of(stored), summary(storage, stored._study_id)
    study = any_stored_study(stored) if STUDY in attrs else None
    if found.user_attrs.get(IDENTITY) != attrs.get(IDENTITY):
        raise HpoError(f"study {name!r} was deleted and created anew while it was read: export it again")
    if study is None:
        records = [_optuna_trial(found, each) for each in trials]
    elif isinstance(study, ObjectiveStudy):
        records = [_objective_trial(study, attrs, found, each, confirmation) for each in trials]
    else:
        records = [_network_trial(study, attrs, found, each, confirmation) for each in trials]
    several = trial is None and len(stored.directions) > 1
    tree: dict[str, Any] = encode_non_finite(_front(name, stored, found, records) if several else records[0])
    return tree


def _front(name: str, stored: optuna.Study, found: StudySummary, records: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "schema": FRONT_SCHEMA,
        "study": name,
        "metrics": list(metrics_of(found)),
        "directions": _directions(found),
        "trials": counts_by_state(found.states),
        "front": records,
        **provenance(),
    }


def _network_trial(
    study: Study, attrs: Mapping[str, Any], found: StudySummary, trial: FrozenTrial, confirmation: Confirmation | None
) -> dict[str, Any]:
    if "seed" not in trial.user_attrs:
        raise HpoError(
            f"study {study.name!r}: trial {trial.number} was not trained by hpo and cannot be repeated: export another "
            "one with --trial"
        )
    params = params_of(study, trial)
    config = config_as_trained(study, trial)
    if confirmation is not None:
        config = with_epochs(config, confirmation.winner_epochs)
    precision, split = precision_of(config, attrs[RUN]["precision"]), trial_split(study, trial.number)
    curve = trial.system_attrs.get(CURVE, {})
    worker = trial.system_attrs.get(WORKER, {})  # processes may train on several devices
    return {
        "schema": SCHEMA,
        "study": study.name,
        "trial": trial.number,
        "metric": study.search.first_metric,
        "direction": _directions(found)[0],
        "value": score(trial),
        **values_of(study.search.metrics, trial),
        "params": params,
        "config": best_config(study, config, precision, split),
        "epochs": len(curve.get(study.search.first_metric, ())) or config.training.epochs,
        "seed": trial.user_attrs["seed"],
        "curve": curve,
        "precision": precision,
        "device": worker.get("device") or attrs[RUN]["device"],
        "trials": counts_by_state(found.states),
        "confirmed": None if confirmation is None else winner_tree(confirmation),
        "verified": certificate_of(attrs, study.name),
        "data": _data_of_split(attrs[DATA], split),
        **({"code": attrs[CODE]} if CODE in attrs else {}),
        **provenance(),
    }


def _optuna_trial(found: StudySummary, trial: FrozenTrial) -> dict[str, Any]:
    return {
        "schema": OPTUNA_SCHEMA,
        "study": found.name,
        "trial": trial.number,
        "direction": _directions(found)[0],
        "value": score(trial),
        **values_of(metrics_of(found), trial),
        "params": trial.params,
        "curve": reported_curve(trial),
        "user_attrs": trial.user_attrs,
        "trials": counts_by_state(found.states),
        **provenance(),
    }


def _objective_trial(
    study: ObjectiveStudy,
    attrs: Mapping[str, Any],
    found: StudySummary,
    trial: FrozenTrial,
    confirmation: Confirmation | None,
) -> dict[str, Any]:
    return {
        **_optuna_trial(found, trial),
        "schema": OBJECTIVE_SCHEMA,
        "objective": study.objective,
        "code": attrs[CODE],
        "config": study.resolved(),
        "confirmed": None if confirmation is None else winner_tree(confirmation),
    }


def _directions(found: StudySummary) -> list[str]:
    return [direction.name.lower() for direction in found.directions]


def best_config(study: Study, config: Config, precision: str, split: int = 0) -> dict[str, Any]:
    """Return the resolved study file of one configuration: its values in the place of the search space.

    `precision` replaces "auto", so that a replay on another device trains in the same one. `split` is the index of the
    trial's split, which is the only one in the file.
    """
    tree = study.resolved()
    for section in SEARCHABLE:
        values = getattr(config, section).model_dump(exclude_none=True)
        unused = unused_keys(section, values)  # a study file refuses keys that its kind does not use
        tree[section] = {key: value for key, value in values.items() if key not in unused}
    tree["training"]["precision"] = precision
    tree["name"] = with_suffix(study.name, SUFFIX)
    tree["search"] |= {"trials": 1, "points": [], "repeats": 1, "start_from": []}
    tree["baseline"] = {}
    if tree["data"].pop("splits", None) is not None:
        tree["data"]["split_seed"] += split
    return tree


def _data_of_split(record: Mapping[str, Any], split: int) -> dict[str, Any]:
    """Return the data record of a study with the split of that index only."""
    others = record.get("other_splits_sha256", ())
    found = {key: value for key, value in record.items() if key != "other_splits_sha256"}
    return found | {"split_sha256": (record["split_sha256"], *others)[split]}
