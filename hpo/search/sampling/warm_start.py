"""The studies that a study starts from (`search.start_from`), whose completed trials its sampler knows from the start.

Promises: trials are taken only from studies that are comparable, as `--extend` understands it: the same images, split,
metric and score, the same searched parameters, everything else that is fixed the same, and networks of the same code,
unless the user has said that other code makes no difference. A new study is not stored unless all of them are. Later
on, one that was deleted, or begun anew as something else, is left out, with the reason, so that workers can go on. What
counts is a study's state when a process enters the search. Looks at no file.
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
from hpo.storage import Storage, TrialFields, identity, load_study, study_names, summaries
from hpo.studyfile import SearchSettings, Study
from hpo.usercode import UserCode, split_reference

ALIKE = "hpo:alike"
"""The user attribute that says which other code counts as the study's own: study that it starts from -> its files."""

FREE_TO_DIFFER = (
    *EXTENDABLE_KEYS,
    "name",
    "network.module",  # where its file is; what the file holds says whether it is the same
    *(f"search.{key}" for key in SearchSettings.model_fields if key not in ("metric", "score")),
)
"""Keys in which a study may differ from those that it starts from, besides ranges and choices."""

VALUES_ONLY = TrialFields(curves=False, user_attrs=False, system_attrs=None)


@dataclass(frozen=True)
class WarmStart:
    """Those that can be learnt from, their completed trials, one study after the other, and why others cannot."""

    names: tuple[str, ...]
    trials: list[FrozenTrial]
    problems: tuple[str, ...]


def warm_start(study: Study, attrs: Mapping[str, Any], storage: Storage) -> WarmStart:
    """Return what can be learnt from the studies that this one starts from; `attrs` are its user attributes."""
    names, trials, problems = [], [], []
    known = attrs.get(STARTS_FROM, {})
    called = {identity(each.user_attrs, each.name): each.name for each in summaries(storage)} if known else {}
    for name in study.search.start_from:
        now = called.get(known.get(name), name)  # it may have been renamed, and another study have its name
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


def check_start(study: Study, images: Split, code: UserCode, storage: Storage, changed_code: bool) -> None:
    """Raise StudyFileError where a study that is not stored yet cannot start from what its file says.

    With `changed_code` it can from networks of other code.
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
    """Keep with a study that the code of those that it starts from, as it is now, counts as its own."""
    there = set(study.search.start_from) & set(study_names(storage))
    alike = {name: _files(storage, name) for name in study.search.start_from if name in there}
    if study.modules and alike != user_attrs_of(stored).get(ALIKE, {}):
        storage.set_study_attrs(stored._study_id, {ALIKE: alike})


def _check_comparable(
    study: Study, name: str, attrs: Mapping[str, Any], storage: Storage, alike: Mapping[str, str] | None
) -> None:
    """Raise HpoError where nothing can be learnt from the study of that name: it is not there, or another matter.

    Code in these files counts as the study's own.
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
        raise HpoError(f"{others}: its images have another SHA-256")
    if not (study.modules and before.modules):
        return
    files = _files(storage, name)
    one, other = _code(study, attrs.get(CODE, NO_CODE)["files"]), _code(before, files)
    changed = [key for key in {**other, **one} if one.get(key) != other.get(key)]
    if changed and alike != files:
        raise HpoError(
            f"{others}: its networks were made of other code ({', '.join(changed)}); bring that back, take '{name}' "
            "out of start_from, or say with --changed-code that it makes no difference"
        )


def _files(storage: Storage, name: str) -> dict[str, str]:
    """Return the files of a stored study's code, with the SHA-256 of each."""
    return dict(user_attrs_of(load_study(storage, name)).get(CODE, NO_CODE)["files"])


def _code(study: Study, files: Mapping[str, str]) -> dict[str, str]:
    """Return these files of a study's code, wherever the study file is, and which of their names are its networks."""
    top = posixpath.commonpath([posixpath.dirname(file) or "." for file in files] or ["."])
    found = {posixpath.relpath(file, top): digest for file, digest in files.items()}
    for module in study.modules:
        file, name = split_reference(module)
        found[f"{posixpath.relpath(file, top)}:{name}"] = "a network"
    return found


def _ancestors(name: str, storage: Storage) -> set[str]:
    """Return the studies that a stored study starts from, and those that they start from, as far as they are there."""
    files = {each.name: each.user_attrs.get(STUDY) for each in summaries(storage)}
    found: set[str] = set()
    ahead = [name]
    while ahead:
        text = files.get(ahead.pop())
        before = json.loads(text).get("search", {}).get("start_from", []) if isinstance(text, str) else []
        ahead += [each for each in before if each not in found]
        found.update(before)
    return found
