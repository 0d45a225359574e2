"""Generate the tables of keys in docs/reference/study-file.md.

Key, value, default and "used by" come from the models; the last column, the meaning, is written by hand in the page and
stays as it is. `python docs/generate.py` rewrites the page.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from hpo.studyfile.keys import SECTIONS, sections
from hpo.studyfile.models import StudySettings
from hpo.studyfile.objective import ObjectiveSearchSettings, ObjectiveStudySettings
from hpo.studyfile.values import MAX_INT, Settings, UsedBy

PAGE = Path(__file__).parent / "reference/study-file.md"
WHOLE_FILES: tuple[type[Settings], ...] = (StudySettings, ObjectiveStudySettings)

TABLES: dict[str, type[Settings]] = {
    "## Top level": StudySettings,
    **{f"## [{section}]": model for section, model in SECTIONS.items()},
    "## Objective study": ObjectiveStudySettings,
    "### [search] of an objective study": ObjectiveSearchSettings,
}
"""Heading of the page -> model whose keys the first table after it lists."""

TABLE = re.compile(r"^\| key \|.*\n(?:\|.*\n)+", re.MULTILINE)


def rewritten(page: str) -> str:
    """Return the page with its tables rewritten from the models. Exit where a key has no meaning."""
    for heading, model in TABLES.items():
        start, end = table_position(page, heading)
        page = page[:start] + table(heading, model, page[start:end]) + page[end:]
    return page


def table_position(page: str, heading: str) -> tuple[int, int]:
    """Return start and end of the table of keys after a heading. Exit where there is none."""
    top = page.find(f"{heading}\n")
    if top < 0:
        sys.exit(f"{PAGE}: has no heading {heading}")
    shown = TABLE.search(page, top)
    if shown is None:
        sys.exit(f"{PAGE}: has no table of keys after {heading}")
    return shown.span()


def meanings_in(shown: str) -> dict[str, str]:
    """Return the meanings of keys in a table of the page."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()]
    return {row[0].strip("`"): row[-1] for row in rows}


def table(heading: str, model: type[Settings], shown: str) -> str:
    """Return a model's table; take the meanings from `shown`, the present table. Sections have their own tables."""
    meanings = meanings_in(shown)
    keys = [key for key in model.model_fields if key not in (sections(model) if model in WHOLE_FILES else ())]
    without = [key for key in keys if not meanings.get(key)]
    if without:
        sys.exit(f"{PAGE}: write a row with the meaning of {', '.join(without)} after {heading}")
    uses = [used_by(model.model_fields[key]) for key in keys]
    cells = [["key", "value", "default", "used by", "meaning"], ["---"] * 5]
    for key, use in zip(keys, uses, strict=True):
        cells.append([f"`{key}`", *value_and_default(model, key), use, meanings[key]])
    if set(uses) == {"all"}:
        cells = [[*row[:3], row[4]] for row in cells]
    return "".join(f"| {' | '.join(row)} |\n" if row[0] != "---" else f"|{'|'.join(row)}|\n" for row in cells)


def value_and_default(model: type[Settings], key: str) -> tuple[str, str]:
    """Return the cells of a key's value and default."""
    whole = model.model_json_schema()
    schema = whole["properties"][key]
    if "$ref" in schema:  # a nested table
        schema = whole["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return in_words(schema), default_of(model.model_fields[key])


def used_by(field: FieldInfo) -> str:
    """Return the kinds that use a key, or "all"."""
    return next((used_by_in_words(mark) for mark in field.metadata if isinstance(mark, UsedBy)), "all")


def used_by_in_words(mark: UsedBy) -> str:
    words = ", ".join(mark.values)
    return words if mark.key == "kind" else f"`{mark.key}` {words}"


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default.model_dump(exclude_none=True) if isinstance(field.default, Settings) else field.default
    return "not set" if default is None else f"`{json.dumps(default)}`"


def in_words(schema: dict[str, Any]) -> str:
    """Return a JSON Schema's type and limits in words."""
    if branches := schema.get("oneOf", schema.get("anyOf")):
        return " or ".join(in_words(branch) for branch in branches if branch.get("type") != "null")
    if words := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return ", ".join(f"`{word}`" for word in words)
    match schema["type"]:
        case "boolean":
            return "`true`, `false`"
        case "string":
            length = (schema.get("minLength"), schema.get("maxLength"))
            return "text" if length[1] is None else f"text, {length[0]} to {length[1]} characters"
        case "array":
            least = "; not empty" if schema.get("minItems") else ""
            most = f"; {schema['maxItems']} at most" if "maxItems" in schema else ""
            return f"a list, each {in_words(schema['items'])}{least}{most}"
        case "object" if "properties" in schema:
            return f"a table: {', '.join(f'`{name}`, {in_words(each)}' for name, each in schema['properties'].items())}"
        case "object":
            return "a table, parameter name to value"
        case kind:
            limits = {"minimum", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys()
            low = schema.get("minimum", schema.get("exclusiveMinimum"))
            number = {"integer": "a whole number", "number": "a number"}[kind]
            if schema.get("maximum", MAX_INT) < MAX_INT:
                return f"{number} from {low} to {schema['maximum']}"
            if limits == {"minimum"}:
                return f"{number}, {low} or more"
            if limits == {"exclusiveMinimum"}:
                return f"{number} above {low}"
            above = f"from {low}," if "minimum" in limits else f"above {low} and"
            return f"{number} {above} below {schema['exclusiveMaximum']}"
