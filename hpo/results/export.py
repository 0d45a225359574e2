"""A study's best trial as one JSON object, `hpo.best/1`, described by best.schema.json beside this module.

It promises that `config` is a study file in itself (launching it trains the best hyperparameters once more, as a study
of its own), that a file is replaced whole or left as it was, and that the object says which data, seed and versions it
rests on. It reads studies and writes files; it knows nothing of how a trial was trained.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from hpo.errors import HpoError
from hpo.results.overview import by_word
from hpo.results.versions import versions
from hpo.search.records import DATA, RUN, stored_study
from hpo.search.space import decode
from hpo.storage import WORKER, Storage, best_trials, load_study, summary
from hpo.studyfile import Study
from hpo.studyfile.models import SEARCHABLE, unused_keys

SCHEMA = "hpo.best/1"
SUFFIX = "-best"
MAX_NAME = 200  # characters that a study file allows


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the export."""
    text = resources.files("hpo.results").joinpath("best.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def export(storage: Storage, name: str) -> dict[str, Any]:
    """Return the export of the study of that name; HpoError where no trial has finished."""
    found = load_study(storage, name)
    study, attrs = stored_study(found), found.user_attrs
    trials = best_trials(storage, name, 1)
    if not trials:
        raise HpoError(f"study {name!r}: no finished trial yet, so there is nothing to export; launch it to go on")
    best = trials[0]
    params = {
        parameter.name: decode(parameter, best.params[parameter.name])
        for parameter in study.parameters
        if parameter.name in best.params
    }
    run = attrs[RUN]
    worker = storage.get_trial(best._trial_id).system_attrs.get(WORKER, {})  # processes may train on several devices
    config = study.config(params)
    precision = run["precision"] if config.training.precision == "auto" else config.training.precision
    return {
        "schema": SCHEMA,
        "study": name,
        "trial": best.number,
        "metric": study.search.metric,
        "direction": found.direction.name.lower(),
        "value": best.value,
        "params": params,
        "config": best_config(study, params, precision),
        "epochs": config.training.epochs,
        "seed": best.user_attrs["seed"],
        "precision": precision,
        "device": worker.get("device") or run["device"],
        "trials": by_word(summary(storage, name).states),
        "data": attrs[DATA],
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def best_config(study: Study, params: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Return a study's resolved tree with these values in place of what it searches: a study of one trial.

    "auto" has meant a certain precision, which is what the values were found in: that one stands there.
    """
    config = study.config(params)
    tree = study.resolved()
    for section in SEARCHABLE:
        values = getattr(config, section).model_dump(exclude_none=True)
        unused = unused_keys(section, [values.get("kind")])  # a study file refuses keys that its kind does not use
        tree[section] = {key: value for key, value in values.items() if key not in unused}
    tree["training"]["precision"] = precision
    tree["name"] = study.name[: MAX_NAME - len(SUFFIX)] + SUFFIX
    tree["search"] |= {"trials": 1, "points": [], "repeats": 1}
    tree["baseline"] = {}
    return tree


def export_text(storage: Storage, name: str) -> str:
    """Return the export of the study of that name, as the text of a file."""
    return json.dumps(export(storage, name), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(content: str | bytes, path: Path) -> None:
    """Put this into a file: the whole of it, or on failure nothing, with what was there before untouched."""
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))  # a link keeps pointing where it does
    try:
        if target.exists() and not target.is_file():  # a pipe or a terminal takes it, and must not be replaced
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise HpoError(f"{path}: cannot be written ({error.strerror or error})") from error


def _replace(target: Path, data: bytes) -> None:
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    umask = os.umask(0)  # there is no way to read it without setting it
    os.umask(umask)
    return umask
