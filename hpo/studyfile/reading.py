"""Read a study from a file: TOML, the JSON of a resolved file, or an export, with values changed by the command.

Whatever the file contains, the result is a study or one StudyFileError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from hpo.errors import StudyFileError
from hpo.studyfile.checks.checking import AnyStudy, parse_any_study
from hpo.studyfile.conditions import WHEN
from hpo.studyfile.keys import SEARCHABLE, sections, setting_paths
from hpo.studyfile.messages import dotted_key, format_key, format_value, study_file_error, unknown_key_text
from hpo.studyfile.models import StudySettings
from hpo.studyfile.objective import KEY as OBJECTIVE
from hpo.studyfile.objective import ObjectiveStudySettings
from hpo.studyfile.trees import MISSING, Path, replaced, value_at
from hpo.studyfile.values import Settings
from hpo.untrusted_files import parse_json, parse_toml

MAX_BYTES = 2**18  # of a study file
EXPORT = "hpo.best/"  # prefix of the schema of an export
OBJECTIVE_EXPORT = "hpo.objective/"  # and of the export of an objective study
OPTUNA_EXPORT = "hpo.optuna/"  # and of the export of a study of another program
_DOTS = re.compile(r"""\.(?=(?:[^'"]|'[^']*'|"[^"]*")*$)""")  # dots outside quotes: a key may be "[0.0, 0.5]"


@dataclass(frozen=True)
class _Change:
    """A value from the command, and its label in errors."""

    label: str
    path: Path
    value: Any


def read_study(path: str | FilePath, overrides: Sequence[str] = (), **changes: Any) -> AnyStudy:
    """Read a study file with overrides and changes, as in `study_from_tree`."""
    tree = read_tree(path)
    return study_from_tree(tree, str(path), base_folder(tree, FilePath(path)), overrides, **changes)


def study_from_tree(
    tree: Any, source: str, folder: FilePath, overrides: Sequence[str] = (), **changes: Any
) -> AnyStudy:
    """Return the study of a file's tree with overrides, `optimizer.lr.high=0.1`, and changes, `trials=20`.

    The files that it refers to are in `folder`. A change to None leaves the file's value. An error about a changed
    value names its command line option.
    """
    tree = _study_of(tree, source)
    model: type[Settings] = ObjectiveStudySettings if OBJECTIVE in tree else StudySettings
    given = [_override(text, source, model) for text in overrides]
    given += [
        _Change(f"--{name.replace('_', '-')}", setting_paths()[name], value)
        for name, value in changes.items()
        if value is not None
    ]
    for change in given:
        tree = _changed(tree, change, source)
    try:
        return parse_any_study(tree, source, folder)
    except StudyFileError as error:
        for change in reversed(given):
            key = dotted_key(change.path)
            if error.key == key or error.key.startswith(f"{key}."):
                raise study_file_error(source, change.label + error.key[len(key) :], error.problem) from error
        raise


def base_folder(tree: Any, path: FilePath) -> FilePath:
    """Return the base of a file's relative paths: its folder, or the folder that an export recorded for its study."""
    export = tree if isinstance(tree, dict) and str(tree.get("schema")).startswith(EXPORT) else {}
    for part in (export.get("data"), export.get("code")):
        recorded = FilePath(str(part.get("folder", ""))) if isinstance(part, dict) else FilePath()
        if recorded.is_absolute() and os.path.isdir(recorded):  # False where Path.is_dir would raise
            return recorded
    return path.absolute().parent


def read_tree(path: str | FilePath) -> Any:
    """Return the tree of a TOML file, or of a .json file; raise StudyFileError if it cannot be read."""
    path, source = FilePath(path), str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise study_file_error(source, "", "no such file") from error
    except IsADirectoryError as error:
        raise study_file_error(source, "", "is a directory, not a study file") from error
    except (OSError, ValueError) as error:  # ValueError: an invalid file name
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise study_file_error(source, "", f"cannot be read: {problem}") from error
    if len(content) > MAX_BYTES:
        raise study_file_error(source, "", f"is larger than the maximum for a study file ({MAX_BYTES:,} bytes)")
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
    """Return the study's tree: that of the file, or the configuration in an export."""
    if isinstance(tree, dict) and str(tree.get("schema")).startswith(EXPORT):
        if "config" not in tree:
            raise study_file_error(source, "", "is an export without the key 'config'")
        tree = tree["config"]
    if isinstance(tree, dict) and str(tree.get("schema")).startswith(OBJECTIVE_EXPORT):
        raise study_file_error(
            source, "", "is the export of an objective study's trial, which cannot be launched; launch its study file"
        )
    if isinstance(tree, dict) and str(tree.get("schema")).startswith(OPTUNA_EXPORT):
        raise study_file_error(
            source, "", "is the export of a trial of another program, which hpo cannot launch; use its `params` there"
        )
    if not isinstance(tree, dict):
        raise study_file_error(
            source, "", f"must be a study file, a resolved file or an export (got {format_value(tree)})"
        )
    return tree


def _override(text: str, source: str, model: type[Settings]) -> _Change:
    key, equals, value = text.partition("=")
    keys = [part.strip().strip("'\"") for part in _DOTS.split(key)]
    if not equals or not all(keys):
        problem = "must be KEY=VALUE, such as optimizer.lr.high=0.1"
        raise study_file_error(source, f"--set {format_value(text)}", problem)
    conditional = keys[1:2] == [WHEN] and keys[0] in SEARCHABLE
    path = tuple(
        int(part) if re.fullmatch("[0-9]{1,9}", part) and not (conditional and depth < 4) else part
        for depth, part in enumerate(keys)
    )
    owner: type[Settings] | None = model
    for depth, part in enumerate(path):
        if owner is not None and part not in owner.model_fields and not (conditional and depth == 1):
            label = f"--set {dotted_key(path[: depth + 1])}"
            raise study_file_error(source, label, unknown_key_text(part, owner.model_fields))
        owner = sections(model).get(str(part)) if depth == 0 else None
    label = f"--set {dotted_key(path)}"
    try:
        return _Change(label, path, _toml_value(value.strip()))
    except ValueError as error:
        raise study_file_error(source, label, str(error)) from error


def _toml_value(text: str) -> Any:
    """Return a TOML value, or the text itself for a bare word: `tanh` needs no quotes."""
    try:
        tree = parse_toml(f"value = {text}")
    except ValueError:
        tree = {}
    if tree.keys() == {"value"}:
        return tree["value"]
    if text.startswith(("{", "[", "'", '"')):
        raise ValueError(f"is not a TOML value (got {format_value(text)})")
    return text


def _changed(tree: dict[str, Any], change: _Change, source: str) -> dict[str, Any]:
    """Return the tree with a changed value; missing sections and tables are created, other nodes must exist."""
    for depth in range(1, len(change.path)):
        top, key = change.path[:depth], change.path[depth]
        node = value_at(tree, top)
        if node is MISSING and isinstance(key, str):
            tree = replaced(tree, top, {})
        elif isinstance(node, list) and isinstance(key, int):
            if key >= len(node):
                problem = f"{dotted_key(top)} has no element {key} (got {format_value(node)})"
                raise study_file_error(source, change.label, problem)
        elif not isinstance(node, dict):
            got = "not set" if node is MISSING else format_value(node)
            kind = "element" if isinstance(key, int) else "key"
            raise study_file_error(
                source, change.label, f"{dotted_key(top)} is {got}: it has no {kind} {format_key(key)}"
            )
    changed: dict[str, Any] = replaced(tree, change.path, change.value)
    return changed
