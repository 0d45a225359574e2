"""A study's best trial, another one, or the one that a confirmation found best, as one object: `hpo.best/2`.

It promises that `config` is a study file in itself (launching it trains those hyperparameters once more, as a study of
its own), that the trial can be repeated from the object alone (`hpo replay`), and that the object says which data, seed
and versions it rests on. best.schema.json beside this module describes it, best-1.schema.json what was written before.
A trial of an objective of the user's own is another object: `objective_export.py` has it. Of several metrics there is
no one best trial: all that are on the Pareto front, each such an object, are in one more, `hpo.front/1`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
import tomli_w
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import HpoError, UsageError
from hpo.results.certificate import certificate_of
from hpo.results.confirm.result import Confirmation, find_confirmation
from hpo.results.confirm.text import confirmation_record
from hpo.results.export.objective_trial import objective_record
from hpo.results.lookup import metrics_of
from hpo.results.naming import followed
from hpo.results.ranking import score, values_of
from hpo.results.states import STATES, by_word
from hpo.results.unranked import no_best
from hpo.search.space import decode
from hpo.search.study_records import CODE, CURVE, DATA, RUN, any_stored_study, precision_of, user_attrs_of
from hpo.storage import IDENTITY, WORKER, Storage, best_trials, load_study, summary
from hpo.storage.studies import best_limit
from hpo.studyfile import ObjectiveStudy, Study
from hpo.studyfile.keys import SEARCHABLE, unused_keys
from hpo.studyfile.messages import dotted
from hpo.studyfile.trees import Path
from hpo.text import encode_non_finite, escape_toml, json_text
from hpo.versions import provenance

VERSION = 2
SCHEMA = f"hpo.best/{VERSION}"
FRONT_SCHEMA = "hpo.front/1"
SUFFIX = "-best"


def export(storage: Storage, name: str, confirmed: bool = False, trial: int | None = None) -> dict[str, Any]:
    """Return the export of the study of that name: of its best trial, or of its front where it has several metrics.

    `confirmed` is for the winner of its confirmation, `trial` for the completed trial of that number. Raises HpoError
    where no trial has finished, or not that one, or the study has not been confirmed.
    """
    found = load_study(storage, name)
    if confirmed:
        confirmation = find_confirmation(storage, name)
        if confirmation is None:
            raise HpoError(f"study {name!r}: has not been confirmed; `hpo confirm` does that")
        winner = _trial(storage, found, confirmation.winner.candidate.trial or 0)
        return _written(_record(storage, found, winner, confirmation))
    if trial is not None:
        return _written(_record(storage, found, completed_trial(storage, name, trial)))
    best = best_trials(storage, found._study_id, best_limit(found.directions))
    if not best:
        raise no_best(storage, name, "there is nothing to export")
    records = [_record(storage, found, storage.get_trial(each._trial_id)) for each in best]
    return _written(records[0] if len(found.directions) == 1 else _front(storage, found, records))


def _written(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record as it is written, in whichever form: NaN and infinities become strings (`hpo.text`)."""
    written: dict[str, Any] = encode_non_finite(record)
    return written


def _front(storage: Storage, found: optuna.Study, records: list[dict[str, Any]]) -> dict[str, Any]:
    held = summary(storage, found._study_id)
    return {
        "schema": FRONT_SCHEMA,
        "study": found.study_name,
        "metrics": list(metrics_of(held)),
        "directions": [direction.name.lower() for direction in found.directions],
        "trials": by_word(held.states),
        "front": records,
        **provenance(),
    }


def _record(
    storage: Storage, found: optuna.Study, best: FrozenTrial, confirmation: Confirmation | None = None
) -> dict[str, Any]:
    """Return a trial as an object."""
    name = found.study_name
    study, attrs = any_stored_study(found), user_attrs_of(found)
    if isinstance(study, ObjectiveStudy):
        return objective_record(storage, study, found, best)
    if "seed" not in best.user_attrs:
        raise HpoError(f"study {name!r}: trial {best.number} was not trained by hpo: nobody could repeat it")
    params = params_of(study, best)
    precision = precision_of(study.config(params), attrs[RUN]["precision"])
    curve = best.system_attrs.get(CURVE, {})
    worker = best.system_attrs.get(WORKER, {})  # processes may train on several devices
    held = summary(storage, found._study_id)
    if held.user_attrs.get(IDENTITY) != attrs.get(IDENTITY):
        raise HpoError(f"study {name!r}: was deleted and begun anew meanwhile; export it again")
    return {
        "schema": SCHEMA,
        "study": name,
        "trial": best.number,
        "metric": study.search.first_metric,
        "direction": found.directions[0].name.lower(),
        "value": score(best),
        **values_of(study.search.metrics, best),
        "params": params,
        "config": best_config(study, params, precision),
        "epochs": len(curve.get(study.search.first_metric, ())) or study.config(params).training.epochs,
        "seed": best.user_attrs["seed"],
        "curve": curve,
        "precision": precision,
        "device": worker.get("device") or attrs[RUN]["device"],
        "trials": by_word(held.states),
        "confirmed": None if confirmation is None else confirmation_record(confirmation),
        "verified": certificate_of(attrs, name),
        "data": attrs[DATA],
        **code_of_study(attrs),
        **provenance(),
    }


def completed_trial(storage: Storage, name: str, number: int) -> FrozenTrial:
    """Return a trial of the study of that name, whole. Raises HpoError where there is none, or it has not completed."""
    found = load_study(storage, name)
    try:
        trial = _trial(storage, found, number)
    except KeyError as error:
        raise HpoError(f"study '{name}': has no trial {number}; `hpo top` lists the best") from error
    if trial.state != TrialState.COMPLETE:
        raise HpoError(f"study '{name}': trial {number} is {STATES[trial.state]}; only a complete one can be chosen")
    return trial


def code_of_study(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an export says of the user's own code, where the study has any: its folder, and a hash a file."""
    return {"code": attrs[CODE]} if CODE in attrs else {}


def best_config(study: Study, params: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return a study's resolved tree with these values in place of what it searches: a study of one trial.

    "auto" has meant a certain precision, which is what the values were found in: that one stands there.
    """
    config = study.config(params)
    tree = study.resolved()
    for section in SEARCHABLE:
        values = getattr(config, section).model_dump(exclude_none=True)
        unused = unused_keys(section, values)  # a study file refuses keys that its kind does not use
        tree[section] = {key: value for key, value in values.items() if key not in unused}
    tree["training"]["precision"] = precision
    tree["name"] = followed(study.name, SUFFIX)
    tree["search"] |= {"trials": 1, "points": [], "repeats": 1, "start_from": []}
    tree["baseline"] = {}
    return tree


def params_of(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's parameters as the study file means them."""
    known = [parameter for parameter in study.parameters if parameter.name in trial.params]
    return {parameter.name: decode(parameter, trial.params[parameter.name]) for parameter in known}


def export_text(
    storage: Storage, name: str, confirmed: bool = False, form: str = "json", trial: int | None = None
) -> str:
    """Return the export of the study of that name as the text of a file, JSON or TOML."""
    exported = export(storage, name, confirmed, trial)
    if form == "toml":
        return escape_toml(tomli_w.dumps(_without_nulls(exported)))
    return json_text(exported, indent=2) + "\n"


def _trial(storage: Storage, found: optuna.Study, number: int) -> FrozenTrial:
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(found._study_id, number))


def _without_nulls(value: Any, place: Path = ()) -> Any:
    """TOML has no null: what an export has not got is left out; a null among the user's own values is refused."""
    if value is None:
        raise UsageError(f"--format toml: {dotted(place)} is null, which TOML has no way to write; use json")
    if isinstance(value, dict):
        own = "params" in place or "user_attrs" in place
        kept = {key: each for key, each in value.items() if own or each is not None}
        return {key: _without_nulls(each, (*place, key)) for key, each in kept.items()}
    if isinstance(value, list):
        return [_without_nulls(each, (*place, index)) for index, each in enumerate(value)]
    return value
