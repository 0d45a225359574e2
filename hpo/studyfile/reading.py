"""Reading a study from a file: TOML, the JSON of a resolved study, or an export; with values changed by the command.

Whatever the file holds, the caller gets a study or one StudyFileError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from hpo.errors import StudyFileError
from hpo.studyfile.cases import WHEN
from hpo.studyfile.checking import AnyStudy, parse_any_study
from hpo.studyfile.keys import SEARCHABLE, names, sections
from hpo.studyfile.messages import dotted, shown, study_file_error, unknown_key
from hpo.studyfile.models import Settings, StudySettings
from hpo.studyfile.objective import KEY as OBJECTIVE
from hpo.studyfile.objective import ObjectiveStudySettings
from hpo.studyfile.trees import MISSING, Path, replaced, value_at
from hpo.untrusted_files import parse_json, parse_toml

LARGEST_FILE = 2**18  # bytes; a larger file was never meant to be a study
EXPORT = "hpo.best/"  # how the schema of an export begins
OBJECTIVE_EXPORT = "hpo.objective/"  # and of one of the user's own objective
BETWEEN_KEYS = re.compile(r"""\.(?=(?:[^'"]|'[^']*'|"[^"]*")*$)""")  # dots outside quotes: a key may be "[0.0, 0.5]"


@dataclass(frozen=True)
class _Change:
    """A value that the command gives, and how an error names it."""

    label: str
    path: Path
    value: Any


def read_study(path: str | FilePath, overrides: Sequence[str] = (), **changes: Any) -> AnyStudy:
    """Read a study file, with `overrides` and changes: see `changed_study`."""
    tree = load_tree(path)
    return changed_study(tree, str(path), home_of(tree, FilePath(path)), overrides, **changes)


def changed_study(tree: Any, source: str, folder: FilePath, overrides: Sequence[str] = (), **changes: Any) -> AnyStudy:
    """Return the study of a file's tree, with `overrides` like `optimizer.lr.high=0.1` and settings changed by name.

    Files that it refers to lie in `folder`. A change (`trials=20`) that is None leaves the file's value. An error in a
    changed value names the option that gave it.
    """
    tree = _study_of(tree, source)
    model: type[Settings] = ObjectiveStudySettings if OBJECTIVE in tree else StudySettings
    given = [_override(text, source, model) for text in overrides]
    given += [
        _Change(f"--{name.replace('_', '-')}", names()[name], value)
        for name, value in changes.items()
        if value is not None
    ]
    for change in given:
        tree = _changed(tree, change, source)
    try:
        return parse_any_study(tree, source, folder)
    except StudyFileError as error:
        for change in reversed(given):
            key = dotted(change.path)
            if error.key == key or error.key.startswith(f"{key}."):
                raise study_file_error(source, change.label + error.key[len(key) :], error.problem) from error
        raise


def home_of(tree: Any, path: FilePath) -> FilePath:
    """Return what relative paths in a file are relative to: its folder, or what an export says of its study's."""
    export = tree if isinstance(tree, dict) and str(tree.get("schema")).startswith(EXPORT) else {}
    for part in (export.get("data"), export.get("code")):
        kept = FilePath(str(part.get("folder", ""))) if isinstance(part, dict) else FilePath()
        if kept.is_absolute() and os.path.isdir(kept):  # which is False where Path.is_dir raises
            return kept
    return path.absolute().parent


def load_tree(path: str | FilePath) -> Any:
    """Return what a TOML file, or by its name a JSON one, holds; raise StudyFileError for one that cannot be read."""
    path, source = FilePath(path), str(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except FileNotFoundError as error:
        raise study_file_error(source, "", "no such file") from error
    except IsADirectoryError as error:
        raise study_file_error(source, "", "is a directory, not a study file") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise study_file_error(source, "", f"cannot be read: {problem}") from error
    if len(content) > LARGEST_FILE:
        raise study_file_error(source, "", f"is larger than a study file can be ({LARGEST_FILE} bytes)")
    if not content.strip():
        raise study_file_error(source, "", "is empty")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise study_file_error(source, "", f"is not UTF-8 text (line {line})") from error
    try:
        return parse_json(text) if path.suffix.lower() == ".json" else parse_toml(text)
    except ValueError as error:
        raise study_file_error(source, "", str(error)) from error


def _study_of(tree: Any, source: str) -> dict[str, Any]:
    """Return the study's tree: the file's own, or an export's configuration."""
    if isinstance(tree, dict) and str(tree.get("schema")).startswith(EXPORT):
        if "config" not in tree:
            raise study_file_error(source, "", "is an export without a config")
        tree = tree["config"]
    if isinstance(tree, dict) and str(tree.get("schema")).startswith(OBJECTIVE_EXPORT):
        raise study_file_error(source, "", "is the export of an objective's trial, which there is nothing to launch of")
    if not isinstance(tree, dict):
        raise study_file_error(source, "", f"must hold a resolved study or an export (got {shown(tree)})")
    return tree


def _override(text: str, source: str, model: type[Settings]) -> _Change:
    key, equals, written = text.partition("=")
    keys = [part.strip().strip("'\"") for part in BETWEEN_KEYS.split(key)]
    if not equals or not all(keys):
        raise study_file_error(source, f"--set {shown(text)}", "must be KEY=VALUE, such as optimizer.lr.high=0.1")
    in_case = keys[1:2] == [WHEN] and keys[0] in SEARCHABLE
    path = tuple(
        int(part) if re.fullmatch("[0-9]{1,9}", part) and not (in_case and depth < 4) else part
        for depth, part in enumerate(keys)
    )
    owner: type[Settings] | None = model
    for depth, part in enumerate(path):
        if owner is not None and part not in owner.model_fields and not (in_case and depth == 1):
            label = f"--set {dotted(path[: depth + 1])}"
            raise study_file_error(source, label, unknown_key(part, owner.model_fields))
        owner = sections(model).get(str(part)) if depth == 0 else None
    label = f"--set {dotted(path)}"
    try:
        return _Change(label, path, _toml_value(written.strip()))
    except ValueError as error:
        raise study_file_error(source, label, str(error)) from error


def _toml_value(text: str) -> Any:
    """Return a TOML value, or the text itself where it is a bare word: `tanh` needs no quotes."""
    try:
        tree = parse_toml(f"value = {text}")
    except ValueError:
        tree = {}
    if tree.keys() == {"value"}:
        return tree["value"]
    if text.startswith(("{", "[", "'", '"')):
        raise ValueError(f"is not a TOML value (got {shown(text)})")
    return text


def _changed(tree: dict[str, Any], change: _Change, source: str) -> dict[str, Any]:
    """Put a changed value in; a section or table that is not there is begun, anything else must exist."""
    for depth in range(1, len(change.path)):
        top, key = change.path[:depth], change.path[depth]
        node = value_at(tree, top)
        if node is MISSING and isinstance(key, str):
            tree = replaced(tree, top, {})
        elif isinstance(node, list) and isinstance(key, int):
            if key >= len(node):
                raise study_file_error(source, change.label, f"{dotted(top)} has no element {key} (got {shown(node)})")
        elif not isinstance(node, dict):
            got = "not set" if node is MISSING else shown(node)
            raise study_file_error(source, change.label, f"{dotted(top)} is {got}, nothing in it can be set")
    changed: dict[str, Any] = replaced(tree, change.path, change.value)
    return changed
