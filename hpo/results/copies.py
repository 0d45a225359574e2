"""What `hpo copy` does, and says of it.

The copy is made in the storage (`hpo.storage.copying`); what is added here is what only hpo knows. A study's
confirmations are studies of their own, and are copied with it; what names a study names the copy: its file, its
certificate, what it confirms. Studies of other programs are copied just the same. What does not travel is said: the
studies that it starts from, and files of weights.
"""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

from hpo.results.confirmation import confirmations
from hpo.results.confirming import CONFIRMS, confirming_name, description
from hpo.results.verification import VERIFIED
from hpo.search.records import STUDY
from hpo.storage import Storage, copy_study, load_study, open_storage, study_names
from hpo.storage.artifacts import artifact_folder
from hpo.storage.kept import kept_files
from hpo.studyfile import parse_any_study


def copy_line(source: Storage, name: str, to: str, new_name: str | None) -> str:
    """Copy the study of that name to the storage at the URL `to`; return the line that says so."""
    stored = load_study(source, name)  # where there is none, no file is made for its copy
    called = name if new_name is None else new_name
    confirming = [each.name for each in confirmations(source, name)]
    along = {
        each: each if new_name is None else confirming_name(new_name, number)
        for number, each in enumerate(confirming, start=1)
    }
    with closing(open_storage(to)) as target:
        changes = _renaming({name: called, **along}) if new_name is not None else {}
        copied = copy_study(source, name, target, new_name, changes, along)
        wait = "wait" if copied.running > 1 else "waits"
        waiting = f", {copied.running} of them running, which {wait} there" if copied.running else ""
        line = f"{name}: {copied.trials} trials copied to {target.shown}"
        line += f"{'' if new_name is None else f' as {new_name!r}'}{waiting}"
        line += f"; its confirmations, too: {', '.join(map(repr, along.values()))}" if along else ""
        return "; ".join([line, *_left_behind(source, stored._study_id, stored.user_attrs, target)])


def _renaming(names: dict[str, str]) -> dict[str, Any]:
    """Return what becomes of the attributes that name a study, where studies get these new names."""

    def file(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        tree = json.loads(text)
        for old in names:  # the study that the confirming one describes
            seeds = tree["search"].get("repeats", 1)
            if tree.get("description") == description(old, seeds):
                tree["description"] = description(names[old], seeds)
        source = f"study {tree['name']!r}"
        tree["name"] = names.get(tree["name"], next(iter(names.values())))  # another program may have renamed it
        parse_any_study(tree, source)  # not every name can be a study file's
        return json.dumps(tree)

    def record(found: Any) -> Any:
        known = isinstance(found, dict) and found.get("study") in names
        return found | {"study": names[found["study"]]} if known else found

    return {STUDY: file, CONFIRMS: record, VERIFIED: record}


def _left_behind(source: Storage, study_id: int, attrs: dict[str, Any], target: Storage) -> list[str]:
    """Return what the study needs and the target has not."""
    said = []
    text = attrs.get(STUDY)
    before = json.loads(text).get("search", {}).get("start_from", []) if isinstance(text, str) else []
    if missing := [each for each in before if each not in study_names(target)]:
        said.append(f"it starts from {', '.join(map(repr, missing))}, which does not travel with it")
    folder = artifact_folder(source.location)
    if folder != artifact_folder(target.location) and kept_files(source, study_id):
        said.append(f"its files of weights stay in {folder}")
    return said
