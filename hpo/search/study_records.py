"""User attributes of a stored study: its resolved file, data record, code, run settings, and later changes.

Any worker can continue a study from them, and the dashboard shows them. They are written once, when the study is
created, and changed only by `record_change`.
"""

from __future__ import annotations

import datetime
import functools
import json
import secrets
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.data import Split
from hpo.errors import CodeError, HpoError, StudyClosedError, UnknownStudyError
from hpo.search.comparability import check_change, same_data
from hpo.search.options import DEFAULTS, LaunchOptions
from hpo.search.space import config_of
from hpo.storage import (
    IDENTITY,
    PRIORITY,
    ClaimConditions,
    ReopenedTrials,
    Storage,
    change_idle_study,
    identity,
    load_study,
    save_note,
    summary,
)
from hpo.studyfile import AnyStudy, Config, ObjectiveStudy, Study, differing_keys, parse_any_study
from hpo.studyfile.checks.checking import FORMER_DEFAULTS
from hpo.studyfile.values import CURRENT_FOLDER
from hpo.text import hpo_command
from hpo.training.early_stopping import has_stopped_improving
from hpo.usercode import UserCode, find_code_folder

STUDY, DATA, CODE, RUN, CHANGES = "hpo:study", "hpo:data", "hpo:code", "hpo:run", "hpo:changes"

PRUNER = "hpo:pruner"
"""The user attribute with the pruner that `pruner = "auto"` stands for."""

STARTS_FROM = "hpo:starts_from"
"""The user attribute with the studies of `search.start_from`: name in the file -> identity, because names change."""

NO_CODE: dict[str, Any] = {"folder": "", "files": {}}

CURVE = "hpo:curve"
"""The system attribute of a trial with its learning curve: metric -> one value an epoch."""

Curve = dict[str, list[float]]


def directions(study: AnyStudy) -> list[StudyDirection]:
    """Return the direction of each of a study's objectives."""
    minimized = study.search.all_minimized
    return [StudyDirection.MINIMIZE if each else StudyDirection.MAXIMIZE for each in minimized]


def with_stored_defaults(study: AnyStudy, storage: Storage) -> AnyStudy:
    """Return the study with the former default in place of "auto" where the stored study has the former default.

    So studies of that time continue with their unchanged files.
    """
    if not isinstance(study, Study) or not any(_is_auto(study, *key) for key in FORMER_DEFAULTS):
        return study
    try:
        stored = any_stored_study(load_study(storage, study.name))
    except UnknownStudyError:
        return study
    if isinstance(stored, Study):
        for (section, key), former in FORMER_DEFAULTS.items():
            if _is_auto(study, section, key) and getattr(getattr(stored, section), key) == former:
                study = study.with_value(section, key, former)
    return study


def _is_auto(study: Study, section: str, key: str) -> bool:
    return bool(getattr(getattr(study, section), key) == "auto")


def stored_pruner(study: Study, storage: Storage) -> str | None:
    """Return the pruner that "auto" stands for in the stored study of that name; None where none is chosen yet."""
    try:
        return user_attrs_of(load_study(storage, study.name)).get(PRUNER)
    except UnknownStudyError:
        return None


def open_study(
    study: AnyStudy, split: Split | None, code: UserCode, storage: Storage, options: LaunchOptions = DEFAULTS
) -> optuna.Study:
    """Return the stored study of that name; create it, with the priority of `options`, if there is none.

    `split` is None for an objective study. Raises UsageError if the file differs from the stored one, unless `extend`
    allows the difference; HpoError if the data differs; CodeError if the code does, unless `changed_code` allows that.
    """
    names = study.search.start_from if isinstance(study, Study) else ()
    given: dict[str, Any] = {} if split is None else {DATA: data_record(split)}
    if names:
        given[STARTS_FROM] = {name: _identity(name, storage) for name in names}
    try:
        stored = load_study(storage, study.name)
    except UnknownStudyError:
        stored = _create(study, given, code, storage, options.priority) or load_study(storage, study.name)
    check_change(study, any_stored_study(stored), options.extend)
    if split is not None:
        check_data(study, split, stored)
    if not options.changed_code:
        check_code(study, code, stored)
    return stored


def record_change(
    stored: optuna.Study, study: AnyStudy, code: UserCode, storage: Storage, reopened: ReopenedTrials | None = None
) -> None:
    """Store the study's changed file and code, and a record of the change. `open_study` has checked that it is allowed.

    In the same transaction, completed trials are `reopened`.

    Raises StudyBusyError where another worker is training trials of the study.
    """
    changed = code.changed_since(user_attrs_of(stored).get(CODE, NO_CODE))
    differences = [*differing_keys(any_stored_study(stored), study), *(f"{file}: other contents" for file in changed)]
    if not differences:
        return
    change = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "trials": sum(summary(storage, stored._study_id).states.values()),
        "changed": differences,
    }
    changes = [*user_attrs_of(stored).get(CHANGES, []), change]
    with _unless_deleted(study.name):
        attrs = {CHANGES: changes, STUDY: _text(study), **_code(code)}
        change_idle_study(storage, stored._study_id, study.name, attrs, reopened)
        save_note(storage, stored._study_id, study.description)


def check_data(study: AnyStudy, split: Split, stored: optuna.Study) -> None:
    """Raise HpoError unless the data are those that the stored study was created with.

    A study made from the stored one may split them otherwise.
    """
    before, now, known = user_attrs_of(stored)[DATA], data_record(split), any_stored_study(stored)
    splits_alike = not isinstance(known, Study) or known.data == split.data
    if not (same_data(before, now) if splits_alike else before["sha256"] == now["sha256"]):
        raise HpoError(
            f"study '{study.name}': the data of {split.dataset} are not those that the study was created with "
            "(their SHA-256 differs); restore them, or start another study with --name"
        )


def check_code(study: AnyStudy, code: UserCode, stored: optuna.Study) -> None:
    """Raise CodeError unless the user code is the code stored with the study."""
    changed = code.changed_since(user_attrs_of(stored).get(CODE, NO_CODE))
    if changed:
        raise CodeError(
            f"study '{study.name}': {', '.join(changed)} in {code.folder} has changed since the study was created (the "
            "SHA-256 differs); restore it, start another study with --name, or continue with --changed-code"
        )


def update_data_record(
    stored: optuna.Study, split: Split, trivial: Mapping[str, float | None], storage: Storage
) -> None:
    """Store the folder of the data, which may have been moved, and the scores of the trivial baseline."""
    before, now = user_attrs_of(stored)[DATA], {**data_record(split), "trivial": dict(trivial)}
    changed = {key: now[key] for key in ("name", "folder", "trivial") if key in now}
    if any(before.get(key) != value for key, value in changed.items()):
        storage.set_study_attrs(stored._study_id, {DATA: before | changed})


def claim_conditions(study: AnyStudy, stored: optuna.Study) -> ClaimConditions:
    """Return the conditions for claiming trials: the study is open, and its file and code are unchanged.

    Raises StudyClosedError where the file has been changed already.
    """
    known = {key: value for key, value in user_attrs_of(stored).items() if key in (STUDY, CODE, IDENTITY)}
    if differing_keys(_parsed(known[STUDY], stored.study_name), study):
        raise StudyClosedError(f"study '{study.name}' was changed by another process", "changed")
    return ClaimConditions(stored._study_id, study.name, known)


def user_attrs_of(stored: optuna.Study) -> dict[str, Any]:
    """Return the study's user attributes. Raises StudyClosedError where it has been deleted."""
    with _unless_deleted(stored.study_name):
        return stored.user_attrs


@contextmanager
def _unless_deleted(name: str) -> Iterator[None]:
    """Turn the storage's KeyError into StudyClosedError."""
    try:
        yield
    except KeyError as error:
        raise StudyClosedError(f"study '{name}' was deleted by another process", "deleted") from error


def any_stored_study(stored: optuna.Study) -> AnyStudy:
    """Return the study of the stored file. Raises HpoError for a study that hpo did not create."""
    attrs = user_attrs_of(stored)
    if not isinstance(attrs.get(STUDY), str):
        raise HpoError(
            f"study '{stored.study_name}' was not created by hpo: the storage has no study file for it, so it can only "
            "be read (`hpo top`, `plot`, `export`, `copy`, `dashboard`)"
        )
    study = _parsed(attrs[STUDY], stored.study_name)
    return replace(study, folder=_folder(study, attrs))


def stored_study(stored: optuna.Study) -> Study:
    """Return a stored network study. Raises HpoError for an objective study."""
    study = any_stored_study(stored)
    if isinstance(study, ObjectiveStudy):
        raise HpoError(
            f"study '{study.name}' has an objective function, {study.objective}; this command needs a network study. "
            f"Take the parameters from `{hpo_command('export', study.name)}` and continue in your own code"
        )
    return study


def _folder(study: AnyStudy, attrs: Mapping[str, Any]) -> Path:
    """Return the folder of the files that a stored study refers to."""
    if CODE in attrs:
        return find_code_folder(study.references, attrs[CODE])
    return Path(attrs.get(DATA, {}).get("folder", CURRENT_FOLDER))


def agree_on_run(
    stored: optuna.Study, storage: Storage, device: str | None = None, precision: str = ""
) -> tuple[str, datetime.datetime]:
    """Store the start time, device and precision unless another worker has; return the stored precision and time.

    A study of an objective function has neither device nor precision.
    """
    run = {} if device is None else {"device": device, "precision": precision}
    run["began"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _unless_deleted(stored.study_name):
        agreed = storage.set_study_attr_if_absent(stored._study_id, RUN, run)
    return str(agreed.get("precision", "")), datetime.datetime.fromisoformat(agreed["began"])


def agree_on_pruner(stored: optuna.Study, storage: Storage, pruner: str) -> str:
    """Store the pruner that "auto" stands for unless another worker has; return the stored one."""
    with _unless_deleted(stored.study_name):
        return str(storage.set_study_attr_if_absent(stored._study_id, PRUNER, pruner))


def epochs_trained(trial: FrozenTrial) -> int:
    """Return the number of epochs in a stored trial's learning curve."""
    return max(map(len, trial.system_attrs.get(CURVE, {}).values()), default=0)


def config_as_trained(study: Study, trial: FrozenTrial) -> Config:
    """Return the settings that a stored trial was trained with.

    A completed trial may have fewer epochs than the study, whose number of epochs `--extend` can raise; early stopping
    is no such case.
    """
    config, metric = config_of(study, trial.params), study.search.first_metric
    epochs, curve = epochs_trained(trial), trial.system_attrs.get(CURVE, {}).get(metric, ())
    ended_early = has_stopped_improving(config.training.patience, curve, study.search.minimized)
    if trial.state != TrialState.COMPLETE or ended_early or not 0 < epochs < config.training.epochs:
        return config
    return with_epochs(config, epochs)


def with_epochs(config: Config, epochs: int) -> Config:
    """Return the settings with another number of epochs."""
    return config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})


def precision_of(config: Config, run: str) -> str:
    """Return the precision that a configuration trains in; `run` is the one that the study chose for "auto"."""
    return run if config.training.precision == "auto" else config.training.precision


def precisions(study: Study, run: str) -> str:
    """Return the precisions of the study's trials as text; `run` is the one that the study chose for "auto"."""
    possible = study.possible_values(("training", "precision")).values()
    return " or ".join(dict.fromkeys(run if each == "auto" else str(each) for each in possible))


def _create(
    study: AnyStudy, given: Mapping[str, Any], code: UserCode, storage: Storage, priority: int | None
) -> optuna.Study | None:
    """Return the new study, or None where another process has just created one of that name."""
    try:
        attrs: dict[str, Any] = {STUDY: _text(study), **given, IDENTITY: secrets.token_hex(8)}
        attrs |= _code(code)
        attrs |= {} if priority is None else {PRIORITY: priority}
        storage.create_study(study.name, directions(study), attrs)
    except DuplicatedStudyError:
        return None
    stored = load_study(storage, study.name)
    if isinstance(study, Study):  # an objective's value has no name
        from hpo.training.global_locks import WARNINGS_LOCK  # imports torch, which reading a study does not need

        with WARNINGS_LOCK, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            stored.set_metric_names(list(study.search.metrics))
    save_note(storage, stored._study_id, study.description)
    return stored


def _identity(name: str, storage: Storage) -> str | None:
    try:
        return identity(summary(storage, name).user_attrs, name)
    except UnknownStudyError:
        return None  # a stored study can continue without the studies that it started from


def _code(code: UserCode) -> dict[str, Any]:
    return {CODE: code.record()} if code.files else {}


def _parsed(text: str, name: str) -> AnyStudy:
    """Return the study of a stored file, under its name in the storage: it may have been renamed."""
    return parse_any_study(json.loads(text), f"study '{name}'").renamed(name)


def _text(study: AnyStudy) -> str:
    return json.dumps(study.resolved())


def data_record(split: Split) -> dict[str, Any]:
    """Return the record of a study's data: name, folder, classes, sizes and SHA-256."""
    found_in = {} if split.folder is None else {"folder": str(split.folder)}
    return {
        "name": split.dataset,
        **found_in,
        **({"classes": list(split.names)} if split.names else {}),
        "sha256": split.content_sha256,
        "split_sha256": split.split_sha256,
        **({"other_splits_sha256": list(split.other_splits_sha256)} if split.other_splits_sha256 else {}),
        "train": len(split.train),
        "validation": len(split.validation),
        "test": split.test_size,
    }


def foreign_study_error(name: str) -> HpoError:
    """Return the error for a study whose `trial_target` is None."""
    return HpoError(
        f"study '{name}' was not created by hpo, or its stored study file is invalid: no worker can train it"
    )


def trial_target(user_attrs: Mapping[str, Any]) -> int | None:
    """Return `search.trials` of a stored study; None where hpo did not create it, or its file is invalid."""
    text = user_attrs.get(STUDY)
    return _trials(text) if isinstance(text, str) else None


@functools.lru_cache(maxsize=256)
def _trials(text: str) -> int | None:
    try:
        return int(json.loads(text)["search"]["trials"])
    except (ValueError, TypeError, LookupError):
        return None
