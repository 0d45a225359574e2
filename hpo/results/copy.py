"""What `hpo copy` does, and says of it.

The copy is made in the storage (`hpo.storage.copying`); what is added here is what only hpo knows. A copy is a study of
its own, known by another identity; a study's confirmations are copied with it, and confirm the copy. Studies of other
programs are copied just the same. What does not travel is said: the studies that it starts from, and files of weights.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from hpo.results.confirm.study import CONFIRMS, confirmations, confirming_name
from hpo.search.study_records import STUDY
from hpo.storage import IDENTITY, Storage, StudySummary, copy_study, open_storage, study_names, summary
from hpo.storage.artifacts import artifact_folder, checkpoint_files
from hpo.studyfile import parse_any_study
from hpo.text import printable


def copy_line(source: Storage, name: str, to: str, new_name: str | None) -> str:
    """Copy the study of that name to the storage at the URL `to`; return the line that says so."""
    study = summary(source, name)  # where there is none, no file is made for its copy
    _check_name(study, new_name)
    confirming = confirmations(source, name)
    along = {
        each.name: each.name if new_name is None else confirming_name(new_name, number)
        for number, each in enumerate(confirming, start=1)
    }
    with closing(open_storage(to)) as target:
        copied = copy_study(source, name, target, new_name, _changes([study, *confirming]), along)
        wait = "wait" if copied.running > 1 else "waits"
        waiting = f", {copied.running} of them running, which {wait} there" if copied.running else ""
        line = f"{name}: {copied.trials} trials copied to {target.shown}"
        line += f"{'' if new_name is None else f' as {new_name!r}'}{waiting}"
        line += f"; its confirmations, too: {', '.join(map(repr, along.values()))}" if along else ""
        return printable("; ".join([line, *_left_behind(source, study, target)]))


def _check_name(study: StudySummary, new_name: str | None) -> None:
    """Raise StudyFileError where the file of a study of hpo's could not give it that name."""
    text = study.user_attrs.get(STUDY)
    if new_name is not None and isinstance(text, str):
        parse_any_study(json.loads(text) | {"name": new_name}, f"study {study.name!r}")


def _changes(studies: Sequence[StudySummary]) -> dict[str, Callable[[Any], Any]]:
    """Return what becomes of the attributes that tell studies apart, where these are copied."""
    fresh = {each.user_attrs[IDENTITY]: secrets.token_hex(8) for each in studies if IDENTITY in each.user_attrs}

    def record(found: Any) -> Any:
        known = isinstance(found, dict) and found.get("identity") in fresh
        return found | {"identity": fresh[found["identity"]]} if known else found

    return {IDENTITY: lambda known: fresh.get(known, known), CONFIRMS: record}


def _left_behind(source: Storage, study: StudySummary, target: Storage) -> list[str]:
    """Return what the study needs and the target has not."""
    said = []
    text = study.user_attrs.get(STUDY)
    before = json.loads(text).get("search", {}).get("start_from", []) if isinstance(text, str) else []
    if missing := [each for each in before if each not in study_names(target)]:
        said.append(f"it starts from {', '.join(map(repr, missing))}, which does not travel with it")
    folder = artifact_folder(source.location)
    if folder != artifact_folder(target.location) and checkpoint_files(source, study.study_id):
        said.append(f"its files of weights stay in {folder}")
    return said
