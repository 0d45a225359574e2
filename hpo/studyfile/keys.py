"""What the models say of a study file's keys: how each is called, which may be searched, and which go unused.

Everything here is read off the models (`hpo.studyfile.models`) and their marks; no key is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import (
    Field,
    TypeAdapter,
    ValidationError,
)

from hpo.studyfile.models import Config, Settings, StudySettings
from hpo.studyfile.trees import Path
from hpo.studyfile.values import STRICT, OneForAll, Open, UsedBy


def sections(model: type[Settings]) -> dict[str, type[Settings]]:
    """Return the tables of a study file, by key."""
    return {
        key: field.annotation
        for key, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }


SECTIONS = sections(StudySettings)
SEARCHABLE = tuple(Config.model_fields)  # the sections whose values may be searched


@cache
def names() -> dict[str, Path]:
    """Map each setting's short name to its path: its key, or the dotted path of a key that several sections own."""
    paths: list[Path] = [(key,) for key in StudySettings.model_fields if key not in SECTIONS]
    paths += [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
    keys = [path[-1] for path in paths]
    return {str(path[-1]) if keys.count(path[-1]) == 1 else ".".join(map(str, path)): path for path in paths}


@cache
def open_tables() -> frozenset[Path]:
    """Return the paths of the tables whose keys are not the models', each of which may be searched."""
    return frozenset[Path](_marked(Open))


@cache
def for_all() -> frozenset[tuple[str, str]]:
    """Return the paths of the keys that cannot be searched although others of their section can."""
    return _marked(OneForAll)


def _marked(kind: type[OneForAll] | type[Open]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (section, key)
        for section in SEARCHABLE
        for key, field in SECTIONS[section].model_fields.items()
        if any(isinstance(mark, kind) for mark in field.metadata)
    )


@cache
def conditional() -> Mapping[Path, UsedBy]:
    """Return the paths of the keys that only some values of another key use, each with the mark that says so."""
    return {(section, key): mark for section in SEARCHABLE for key, mark in _used_by(section).items()}


@cache
def _used_by(section: str) -> Mapping[str, UsedBy]:
    fields = SECTIONS[section].model_fields.items()
    return {key: mark for key, field in fields for mark in field.metadata if isinstance(mark, UsedBy)}


def unused_keys(section: str, values: Mapping[str, object]) -> dict[str, UsedBy]:
    """Return the keys of a section that nothing its table may say uses, each with the mark that says what does.

    A table that names a kind, or another such value, that is none has no keys that go unused for it.
    """
    marks = _used_by(section)
    unused = {mark for mark in set(marks.values()) if not _uses(section, values, mark)}
    return {key: mark for key, mark in marks.items() if mark in unused}


def is_used(setting: Path, tree: Mapping[str, Any]) -> bool:
    """Return whether a tree of sections has anything that uses this setting, one of `conditional`."""
    section = str(setting[0])
    return _uses(section, tree[section], conditional()[setting[:2]])


def _uses(section: str, values: Mapping[str, object], mark: UsedBy) -> bool:
    possible = possible_values(section, mark.key, values)
    return not possible or not set(mark.values).isdisjoint(possible)


@cache
def _adapter(section: str, key: str) -> TypeAdapter[Any]:
    field = SECTIONS[section].model_fields[key]
    allowed: Any = Annotated[field.annotation, Field(), *field.metadata]
    return TypeAdapter(allowed, config=STRICT)


def understood(section: str, key: str, value: Any) -> Any:
    """Return a value as its key means it, 0.0 where 0 stands for a fraction; itself where it cannot be one."""
    try:
        return _adapter(section, key).validate_python(value)
    except ValidationError:
        return value


def possible_values(section: str, key: str, values: Mapping[str, object]) -> list[str]:
    """Return the words that a key may be, as a section's table says, or none where it says one that is not allowed."""
    field = SECTIONS[section].model_fields[key]
    value = values.get(key, field.default)
    words = value.get("choices") if isinstance(value, Mapping) else [value]
    return words if isinstance(words, list) and all(word in get_args(field.annotation) for word in words) else []
