"""The JSON Schema of study files: it is as the models are, and it accepts and refuses what the parser does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import study_file_schema
from hypothesis import given, settings
from hypothesis import strategies as st
from pages import PAGES, ROOT, blocks
from study_files import TINY
from test_studyfile_fuzz import keys, places, studies, trees

import hpo
from hpo.errors import StudyFileError
from hpo.starter.schema_file import COPY, DIRECTIVE
from hpo.studyfile import parse_any_study
from hpo.studyfile.keys import SECTIONS, sections
from hpo.studyfile.objective import ObjectiveStudySettings

SCHEMA = json.loads(hpo.study_schema())
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
STUDIES = sorted(ROOT.glob("studies/*.toml"))
SHOWN = [
    block.body for page in PAGES for block in blocks(page) if re.search(r"(?s)^name = .*^\[search\]", block.body, re.M)
]
TAPLO = shutil.which("taplo", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

WRONG = r"unknown |must be (a|an|true|text|auto|he|one of)\b"
"""Problems of the parser that the schema finds, too: unknown keys and words, and wrong types."""

CONDITIONAL = """
[network]
kind = { choices = ["mlp", "cnn"] }
hidden = [{ choices = [8, 16] }, 8]

[network.when.kind.cnn]
conv = { choices = [[6, 16], [16, 32]] }
kernel = { low = 3, high = 5, step = 2 }

[optimizer]
kind = { choices = ["sgd", "adam"] }

[optimizer.when.kind.sgd]
lr = 0.1

[optimizer.when.kind.adam]
lr = { low = 1e-5, high = 1e-2, log = true }
"""
OBJECTIVE = 'name = "own"\nobjective = "my.py:f"\n[search]\ntrials = 3\ndirection = ["minimize", "maximize"]\n'


def tree(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def is_read(study: Any) -> str:
    """Return the parser's problem with a study, "" for none."""
    try:
        parse_any_study(study, "s.toml")
    except StudyFileError as error:
        return error.problem
    return ""


def test_the_file_in_the_package_is_as_the_models_are() -> None:
    shown = study_file_schema.PAGE.read_text()
    assert study_file_schema.rewritten(shown) == shown, "`python docs/generate.py` rewrites the schema"
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    for section, model in sections(ObjectiveStudySettings).items() | SECTIONS.items():
        name = "objective_search" if model is ObjectiveStudySettings.model_fields["search"].annotation else section
        for key in model.model_fields:
            found = SCHEMA["definitions"][f"{name}.{key}"]
            assert found.get("anyOf", [found])[0]["description"]


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_shipped_study_is_valid(path: Path) -> None:
    text = path.read_text()
    VALIDATOR.validate(tree(text))
    named = text.partition("\n")[0].removeprefix("#:schema ")
    assert (path.parent / named).samefile(study_file_schema.PAGE)


def test_the_studies_of_the_docs_are_valid() -> None:
    assert len(SHOWN) > 10
    for text in SHOWN:
        VALIDATOR.validate(tree(text))


@settings(max_examples=30)
@given(study=studies())
def test_a_study_that_the_parser_reads_is_valid(study: dict[str, Any]) -> None:
    VALIDATOR.validate(study)


@settings(max_examples=60)
@given(study=studies(), data=st.data())
def test_one_change_is_refused_as_the_parser_refuses_it(study: dict[str, Any], data: st.DataObject) -> None:
    *top, key = data.draw(st.sampled_from([place for place in places(study) if place]))
    node: Any = study
    for step in top:
        node = node[step]
    if isinstance(node, dict) and data.draw(st.booleans()):
        node[data.draw(keys)] = data.draw(trees)
    else:
        node[key] = data.draw(trees)
    problem = is_read(study)
    if not problem and "None" not in repr(study):  # TOML has no null
        VALIDATOR.validate(study)
    got = re.search(r"whole number.* \(got (-?[0-9.e+]+)\)$", problem)
    is_whole = got is not None and float(got[1]).is_integer()  # to JSON Schema, 1.0 is an integer
    is_huge = "(got 0x" in problem  # an integer beyond all floats, which is in no TOML file; to JSON Schema a number
    if re.match(WRONG, problem) and not (is_whole or is_huge):
        assert not VALIDATOR.is_valid(study), problem


@pytest.mark.parametrize("section", SECTIONS)
def test_an_unknown_key_and_a_wrong_type_are_refused_in_every_table(section: str) -> None:
    whole = tree(TINY)
    for change in [{"zzz": 1}, *({key: {"zzz": 1}} for key in SECTIONS[section].model_fields if key != "args")]:
        changed = whole | {section: whole.get(section, {}) | change}
        assert is_read(changed)
        assert not VALIDATOR.is_valid(changed), change


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("", True),
        ("[network.when.kind.mlp]\ndropout = 0.1", True),
        ('[network.when.kind.mlp]\nkeep = "best"', False),
        ("[network.when.zzz.mlp]\ndropout = 0.1", False),
        ("[training.when.keep.best]\nbatch_size = 3", False),
        ("[task]\nkind = { choices = ['regression'] }", False),
        ("[preprocess]\nstandardize = 1", False),
        ("[baseline]\n'optimizer.kind' = 'adam'", True),
        ('[data]\ndataset = "table:x.txt"', False),
        ('[data]\ndataset = "mnits"', False),
        ('[data]\ndataset = "my_data.py:load"', True),
    ],
)
def test_tables_of_a_network_study(text: str, valid: bool) -> None:
    study = tree(TINY) | tree(CONDITIONAL)
    for key, table in tree(text).items():
        when = study.get(key, {}).get("when", {})
        study[key] = study.get(key, {}) | table
        if "when" in table:
            study[key]["when"] = when | table["when"]
    assert (not is_read(study)) == valid
    assert VALIDATOR.is_valid(study) == valid


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("", True),
        ('sampler = "nsga2"', True),
        ('score = "best"', False),
        ('sampler = "grid"', False),
        ("[data]", False),
    ],
)
def test_keys_of_an_objective_study(text: str, valid: bool) -> None:
    study = tree(OBJECTIVE + text)
    assert (not is_read(study)) == valid
    assert VALIDATOR.is_valid(study) == valid


def test_arguments_of_a_user_defined_network() -> None:
    study = tree(TINY) | {"network": {"module": "net.py:Net", "args": {}}}
    for value, valid in [
        (3, True),
        ([[1, 2], ["a"]], True),
        ({"low": 1, "high": 3}, True),
        ([{"low": 0.1, "high": 0.3}, 0.5], True),
        ({"choices": [[8], [8, 8]]}, True),
        ({"low": 1}, False),
        ({"low": 1, "high": 3, "zzz": 1}, False),
    ]:
        study["network"]["args"] = {"width": value}
        assert (not is_read(study)) == valid, value
        assert VALIDATOR.is_valid(study) == valid, value


@pytest.mark.skipif(TAPLO is None, reason="taplo is not installed")
@pytest.mark.parametrize(
    ("change", "found"),
    [
        (("", ""), ""),
        (("lr =", "lrr ="), "'lrr' was unexpected"),
        (("epochs = 2", 'epochs = "2"'), '"2" is not valid'),
        (("[data]", 'objective = "f.py:f"\n[data]'), "'data', 'network', 'optimizer', 'training' were unexpected"),
    ],
)
def test_a_toml_language_server_checks_a_study_beside_the_schema(
    tmp_path: Path, change: tuple[str, str], found: str
) -> None:
    (tmp_path / COPY).write_text(hpo.study_schema())
    (tmp_path / "tiny.toml").write_text(f"{DIRECTIVE}\n{TINY.replace(*change, 1)}")
    command = [str(TAPLO), "lint", "--no-auto-config", "tiny.toml"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == bool(found)
    assert found in ended.stderr
