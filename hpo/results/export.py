"""A study's best trial, or the one that a confirmation found best, as one object: `hpo.best/2`.

It promises that `config` is a study file in itself (launching it trains those hyperparameters once more, as a study of
its own), that the trial can be repeated from the object alone (`hpo replay`), and that the object says which data, seed
and versions it rests on. best.schema.json beside this module describes it, best-1.schema.json what was written before.
The best trial of an objective of the user's own is another object: `objective_export.py` has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import optuna
import tomli_w
from optuna.trial import FrozenTrial

from hpo.errors import HpoError
from hpo.results.confirmation import find_confirmation
from hpo.results.confirmation_lines import confirmation_record
from hpo.results.naming import followed
from hpo.results.objective_export import objective_record
from hpo.results.overview import by_word
from hpo.results.verification import VERIFIED
from hpo.results.versions import versions
from hpo.search.records import CODE, CURVE, DATA, RUN, any_stored_study, kept, stored_study
from hpo.search.space import decode
from hpo.storage import IDENTITY, WORKER, Storage, best_trials, load_study, summary
from hpo.studyfile import Config, ObjectiveStudy, Study
from hpo.studyfile.models import SEARCHABLE, unused_keys

VERSION = 2
SCHEMA = f"hpo.best/{VERSION}"
SUFFIX = "-best"


def schema(version: int = VERSION) -> dict[str, Any]:
    """Return the JSON Schema of the export in that version."""
    file = "best.schema.json" if version == VERSION else f"best-{version}.schema.json"
    loaded: dict[str, Any] = json.loads(resources.files("hpo.results").joinpath(file).read_text(encoding="utf-8"))
    return loaded


def export(storage: Storage, name: str, confirmed: bool = False) -> dict[str, Any]:
    """Return the export of the study of that name; `confirmed` for the winner of its confirmation.

    That of the user's own objective is an `objective_record`.
    Raises HpoError where no trial has finished, or the study has not been confirmed.
    """
    found = load_study(storage, name)
    own = any_stored_study(found)
    if isinstance(own, ObjectiveStudy) and not confirmed:
        return objective_record(storage, own, found, _best(storage, found))
    study, attrs = stored_study(found), kept(found)
    confirmation = find_confirmation(storage, name) if confirmed else None
    if confirmation is not None:
        best = _trial(storage, found, confirmation.winner.candidate.trial or 0)
    elif confirmed:
        raise HpoError(f"study {name!r}: has not been confirmed; `hpo confirm` does that")
    else:
        best = _best(storage, found)
    if "seed" not in best.user_attrs:
        raise HpoError(f"study {name!r}: trial {best.number}, its best, was not trained by hpo: nobody could repeat it")
    params = params_of(study, best)
    precision = precision_of(study.config(params), attrs[RUN]["precision"])
    curve = best.system_attrs.get(CURVE, {})
    worker = best.system_attrs.get(WORKER, {})  # processes may train on several devices
    held = summary(storage, name)
    if (held.study_id, held.user_attrs.get(IDENTITY)) != (found._study_id, attrs.get(IDENTITY)):
        raise HpoError(f"study {name!r}: was deleted and begun anew meanwhile; export it again")
    return {
        "schema": SCHEMA,
        "study": name,
        "trial": best.number,
        "metric": study.search.metric,
        "direction": found.direction.name.lower(),
        "value": best.value,
        "params": params,
        "config": best_config(study, params, precision),
        "epochs": len(curve.get(study.search.metric, ())) or study.config(params).training.epochs,
        "seed": best.user_attrs["seed"],
        "curve": curve,
        "precision": precision,
        "device": worker.get("device") or attrs[RUN]["device"],
        "trials": by_word(held.states),
        "confirmed": None if confirmation is None else confirmation_record(confirmation),
        "verified": attrs.get(VERIFIED),
        "data": attrs[DATA],
        **code_of_study(attrs),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


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


def precision_of(config: Config, run: str) -> str:
    """Return the precision that a trial of this configuration trains in; `run` is what the study's "auto" has meant."""
    return run if config.training.precision == "auto" else config.training.precision


def export_text(storage: Storage, name: str, confirmed: bool = False, form: str = "json") -> str:
    """Return the export of the study of that name as the text of a file, JSON or TOML."""
    exported = export(storage, name, confirmed)
    if form == "toml":
        return tomli_w.dumps(_without_nulls(exported))
    return json.dumps(exported, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _best(storage: Storage, found: optuna.Study) -> FrozenTrial:
    trials = best_trials(storage, found.study_name, 1)
    if not trials:
        name = found.study_name
        raise HpoError(f"study {name!r}: no finished trial yet, so there is nothing to export; launch it to go on")
    return storage.get_trial(trials[0]._trial_id)  # whole


def _trial(storage: Storage, found: optuna.Study, number: int) -> FrozenTrial:
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(found._study_id, number))


def _without_nulls(value: Any) -> Any:
    """TOML has no null: what is not there is left out."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
