"""A study as the text of a TOML file that people read: a line a key, keys at their defaults left out.

Promises: read back, the text is the same study. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

from hpo.studyfile.cases import WHEN
from hpo.studyfile.checking import AnyStudy
from hpo.studyfile.keys import open_tables, sections
from hpo.studyfile.models import Settings, StudySettings
from hpo.studyfile.objective import ObjectiveStudy, ObjectiveStudySettings
from hpo.studyfile.trees import Path


def study_text(study: AnyStudy, defaults: bool = False) -> str:
    """Return the text, with or without the keys at their defaults."""
    tree = study.resolved()
    whole: type[Settings] = ObjectiveStudySettings if isinstance(study, ObjectiveStudy) else StudySettings
    top = {key: value for key, value in tree.items() if not isinstance(value, dict)}
    blocks = [_lines(top if defaults else _said(whole, top))]
    for key, table in tree.items():
        if isinstance(table, dict) and table:
            model = sections(whole).get(key)
            own = {inner: value for inner, value in table.items() if inner != WHEN}
            said = own if model is None or defaults else _said(model, own)
            tables = {inner: said[inner] for inner in said if (key, inner) in open_tables()}
            blocks.append([f"[{key}]", *_lines({inner: said[inner] for inner in said if inner not in tables})])
            blocks += [[f"[{key}.{inner}]", *_lines(values)] for inner, values in tables.items()]
            for of, cases in table.get(WHEN, {}).items():
                blocks += [[f"[{key_text((key, WHEN, of, value))}]", *_lines(case)] for value, case in cases.items()]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _said(model: type[Settings], table: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a table says beyond its model's defaults."""
    fields = {key: field.default for key, field in model.model_fields.items() if not field.is_required()}
    defaults = {
        key: each.model_dump(exclude_none=True) if isinstance(each, Settings) else each for key, each in fields.items()
    }
    return {key: value for key, value in table.items() if key not in defaults or value != defaults[key]}


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    """Return a value on one line, where a file's reader expects a range: tomli-w writes tables and lists over many."""
    if isinstance(value, dict):
        said = {key: each for key, each in value.items() if (key, each) != ("log", False)}
        return f"{{ {', '.join(_lines(said))} }}" if said else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").removesuffix("\n")


def key_text(path: Path) -> str:
    """Return a path as a dotted key, quoted where it has to be: `network.when.hidden."[100, 100]".dropout`."""
    return ".".join(_key(str(key)) for key in path)


def _key(key: str) -> str:
    return tomli_w.dumps({key: 0}).removesuffix(" = 0\n")
