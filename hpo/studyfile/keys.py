"""Keys of a study file, read from the models and their marks: names, sections, and searchable and unused keys."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter, ValidationError

from hpo.studyfile.models import Config, StudySettings
from hpo.studyfile.trees import Path
from hpo.studyfile.values import STRICT, NotSearchable, OpenTable, Settings, UsedBy


def sections(model: type[Settings]) -> dict[str, type[Settings]]:
    """Return the models of a study file's tables by key."""
    return {
        key: field.annotation
        for key, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
    }


SECTIONS = sections(StudySettings)
SEARCHABLE = tuple(Config.model_fields)  # the sections whose values may be searched


@cache
def setting_paths() -> dict[str, Path]:
    """Map each setting's short name to its path: its key, or the dotted path of a key that several sections have."""
    paths: list[Path] = [(key,) for key in StudySettings.model_fields if key not in SECTIONS]
    paths += [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
    keys = [path[-1] for path in paths]
    return {str(path[-1]) if keys.count(path[-1]) == 1 else ".".join(map(str, path)): path for path in paths}


@cache
def open_tables() -> frozenset[Path]:
    """Return the paths of the tables with arbitrary keys, each of which may be searched."""
    return frozenset[Path](_marked(OpenTable))


@cache
def unsearchable_keys() -> frozenset[tuple[str, str]]:
    """Return the paths of the keys in searchable sections that cannot be searched."""
    return _marked(NotSearchable)


def _marked(kind: type[NotSearchable] | type[OpenTable]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (section, key)
        for section in SEARCHABLE
        for key, field in SECTIONS[section].model_fields.items()
        if any(isinstance(mark, kind) for mark in field.metadata)
    )


@cache
def conditionally_used() -> Mapping[Path, UsedBy]:
    """Return the paths of the keys that are used only with some values of another key, with their marks."""
    return {(section, key): mark for section in SEARCHABLE for key, mark in _used_by(section).items()}


@cache
def _used_by(section: str) -> Mapping[str, UsedBy]:
    fields = SECTIONS[section].model_fields.items()
    return {key: mark for key, field in fields for mark in field.metadata if isinstance(mark, UsedBy)}


def unused_keys(section: str, values: Mapping[str, object]) -> dict[str, UsedBy]:
    """Return the keys of a section that are unused with all possible values of the table, with their marks.

    If the table has an invalid value for a deciding key such as `kind`, no key counts as unused for it.
    """
    marks = _used_by(section)
    unused = {mark for mark in set(marks.values()) if not _uses(section, values, mark)}
    return {key: mark for key, mark in marks.items() if mark in unused}


def is_used(setting: Path, tree: Mapping[str, Any]) -> bool:
    """Return whether a tree of sections may use this setting, one of `conditionally_used`."""
    section = str(setting[0])
    return _uses(section, tree[section], conditionally_used()[setting[:2]])


def _uses(section: str, values: Mapping[str, object], mark: UsedBy) -> bool:
    possible = possible_words(section, mark.key, values)
    return not possible or not set(mark.values).isdisjoint(possible)


@cache
def _adapter(section: str, key: str) -> TypeAdapter[Any]:
    field = SECTIONS[section].model_fields[key]
    allowed: Any = Annotated[field.annotation, Field(), *field.metadata]
    return TypeAdapter(allowed, config=STRICT)


def coerce(section: str, key: str, value: Any) -> Any:
    """Return a value in the type of its key, such as 0.0 for a fraction of 0; an invalid value unchanged."""
    try:
        return _adapter(section, key).validate_python(value)
    except ValidationError:
        return value


def possible_words(section: str, key: str, values: Mapping[str, object]) -> list[str]:
    """Return the words that a key may have in a section's table; none if one of them is invalid."""
    field = SECTIONS[section].model_fields[key]
    value = values.get(key, field.default)
    words = value.get("choices") if isinstance(value, Mapping) else [value]
    return words if isinstance(words, list) and all(word in get_args(field.annotation) for word in words) else []
