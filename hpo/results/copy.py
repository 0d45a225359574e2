"""`hpo copy`: copy a study with its confirmations to another storage.

The copy is an independent study with a new identity, and the copied confirmations belong to it. Studies of other
programs can be copied, too. Not copied, and named in the line that is returned: the studies that the study starts from,
and its checkpoint files. `hpo.storage.copying` copies the tables.
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
    """Copy a study to the storage at the URL `to`; return a line that describes the copy."""
    study = summary(source, name)  # raises for an unknown study before a file is created for the copy
    _check_name(study, new_name)
    confirming = confirmations(source, name)
    new_names = {
        each.name: each.name if new_name is None else confirming_name(new_name, number)
        for number, each in enumerate(confirming, start=1)
    }
    with closing(open_storage(to)) as target:
        copied = copy_study(source, name, target, new_name, _changes([study, *confirming]), new_names)
        waiting = f", {copied.running} of them running: waiting in the copy" if copied.running else ""
        line = f"{name}: {copied.trials} trials copied to {target.shown}"
        line += f"{'' if new_name is None else f' as {new_name!r}'}{waiting}"
        line += f"; with its confirmations {', '.join(map(repr, new_names.values()))}" if new_names else ""
        return printable("; ".join([line, *_not_copied(source, study, target)]))


def _check_name(study: StudySummary, new_name: str | None) -> None:
    """Raise StudyFileError for a new name that a study file cannot have."""
    text = study.user_attrs.get(STUDY)
    if new_name is not None and isinstance(text, str):
        parse_any_study(json.loads(text) | {"name": new_name}, f"study {study.name!r}")


def _changes(studies: Sequence[StudySummary]) -> dict[str, Callable[[Any], Any]]:
    """Return functions that give the copies' attributes new identities, by attribute key."""
    fresh = {each.user_attrs[IDENTITY]: secrets.token_hex(8) for each in studies if IDENTITY in each.user_attrs}

    def record(found: Any) -> Any:
        known = isinstance(found, dict) and found.get("identity") in fresh
        return found | {"identity": fresh[found["identity"]]} if known else found

    return {IDENTITY: lambda known: fresh.get(known, known), CONFIRMS: record}


def _not_copied(source: Storage, study: StudySummary, target: Storage) -> list[str]:
    """Return what the study needs and the copy lacks."""
    lines = []
    text = study.user_attrs.get(STUDY)
    before = json.loads(text).get("search", {}).get("start_from", []) if isinstance(text, str) else []
    if missing := [each for each in before if each not in study_names(target)]:
        lines.append(f"not copied: {', '.join(map(repr, missing))}, which it starts from")
    folder = artifact_folder(source.location)
    if folder != artifact_folder(target.location) and checkpoint_files(source, study.study_id):
        lines.append(f"its checkpoints stay in {folder}")
    return lines
