"""Warm start: the completed trials of the studies in `search.start_from`, which the sampler knows from the start.

Promises: trials are taken only from comparable studies (hpo.search.comparability): the same data, split, metric and
score, the same searched parameters, the same fixed values, and the same network code, unless the user accepts changed
code. A new study is stored only where all of them are comparable. Later, a study that was deleted or created anew as
another one is left out with the reason, so that workers can continue. The state of those studies is read when a process
joins the search.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.data import Split
from hpo.errors import HpoError, StorageError
from hpo.search.comparability import EXTENDABLE_KEYS, incomparable, same_data
from hpo.search.space import misread
from hpo.search.study_records import (
    CODE,
    DATA,
    NO_CODE,
    STARTS_FROM,
    STUDY,
    data_record,
    stored_study,
    user_attrs_of,
)
from hpo.storage import RUNG, Storage, TrialFields, identity, load_study, study_names, summaries
from hpo.studyfile import SearchSettings, Study
from hpo.usercode import UserCode, split_reference

ALIKE = "hpo:alike"
"""The user attribute with the other studies' code that the user accepts: study of start_from -> its files."""

FREE_TO_DIFFER = (
    *EXTENDABLE_KEYS,
    "name",
    "network.module",  # the path may differ; the content is compared
    *(f"search.{key}" for key in SearchSettings.model_fields if key not in ("metric", "direction", "score")),
)
"""Keys in which a study may differ from the studies it starts from, besides ranges and choices."""

VALUES_ONLY = TrialFields(curves=False, user_attrs=False, system_attrs=None)


@dataclass(frozen=True)
class WarmStart:
    """The names of usable studies, their completed trials in order, and the problems of the others."""

    names: tuple[str, ...]
    trials: list[FrozenTrial]
    problems: tuple[str, ...]


def warm_start(study: Study, attrs: Mapping[str, Any], storage: Storage) -> WarmStart:
    """Return the trials of `search.start_from`; `attrs` are the study's user attributes."""
    names, trials, problems = [], [], []
    known = attrs.get(STARTS_FROM, {})
    called = {identity(each.user_attrs, each.name): each.name for each in summaries(storage)} if known else {}
    for name in study.search.start_from:
        now = called.get(known.get(name), name)  # the study may have been renamed, and its name reused
        try:
            _check_comparable(study, now, attrs, storage, attrs.get(ALIKE, {}).get(name))
            trials += completed(storage, now)
            names.append(now)
        except StorageError:
            raise
        except HpoError as error:
            problems.append(str(error))
    return WarmStart(tuple(names), trials, tuple(problems))


def completed(storage: Storage, name: str) -> list[FrozenTrial]:
    """Return a study's completed trials, their parameters and values only."""
    trials = storage.read_trials(load_study(storage, name)._study_id, -1, (), VALUES_ONLY)
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def ranked(storage: Storage, name: str) -> list[FrozenTrial]:
    """Return a study's completed trials and those that halving has pruned at a rung, with their values there."""
    fields = TrialFields(curves=False, user_attrs=False, system_attrs=RUNG)
    trials = storage.read_trials(load_study(storage, name)._study_id, -1, (), fields)
    return [t for t in trials if t.state == TrialState.COMPLETE or (t.state == TrialState.PRUNED and t.system_attrs)]


def check_start(study: Study, images: Split, code: UserCode, storage: Storage, changed_code: bool) -> None:
    """Raise StudyFileError where a new study names a study in `search.start_from` that is not comparable.

    With `changed_code`, code that differs is accepted.
    """
    if not study.search.start_from or study.name in study_names(storage):
        return
    attrs: dict[str, Any] = {DATA: data_record(images), CODE: code.record()}
    for name in study.search.start_from:
        try:
            _check_comparable(study, name, attrs, storage, _files(storage, name) if changed_code else None)
        except StorageError:
            raise
        except HpoError as error:
            raise study.error("search.start_from", str(error)) from error
        if study.name in _ancestors(name, storage):
            raise study.error("search.start_from", f"study '{name}' itself starts from '{study.name}'")


def accept_other_code(study: Study, stored: optuna.Study, storage: Storage) -> None:
    """Store that the present code of the studies in `search.start_from` is accepted."""
    there = set(study.search.start_from) & set(study_names(storage))
    alike = {name: _files(storage, name) for name in study.search.start_from if name in there}
    if study.modules and alike != user_attrs_of(stored).get(ALIKE, {}):
        storage.set_study_attrs(stored._study_id, {ALIKE: alike})


def _check_comparable(
    study: Study, name: str, attrs: Mapping[str, Any], storage: Storage, alike: Mapping[str, str] | None
) -> None:
    """Raise HpoError where the study of that name is missing or not comparable.

    `alike` are the files of its code that the user has accepted.
    """
    stored = load_study(storage, name)
    before = stored_study(stored)
    others = f"the trials of '{name}' are not comparable with these"
    differences = incomparable(before, study, FREE_TO_DIFFER)
    if differences:
        raise HpoError(f"{others}: {'; '.join(differences)}")
    if wrong := misread(before, study):
        raise HpoError(f"{others}: {wrong}")
    if not same_data(user_attrs_of(stored)[DATA], attrs[DATA]):
        raise HpoError(f"{others}: its data have another SHA-256")
    if not (study.modules and before.modules):
        return
    files = _files(storage, name)
    one, other = _code(study, attrs.get(CODE, NO_CODE)["files"]), _code(before, files)
    changed = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    if changed and alike != files:
        raise HpoError(
            f"{others}: its network code differs ({', '.join(changed)}); restore the code, remove '{name}' from "
            "start_from, or accept the difference with --changed-code"
        )


def _files(storage: Storage, name: str) -> dict[str, str]:
    """Return the files of a stored study's code, with the SHA-256 of each."""
    return dict(user_attrs_of(load_study(storage, name)).get(CODE, NO_CODE)["files"])


def _code(study: Study, files: Mapping[str, str]) -> dict[str, str]:
    """Return the files of a study's code relative to their common folder, and the names of its networks in them."""
    top = posixpath.commonpath([posixpath.dirname(file) or "." for file in files] or ["."])
    found = {posixpath.relpath(file, top): digest for file, digest in files.items()}
    for module in study.modules:
        file, name = split_reference(module)
        found[f"{posixpath.relpath(file, top)}:{name}"] = "a network"
    return found


def _ancestors(name: str, storage: Storage) -> set[str]:
    """Return the studies that a stored study starts from, directly or indirectly, as far as they are stored."""
    files = {each.name: each.user_attrs.get(STUDY) for each in summaries(storage)}
    found: set[str] = set()
    ahead = [name]
    while ahead:
        text = files.get(ahead.pop())
        before = json.loads(text).get("search", {}).get("start_from", []) if isinstance(text, str) else []
        ahead += [each for each in before if each not in found]
        found.update(before)
    return found
