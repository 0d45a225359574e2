"""Generate hpo/studyfile/study-file.schema.json, the JSON Schema of study files (draft 7, which TOML editors know).

Types, limits, words and defaults come from the models, and the descriptions from the tables of
docs/reference/study-file.md. `python docs/generate.py` rewrites the file. Every key that may be searched also accepts
a range or choices. The schema refuses unknown keys and wrong types; it does not know rules that concern several keys.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import study_file_tables

from hpo.studyfile.conditions import WHEN
from hpo.studyfile.keys import SEARCHABLE, SECTIONS, open_tables, unsearchable_keys
from hpo.studyfile.models import StudySettings
from hpo.studyfile.objective import ObjectiveSearchSettings, ObjectiveStudySettings
from hpo.studyfile.values import MAX_CHOICES, Settings

PAGE = Path(__file__).parent.parent / "hpo/studyfile/study-file.schema.json"

Schema = dict[str, Any]

NUMBERS = ("integer", "number")
STUDY, OBJECTIVE_STUDY, OBJECTIVE_SEARCH = "study", "objective_study", "objective_search"
ARGUMENT: Schema = {
    "anyOf": [
        {"type": "boolean"},
        {"type": "string"},
        {"type": "number"},
        {"type": "array", "items": {"$ref": "#/definitions/argument"}},
    ]
}
"""An argument of a user-defined network."""
HEADINGS = {model: heading for heading, model in study_file_tables.TABLES.items()}


def rewritten(shown: str) -> str:
    """Return the schema as the models and the page of keys have it, with one definition a line."""
    tree = schema(study_file_tables.PAGE.read_text())
    lines = [f"{json.dumps(name)}: {json.dumps(each)}" for name, each in tree.pop("definitions").items()]
    head = json.dumps(tree, indent=2).removesuffix("\n}")
    return f'{head},\n  "definitions": {{\n    ' + ",\n    ".join(lines) + "\n  }\n}\n"


def schema(page: str) -> Schema:
    """Return the schema; `page` has the meanings of the keys."""
    found = {"argument": ARGUMENT}
    for section, model in SECTIONS.items():
        found |= section_schemas(section, model, page)
    found |= table_schemas(OBJECTIVE_SEARCH, ObjectiveSearchSettings, page)
    found |= file_schemas(STUDY, StudySettings, page)
    found |= file_schemas(OBJECTIVE_STUDY, ObjectiveStudySettings, page, {"search": OBJECTIVE_SEARCH})
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Study file of hpo",
        "type": "object",
        "anyOf": [reference(STUDY), reference(OBJECTIVE_STUDY), True],  # for completion, which ignores if and then
        "if": {"required": ["objective"]},
        "then": reference(OBJECTIVE_STUDY),
        "else": reference(STUDY),
        "definitions": found,
    }


def file_schemas(name: str, model: type[Settings], page: str, renamed: dict[str, str] | None = None) -> Schema:
    """Return the definitions of a kind of study file and its keys outside tables."""
    tables = {key: reference((renamed or {}).get(key, key)) for key in model.model_fields if key in SECTIONS}
    found = table_schemas(name, model, page, tables)
    needed = [key for key in tables if any(field.is_required() for field in SECTIONS[key].model_fields.values())]
    found[name]["required"] = list(dict.fromkeys([*found[name]["required"], *needed]))
    return found


def section_schemas(section: str, model: type[Settings], page: str) -> Schema:
    """Return the definitions of a table and its keys, and of its conditional tables."""
    found = table_schemas(section, model, page)
    if section not in SEARCHABLE:
        return found
    table, required = found[section], found[section].pop("required")
    varied = [key for key in model.model_fields if (section, key) not in unsearchable_keys()]
    deciding = [key for key in varied if (section, key) not in open_tables()]
    conditional, keys = f"{section}.conditional", dict(table["properties"])
    choices = {"type": "object", "additionalProperties": reference(conditional)}
    table["properties"][WHEN] = {
        "description": f"conditional parameters: [{section}.{WHEN}.KEY.VALUE] has the settings of trials in which KEY, "
        "a key of this section searched with choices, has the value VALUE",
        **closed({key: choices for key in deciding}),
    }
    # A conditional table may have the required key, and a module needs no kind.
    elsewhere = [{"required": [key]} for key in (WHEN, "module") if key in table["properties"]]
    table |= {"if": {"not": {"anyOf": elsewhere}}, "then": {"required": required}}
    return found | {conditional: closed({key: keys[key] for key in varied})}


def table_schemas(name: str, model: type[Settings], page: str, tables: Schema | None = None) -> Schema:
    """Return the definitions of a table and its keys; `tables` are the schemas of the keys that have their own."""
    start, end = study_file_tables.table_position(page, HEADINGS[model])
    meanings, tables = study_file_tables.meanings_in(page[start:end]), tables or {}
    whole = model.model_json_schema()
    own = {key: key_schema(name, model, whole, key, meanings[key]) for key in model.model_fields if key not in tables}
    properties = {key: tables.get(key, reference(f"{name}.{key}")) for key in model.model_fields}
    required = [key for key, field in model.model_fields.items() if field.is_required()]
    return {
        name: {"description": as_text(model.__doc__ or ""), **closed(properties), "required": required},
        **{f"{name}.{key}": each for key, each in own.items()},
    }


def key_schema(section: str, model: type[Settings], whole: Schema, key: str, meaning: str) -> Schema:
    """Return the schema of one key, with its description and default; `whole` is pydantic's schema of the model."""
    field = model.model_fields[key]
    value = plain(whole["properties"][key], whole.get("$defs", {}))
    used_by = study_file_tables.used_by(field)
    described: Schema = {"description": as_text(meaning) + f" (used by {used_by})" * (used_by != "all")}
    if not field.is_required() and isinstance(field.default, bool | int | float | str | list):
        described["default"] = field.default
    if (section, key) in open_tables():
        value = {"type": "object", "additionalProperties": searched(ARGUMENT)}
    elif section in SEARCHABLE and (section, key) not in unsearchable_keys():
        value = searched(value)
    if "anyOf" in value:  # taplo shows descriptions of the branches only
        return {"anyOf": [described | value["anyOf"][0], *value["anyOf"][1:]]}
    return described | value


def plain(value: Schema, definitions: Schema) -> Schema:
    """Return pydantic's schema of a value without titles, defaults and null, which TOML does not have."""
    if "$ref" in value:
        value = definitions[value["$ref"].rpartition("/")[2]]
    if branches := value.get("oneOf", value.get("anyOf")):
        kept = [plain(each, definitions) for each in branches if each.get("type") != "null"]
        kept = [inner for each in kept for inner in each.get("anyOf", [each])]
        return kept[0] if len(kept) == 1 else {"anyOf": kept}
    rest = {name: each for name, each in value.items() if name not in ("title", "default", "description", "hint")}
    if "items" in rest:
        rest["items"] = plain(rest["items"], definitions)
    if "properties" in rest:
        rest["properties"] = {name: plain(each, definitions) for name, each in rest["properties"].items()}
    return rest


def searched(value: Schema) -> Schema:
    """Return the schema of a value that may be fixed or searched, and if it is a list, each of its elements."""
    fixed = [
        {**each, "items": value_or_table(ARGUMENT if "$ref" in each["items"] else each["items"])}
        if each.get("type") == "array"
        else each
        for each in branches_of(value)
    ]
    return {"anyOf": [*fixed, *tables_of(value)]}


def value_or_table(value: Schema) -> Schema:
    """Return the schema of an element of a list that may be fixed or searched."""
    return {"anyOf": [*branches_of(value), *tables_of(value)]}


def branches_of(value: Schema) -> list[Schema]:
    return value.get("anyOf", [value])


def tables_of(value: Schema) -> list[Schema]:
    """Return the schemas of the ranges and of the choices of a value."""
    ranges = [range_of(each) for each in branches_of(value) if each.get("type") in NUMBERS]
    choices = {"type": "array", "items": value, "minItems": 1, "maxItems": MAX_CHOICES}
    return [*ranges, {**closed({"choices": choices}), "required": ["choices"]}]


def range_of(number: Schema) -> Schema:
    """Return the schema of a range of numbers."""
    step = {"type": number["type"], "exclusiveMinimum": 0}
    keys = {"low": number, "high": number, "log": {"type": "boolean"}, "step": step}
    return {**closed(keys), "required": ["low", "high"]}


def closed(properties: Schema) -> Schema:
    """Return the schema of a table with these keys only."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def reference(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def as_text(markdown: str) -> str:
    """Return Markdown without links, which lead nowhere in an editor."""
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
