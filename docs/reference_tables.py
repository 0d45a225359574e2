"""Generate the tables of docs/reference/study-file.md and the option lists of docs/reference/commands.md.

`python docs/reference_tables.py` rewrites the tables of study file keys: key, value and default come from the models;
the last column (the meaning) is written by hand and stays as it is. `conf.py` adds the command lists when the site is
built.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click
from typer.main import get_command

from hpo.cli import app
from hpo.studyfile.keys import SECTIONS, sections
from hpo.studyfile.models import Settings, StudySettings
from hpo.studyfile.objective import ObjectiveSearchSettings, ObjectiveStudySettings
from hpo.studyfile.values import LARGEST, UsedBy

PAGE = Path(__file__).parent / "reference/study-file.md"
WHOLE: tuple[type[Settings], ...] = (StudySettings, ObjectiveStudySettings)

TABLES: dict[str, type[Settings]] = {
    "## Top level": StudySettings,
    **{f"## [{section}]": model for section, model in SECTIONS.items()},
    "## A study of your own objective": ObjectiveStudySettings,
    "### [search] of your own objective": ObjectiveSearchSettings,
}
"""Heading of the page -> model whose keys the first table after it lists."""

TABLE = re.compile(r"^\| key \|.*\n(?:\|.*\n)+", re.MULTILINE)


def with_tables(page: str) -> str:
    """Return the page with its tables rewritten from the models. Exit where a key has no meaning."""
    for heading, model in TABLES.items():
        before, found, rest = page.partition(f"{heading}\n")
        if not found:
            sys.exit(f"{PAGE}: has no heading {heading}")
        shown = TABLE.search(rest)
        if shown is None:
            sys.exit(f"{PAGE}: has no table of keys after {heading}")
        page = before + found + rest[: shown.start()] + table(heading, model, shown[0]) + rest[shown.end() :]
    return page


def table(heading: str, model: type[Settings], shown: str) -> str:
    """Return a model's table; take the meanings from `shown`, the present table. Sections have their own tables."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()]
    meanings = {row[0].strip("`"): row[-1] for row in rows}
    keys = [key for key in model.model_fields if key not in (sections(model) if model in WHOLE else ())]
    without = [key for key in keys if not meanings.get(key)]
    if without:
        sys.exit(f"{PAGE}: write a row with the meaning of {', '.join(without)} after {heading}")
    uses = [used_by(model.model_fields[key]) for key in keys]
    cells = [["key", "value", "default", "used by", "what it means"], ["---"] * 5]
    for key, use in zip(keys, uses, strict=True):
        cells.append([f"`{key}`", *value_and_default(model, key), use, meanings[key]])
    if set(uses) == {"all"}:
        cells = [[*row[:3], row[4]] for row in cells]
    return "".join(f"| {' | '.join(row)} |\n" if row[0] != "---" else f"|{'|'.join(row)}|\n" for row in cells)


def value_and_default(model: type[Settings], key: str) -> tuple[str, str]:
    whole = model.model_json_schema()
    schema = whole["properties"][key]
    if "$ref" in schema:  # a table of its own
        schema = whole["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return in_words(schema), default_of(model.model_fields[key])


def used_by(field: FieldInfo) -> str:
    return next((in_words_of(mark) for mark in field.metadata if isinstance(mark, UsedBy)), "all")


def in_words_of(mark: UsedBy) -> str:
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
            return "text" if length == (None, None) else f"text, {length[0]} to {length[1]} characters"
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
            if schema.get("maximum", LARGEST) < LARGEST:
                return f"{number} from {low} to {schema['maximum']}"
            if limits == {"minimum"}:
                return f"{number}, {low} or more"
            if limits == {"exclusiveMinimum"}:
                return f"{number} above {low}"
            above = f"from {low}," if "minimum" in limits else f"above {low} and"
            return f"{number} {above} below {schema['exclusiveMaximum']}"


def commands() -> str:
    """Return usage, arguments and options of every command, from its help."""
    root = get_command(app)
    context = typer.Context(root, info_name="hpo")
    return "\n".join(
        get_docs_for_click(obj=command, ctx=context, indent=1, name=path) for path, command in leaves(root, "hpo")
    )


def leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every command (not groups) with its full name, in the order of `hpo --help`."""
    inner = getattr(command, "commands", {})
    for name, each in inner.items():
        yield from leaves(each, f"{path} {name}")
    if not inner:
        yield path, command


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
