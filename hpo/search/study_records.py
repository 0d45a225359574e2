"""What is kept with a study besides its trials: the resolved file, its data, how it runs, what changed.

Each is a user attribute of the Optuna study, so that the dashboard shows it and any process can go on from there. And
what is kept with each of its trials: the learning curve.
"""

from __future__ import annotations

import datetime
import functools
import json
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning

from hpo.data import Split
from hpo.errors import CodeError, HpoError, StudyClosedError, UnknownStudyError, UsageError
from hpo.search.space import misread
from hpo.storage import IDENTITY, PRIORITY, Gate, Storage, change_idle_study, identity, load_study, summary
from hpo.storage.pareto import directions
from hpo.storage.remedies import command
from hpo.studyfile import AnyStudy, Config, ObjectiveStudy, Study, differing_keys, parse_any_study
from hpo.studyfile.keys import SEARCHABLE, unused_keys
from hpo.studyfile.objective import ObjectiveSearchSettings
from hpo.studyfile.trees import replaced, same, value_at, without
from hpo.studyfile.values import HERE
from hpo.usercode import Code, folder_of

STUDY, DATA, CODE, RUN, CHANGES = "hpo:study", "hpo:data", "hpo:code", "hpo:run", "hpo:changes"

BEFORE = "hpo:starts_from"
"""The user attribute that says which studies a study starts from: name in its file -> identity, for names change."""

NO_CODE: dict[str, Any] = {"folder": "", "files": {}}

CURVE = "hpo:curve"
"""The system attribute that holds a trial's learning curve: metric -> a value an epoch."""

Curve = dict[str, list[float]]

FREE_TO_CHANGE = (
    "description",
    "baseline",
    "data.dataset",  # where the images are; their SHA-256 says whether they are the same
    *(f"training.{key}" for key in ("keep", "keep_trials")),
    *(
        f"search.{key}"
        for key in ("trials", "sampler", "pruner", "population", "retries", "trial_timeout", "timeout", "patience")
    ),
)
"""Keys that `--extend` may change besides ranges and choices: old and new trials stay comparable."""

FREE_OF_OBJECTIVES = (
    "description",
    *(f"search.{key}" for key in ObjectiveSearchSettings.model_fields if key not in ("direction", "seed")),
)
"""The same of a study of the user's own objective, whose ranges are in its code."""


def open_study(
    study: Study,
    split: Split,
    code: Code,
    storage: Storage,
    extend: bool,
    priority: int | None = None,
    changed_code: bool = False,
) -> optuna.Study:
    """Return the stored study: a new one of that priority, or the one of that name if file, data and code are the same.

    Raises UsageError where the file differs, unless `extend` allows the difference; HpoError where the data does, and
    CodeError where the code does, unless `changed_code` allows that.
    """
    names = study.search.start_from
    given = {DATA: data_record(split)} | ({BEFORE: {name: _identity(name, storage) for name in names}} if names else {})
    stored = _open(study, given, code, storage, extend, priority)
    check_data(study, split, stored)
    if not changed_code:
        check_code(study, code, stored)
    return stored


def open_objective_study(
    study: ObjectiveStudy,
    code: Code,
    storage: Storage,
    extend: bool,
    priority: int | None = None,
    changed_code: bool = False,
) -> optuna.Study:
    """Return the stored study of an objective, likewise; raises CodeError unless `changed_code` allows other code."""
    stored = _open(study, {}, code, storage, extend, priority)
    if not changed_code:
        check_code(study, code, stored)
    return stored


def _open(
    study: AnyStudy, given: Mapping[str, Any], code: Code, storage: Storage, extend: bool, priority: int | None
) -> optuna.Study:
    """Return the stored study; a new one has these user attributes, too."""
    try:
        stored = load_study(storage, study.name)
    except UnknownStudyError:
        stored = _create(study, given, code, storage, priority) or load_study(storage, study.name)
    _check_change(study, any_stored_study(stored), extend)
    return stored


def record_change(stored: optuna.Study, study: AnyStudy, code: Code, storage: Storage) -> None:
    """Keep with the stored study what its file and code say now, and what changed. `open_study` has found it allowed.

    Raises StudyBusyError where another process is searching what the file said before.
    """
    changed = code.changed_since(kept(stored).get(CODE, NO_CODE))
    differences = [*differing_keys(any_stored_study(stored), study), *(f"{file}: other contents" for file in changed)]
    if not differences:
        return
    change = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "trials": sum(summary(storage, stored._study_id).states.values()),
        "changed": differences,
    }
    changes = [*kept(stored).get(CHANGES, []), change]
    with _unless_deleted(study.name):
        change_idle_study(storage, stored._study_id, study.name, {CHANGES: changes, STUDY: _text(study), **_code(code)})
        _note(stored, study)


def check_data(study: Study, split: Split, stored: optuna.Study) -> None:
    """Raise HpoError unless these are the images that the stored study began with."""
    if not same_images(kept(stored)[DATA], data_record(split)):
        raise HpoError(
            f"study '{study.name}': the images of {split.dataset} are not those that it began with "
            "(their SHA-256 differs); bring them back, or start another study with --name"
        )


def check_code(study: AnyStudy, code: Code, stored: optuna.Study) -> None:
    """Raise CodeError unless this is the code that the stored study began with, or was given since."""
    changed = code.changed_since(kept(stored).get(CODE, NO_CODE))
    if changed:
        raise CodeError(
            f"study '{study.name}': {', '.join(changed)} in {code.folder} is not what it began with (its SHA-256 "
            "differs); bring it back, start another study with --name, or go on with the change with --changed-code"
        )


def record_place(stored: optuna.Study, split: Split, storage: Storage) -> None:
    """Keep with the study where its images are now: the user's own may have been moved since it began."""
    before, now = kept(stored)[DATA], data_record(split)
    moved = {key: now[key] for key in ("name", "folder") if key in now}
    if any(before.get(key) != value for key, value in moved.items()):
        storage.change_study(stored._study_id, {DATA: before | moved})


def same_images(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two studies' records of their images say the same of what is searched with."""
    # Not the test set's size: whether its file is there does not matter to a search.
    return all(one[key] == other[key] for key in ("sha256", "split_sha256"))


def gate(study: AnyStudy, stored: optuna.Study) -> Gate:
    """Return what trials are taken through: while the study is open, and its file says what it says now.

    Raises StudyClosedError where it says something else already.
    """
    known = {key: value for key, value in kept(stored).items() if key in (STUDY, CODE, IDENTITY)}
    if differing_keys(_parsed(known[STUDY], stored.study_name), study):
        raise StudyClosedError(f"study '{study.name}' was changed by another process", "changed")
    return Gate(stored._study_id, study.name, known)


def kept(stored: optuna.Study) -> dict[str, Any]:
    """Return the study's user attributes. Raises StudyClosedError where it has been deleted."""
    with _unless_deleted(stored.study_name):
        return stored.user_attrs


@contextmanager
def _unless_deleted(name: str) -> Iterator[None]:
    """Turn the storage's KeyError into what became of the study."""
    try:
        yield
    except KeyError as error:
        raise StudyClosedError(f"study '{name}' was deleted by another process", "deleted") from error


def any_stored_study(stored: optuna.Study) -> AnyStudy:
    """Return the study as its file said when it was stored. Raises HpoError where hpo did not make it."""
    attrs = kept(stored)
    if not isinstance(attrs.get(STUDY), str):
        raise HpoError(f"study '{stored.study_name}' was not made by hpo: the storage has no study file for it")
    study = _parsed(attrs[STUDY], stored.study_name)
    return replace(study, folder=_folder(study, attrs))


def stored_study(stored: optuna.Study) -> Study:
    """Return the same of a study of hpo's networks; raises HpoError for the user's own objective."""
    study = any_stored_study(stored)
    if isinstance(study, ObjectiveStudy):
        raise HpoError(
            f"study '{study.name}' has an objective of its own, {study.objective}, and this needs a network and data "
            f"that hpo knows; take the parameters from `{command('export', study.name)}` and go on in your code"
        )
    return study


def _folder(study: AnyStudy, attrs: Mapping[str, Any]) -> Path:
    """Return where the files that a stored study refers to are looked for."""
    if CODE in attrs:
        return folder_of(study.references, attrs[CODE])
    return Path(attrs.get(DATA, {}).get("folder", HERE))


def settle_run(stored: optuna.Study, storage: Storage, device: str, precision: str) -> tuple[str, datetime.datetime]:
    """Keep with the study when it began, on what and in which precision.

    Return the precision and the time, the same for every process.
    """
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _unless_deleted(stored.study_name):
        run = storage.settle(stored._study_id, RUN, {"device": device, "precision": precision, "began": began})
    return str(run["precision"]), datetime.datetime.fromisoformat(run["began"])


def precision_of(config: Config, run: str) -> str:
    """Return the precision that a trial of this configuration trains in; `run` is what the study's "auto" has meant."""
    return run if config.training.precision == "auto" else config.training.precision


def precisions(study: Study, run: str) -> str:
    """Return in words which precisions trials of the study train in; `run` is what its "auto" means."""
    possible = study.possible(("training", "precision")).values()
    return " or ".join(dict.fromkeys(run if each == "auto" else str(each) for each in possible))


def settle_beginning(stored: optuna.Study, storage: Storage) -> datetime.datetime:
    """Keep with a study of the user's own objective when it began; return that time, the same for every process."""
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with _unless_deleted(stored.study_name):
        run = storage.settle(stored._study_id, RUN, {"began": began})
    return datetime.datetime.fromisoformat(run["began"])


def _create(
    study: AnyStudy, given: Mapping[str, Any], code: Code, storage: Storage, priority: int | None
) -> optuna.Study | None:
    """Return the new study, or None where another process has just made one of that name."""
    try:
        attrs: dict[str, Any] = {STUDY: _text(study), **given, IDENTITY: secrets.token_hex(8)}
        attrs |= _code(code)
        attrs |= {} if priority is None else {PRIORITY: priority}
        storage.create_study(study.name, directions(study), attrs)
    except DuplicatedStudyError:
        return None
    stored = load_study(storage, study.name)
    if isinstance(study, Study):  # what an objective's value is called, only its user knows
        from hpo.training.process_wide import HEARD  # brings torch, which those who only read a study can do without

        with HEARD, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            stored.set_metric_names(list(study.search.metrics))
    _note(stored, study)
    return stored


def _identity(name: str, storage: Storage) -> str | None:
    try:
        return identity(summary(storage, name).user_attrs, name)
    except UnknownStudyError:
        return None  # one that is there already can go on without those that it starts from


def _code(code: Code) -> dict[str, Any]:
    return {CODE: code.record()} if code.files else {}


def _parsed(text: str, name: str) -> AnyStudy:
    """Return what a stored file says, under the name that the storage has: the study may have been renamed since."""
    return parse_any_study(json.loads(text), f"study '{name}'").named(name)


def _text(study: AnyStudy) -> str:
    return json.dumps(study.resolved())


def _note(stored: optuna.Study, study: AnyStudy) -> None:
    """Show the description as the study's note in the dashboard."""
    from optuna_dashboard import save_note  # takes half a second, which those who only read a study need not wait for

    save_note(stored, study.description)


def data_record(split: Split) -> dict[str, Any]:
    """Return what is kept of a study's images."""
    found_in = {} if split.folder is None else {"folder": str(split.folder)}
    return {
        "name": split.dataset,
        **found_in,
        "classes": list(split.names),
        "sha256": split.content_sha256,
        "split_sha256": split.split_sha256,
        "train": len(split.train),
        "validation": len(split.validation),
        "test": split.test_size,
    }


def _check_change(study: AnyStudy, old: AnyStudy, extend: bool) -> None:
    differences = differing_keys(old, study)
    if differences and not extend:
        raise UsageError(
            f"{study.source}: differs from the stored study '{study.name}' in {'; '.join(differences)}; "
            "start another study with --name, or go on with the change with --extend"
        )
    if isinstance(study, Study) and isinstance(old, Study):
        others, free = incomparable(old, study, FREE_TO_CHANGE), ("ranges", "choices", *FREE_TO_CHANGE)
        if wrong := misread(old, study):
            raise UsageError(f"{study.source}: {wrong}; start another study with --name")
    else:
        others, free = (
            [line for line in differences if line.split(": ")[0] not in FREE_OF_OBJECTIVES],
            FREE_OF_OBJECTIVES,
        )
    for difference in others:
        raise UsageError(
            f"{study.source}: {difference}: --extend can change {', '.join(free)}, but "
            "with this old and new trials would not be comparable; start another study with --name"
        )


def incomparable(old: Study, new: Study, free: Iterable[str]) -> list[str]:
    """Return the differences with which trials of the two are not comparable: all but ranges, choices and free keys."""
    before, after = _what_stays(old, new, free), _what_stays(new, old, free)
    paths = {line: tuple(line.split(": ")[0].split("."))[:2] for line in differing_keys(old, new)}
    return [line for line, path in paths.items() if not same(value_at(before, path), value_at(after, path))]


def _what_stays(study: Study, other: Study, free: Iterable[str]) -> dict[str, Any]:
    """Return the study's tree without what may differ between the two."""
    tree, others = study.resolved(), other.resolved()
    for key in free:
        tree = replaced(tree, tuple(key.split(".")), None)
    both_search = {(parameter.path, parameter.integer) for parameter in other.parameters}
    for parameter in study.parameters:
        if (parameter.path, parameter.integer) in both_search:
            tree = replaced(tree, parameter.path, None)
    # Another kind among the choices brings its own keys and its own case; the trials of the old kinds never used them.
    for case in study.cases:
        choices = value_at(others, (case.section, case.key, "choices"))
        if isinstance(choices, list) and case.value not in choices:
            tree = without(tree, case.path)
    searched = {parameter.path[:2] for parameter in study.parameters}
    for section in SEARCHABLE:
        for key in unused_keys(section, others[section]):
            if (section, key) not in searched:
                tree[section].pop(key, None)
    return tree


def not_of_hpo(name: str) -> HpoError:
    """Return the error to raise for a study of which `wanted` is None."""
    return HpoError(f"study '{name}' was not made by hpo, or its study file cannot be read: no worker can train it")


def wanted(user_attrs: Mapping[str, Any]) -> int | None:
    """Return how many trials a stored study shall have; None where hpo did not make it, or nobody can read its file."""
    text = user_attrs.get(STUDY)
    return _trials(text) if isinstance(text, str) else None


@functools.lru_cache(maxsize=256)
def _trials(text: str) -> int | None:
    try:
        return int(json.loads(text)["search"]["trials"])
    except (ValueError, TypeError, LookupError):
        return None
