"""The studies that a study starts from (`search.start_from`), whose completed trials its sampler knows from the start.

Promises: trials are taken only from studies that are comparable, as `--extend` understands it: the same images, split,
metric and score, the same searched parameters, and everything else that is fixed the same. A new study is not stored
unless all of them are. Later on, one that was deleted, or begun anew as something else, is left out, with the reason,
so that workers can go on. What counts is a study's state when a process enters the search. Stores nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.data import Split
from hpo.errors import HpoError, StorageError
from hpo.search.records import DATA, FREE_TO_CHANGE, STUDY, data_record, incomparable, kept, same_images, stored_study
from hpo.storage import Parts, Storage, load_study, study_names, summaries
from hpo.studyfile import SearchSettings, Study

FREE_TO_DIFFER = (
    *FREE_TO_CHANGE,
    "name",
    *(f"search.{key}" for key in SearchSettings.model_fields if key not in ("metric", "score")),
)
"""Keys in which a study may differ from those that it starts from, besides ranges and choices."""

VALUES_ONLY = Parts(curves=False, user_attrs=False, system_attrs=None)


@dataclass(frozen=True)
class Predecessors:
    """Those that can be learnt from, their completed trials, one study after the other, and why others cannot."""

    names: tuple[str, ...]
    trials: list[FrozenTrial]
    problems: tuple[str, ...]


def predecessors(study: Study, data: Mapping[str, Any], storage: Storage) -> Predecessors:
    """Return what can be learnt from the studies that this one starts from; `data` is the record of its images."""
    names, trials, problems = [], [], []
    for name in study.search.start_from:
        try:
            _check_comparable(study, name, data, storage)
            trials += completed(storage, name)
            names.append(name)
        except StorageError:
            raise
        except HpoError as error:
            problems.append(str(error))
    return Predecessors(tuple(names), trials, tuple(problems))


def completed(storage: Storage, name: str) -> list[FrozenTrial]:
    """Return a study's completed trials, their parameters and values only."""
    trials = storage.read(load_study(storage, name)._study_id, -1, (), VALUES_ONLY)
    return [trial for trial in trials if trial.state == TrialState.COMPLETE]


def check_start(study: Study, split: Split, storage: Storage) -> None:
    """Raise StudyFileError where a study that is not stored yet cannot start from what its file says."""
    if not study.search.start_from or study.name in study_names(storage):
        return
    data = data_record(split)
    for name in study.search.start_from:
        try:
            _check_comparable(study, name, data, storage)
        except StorageError:
            raise
        except HpoError as error:
            raise study.error("search.start_from", str(error)) from error
        if study.name in _ancestors(name, storage):
            raise study.error("search.start_from", f"study '{name}' itself starts from '{study.name}'")


def _check_comparable(study: Study, name: str, data: Mapping[str, Any], storage: Storage) -> None:
    """Raise HpoError where nothing can be learnt from the study of that name: it is not there, or another matter."""
    stored = load_study(storage, name)
    differences = incomparable(stored_study(stored), study, FREE_TO_DIFFER)
    if differences:
        raise HpoError(f"the trials of '{name}' are not comparable with these: {'; '.join(differences)}")
    if not same_images(kept(stored)[DATA], data):
        raise HpoError(f"the trials of '{name}' are not comparable with these: its images have another SHA-256")


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
