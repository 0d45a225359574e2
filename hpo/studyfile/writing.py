"""Write a study as readable TOML: one key a line, without keys at their defaults.

Reading the text returns an equal study.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

from hpo.errors import UsageError
from hpo.studyfile.checks.checking import AnyStudy
from hpo.studyfile.conditions import WHEN
from hpo.studyfile.keys import open_tables, sections
from hpo.studyfile.models import StudySettings
from hpo.studyfile.objective import ObjectiveStudy, ObjectiveStudySettings
from hpo.studyfile.trees import Path
from hpo.studyfile.values import Settings


def study_text(study: AnyStudy, with_defaults: bool = False) -> str:
    """Return the study file of a study, with or without the keys at their defaults.

    Raises UsageError for a point or baseline of an objective study with None, which TOML does not have.
    """
    tree = study.resolved()
    model: type[Settings] = ObjectiveStudySettings if isinstance(study, ObjectiveStudy) else StudySettings
    top = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    blocks = [_lines(top if with_defaults else _without_defaults(model, top))]
    for key, table in tree.items():
        if isinstance(table, dict) and table:
            section = sections(model).get(key)
            values = {inner: value for inner, value in table.items() if inner != WHEN}
            values = values if section is None or with_defaults else _without_defaults(section, values)
            tables = {inner: values[inner] for inner in values if (key, inner) in open_tables()}
            blocks.append([f"[{key}]", *_lines({inner: values[inner] for inner in values if inner not in tables})])
            blocks += [[f"[{key}.{inner}]", *_lines(inner_values)] for inner, inner_values in tables.items()]
            for other, conditional in table.get(WHEN, {}).items():
                blocks += [
                    [f"[{key_text((key, WHEN, other, choice))}]", *_lines(inner_values)]
                    for choice, inner_values in conditional.items()
                ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _without_defaults(model: type[Settings], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table without the keys that are at their model's defaults."""
    fields = {key: field.default for key, field in model.model_fields.items() if not field.is_required()}
    defaults = {
        key: each.model_dump(exclude_none=True) if isinstance(each, Settings) else each for key, each in fields.items()
    }
    return {key: value for key, value in table.items() if key not in defaults or value != defaults[key]}


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {value_text(value)}" for key, value in table.items()]


def value_text(value: Any) -> str:
    """Return a value on one line; tomli-w would write tables and lists on several."""
    if value is None:
        raise UsageError("a point or the baseline has None, which TOML does not have; write the study file as JSON")
    if isinstance(value, dict):
        table = {key: each for key, each in value.items() if (key, each) != ("log", False)}
        return f"{{ {', '.join(_lines(table))} }}" if table else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").removesuffix("\n")


def key_text(path: Path) -> str:
    """Return a path as a dotted key, quoted if necessary: `network.when.hidden."[100, 100]".dropout`."""
    return ".".join(_key(str(key)) for key in path)


def _key(key: str) -> str:
    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
