"""Tests of README and docs against the program: commands, options, study file keys, links, file names.

Everything that a page names must exist, and everything public must be on a page. `test_pages.py` runs the pages.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command_lists
import pytest
import study_file_tables
from pages import PAGES, ROOT, blocks
from typer.main import get_command

from hpo.cli import app
from hpo.data.known.catalogue import CATALOGUE
from hpo.data.known.folders import VARIABLE
from hpo.storage.location import DEFAULT_URL, STORAGE_VARIABLE
from hpo.studyfile import read_study

FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)
STUDIES = sorted(ROOT.glob("studies/*.toml"))


def spans() -> list[str]:
    """Return every piece of inline code."""
    return [span for text in PAGES.values() for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]


def commands(command: Any = None, path: tuple[str, ...] = ("hpo",)) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and group with its path of names."""
    command = command or get_command(app)
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


COMMANDS = dict(commands())
OPTIONS = {
    path: {name: option for option in command.params for name in option.opts if name.startswith("-")} | {"--help": None}
    for path, command in COMMANDS.items()
}


def shown_commands() -> list[str]:
    """Return every command line of the pages, inline or in a block."""
    lines = [line for page in PAGES for block in blocks(page) for line in block.body.splitlines()]
    lines = [re.sub(r"^(\$ |next:)? *(\.venv/bin/)?", "", line) for line in [*lines, *spans()]]
    return sorted({line for line in lines if line.startswith("hpo ")})


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_that_is_shown_exists(line: str) -> None:
    path, arguments = ("hpo",), 0
    words = iter(shlex.split(re.split(r" [>|] ", line)[0], comments=True)[1:])
    for word in words:
        if word.startswith("-"):
            assert word in OPTIONS[path], f"{' '.join(path)} has no option {word}"
            option = OPTIONS[path][word]
            if option is not None and not option.is_flag:
                next(words, None)
        elif hasattr(COMMANDS[path], "commands"):
            if word == "COMMAND":
                return
            path = (*path, word)
            assert path in COMMANDS
        else:
            arguments += 1
    taken = [parameter.nargs for parameter in COMMANDS[path].params if parameter.param_type_name == "argument"]
    assert -1 in taken or arguments <= len(taken)


def test_commands_are_shown() -> None:
    assert len(shown_commands()) > 10


@pytest.mark.parametrize("path", [path for path, command in COMMANDS.items() if not hasattr(command, "commands")])
def test_every_command_is_in_the_table_of_commands(path: tuple[str, ...]) -> None:
    assert re.search(rf"^\| `{' '.join(path)}[ `]", PAGES["README.md"], re.MULTILINE)


@pytest.mark.parametrize(
    ("path", "option"),
    [(path, option) for path, options in OPTIONS.items() for option in options if option != "--help"],
)
def test_every_option_is_documented(path: tuple[str, ...], option: str) -> None:
    assert any(re.search(rf"(?<![\w-]){option}(?![\w-])", span) for span in spans()), " ".join(path)


@pytest.mark.parametrize("span", sorted({span for span in spans() if span.startswith("-")}))
def test_an_option_that_is_shown_exists(span: str) -> None:
    word = span.split()[0]
    assert word in {name for options in OPTIONS.values() for name in options}
    if word == "--set" and span != "--set KEY=VALUE":
        read_study(ROOT / "studies/digits.toml", [span.removeprefix("--set ")])


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_a_shipped_study_is_valid_and_on_the_page_of_studies(path: Path) -> None:
    study = read_study(path)
    assert study.name == path.stem
    assert study.description
    assert f"(../../studies/{path.name})" in PAGES["docs/reference/studies.md"]


def test_every_key_of_a_study_file_is_documented_as_it_is() -> None:
    page = PAGES["docs/reference/study-file.md"]
    assert study_file_tables.rewritten(page) == page, "`python docs/generate.py` rewrites the tables"


def test_a_key_without_a_meaning_is_named() -> None:
    page = PAGES["docs/reference/study-file.md"]
    for key, heading in (("lr", r"## \[optimizer\]"), ("direction", r"### \[search\] of an objective study")):
        row = list(re.finditer(rf"^\| `{key}` .*\n", page, re.MULTILINE))[-1]
        with pytest.raises(SystemExit, match=rf"the meaning of {key} after {heading}"):
            study_file_tables.rewritten(page[: row.start()] + page[row.end() :])


def test_every_command_is_in_the_reference_as_its_help_is() -> None:
    page = PAGES["docs/reference/commands.md"]
    assert command_lists.rewritten(page) == page, "`python docs/generate.py` rewrites the commands"
    leaves = [" ".join(path) for path, command in COMMANDS.items() if not hasattr(command, "commands")]
    assert re.findall(r"^## `(.*)`$", page, re.MULTILINE) == leaves


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGES[page]):
        if not link.startswith(("http://", "https://")):
            assert ((ROOT / page).parent / link).exists(), link


@pytest.mark.parametrize(
    "name", sorted({span for span in spans() if re.fullmatch(r"(hpo|tests|docs|studies|benchmarks)/[\w./-]+", span)})
)
def test_a_file_that_is_named_exists(name: str) -> None:
    assert (ROOT / name).exists()


def test_pictures_are_small_and_shown() -> None:
    pictures = [path for path in ROOT.glob("docs/*") if path.suffix in (".png", ".svg")]
    assert all(path.stat().st_size < 300_000 for path in pictures)
    pages = "".join(PAGES.values())
    assert all(f"/{path.name})" in pages for path in pictures)


def test_data_sets_and_their_places_are_named() -> None:
    page = PAGES["docs/reference/data-sets.md"]
    assert {VARIABLE, STORAGE_VARIABLE, DEFAULT_URL} <= {word for span in spans() for word in span.split()}
    for dataset in CATALOGUE.values():
        assert f"| `{dataset.name}` |" in page
        assert all(f"`{folder}/`" in page for folder in dataset.folders if folder != ".")
        assert all(f"`{folder}`" in page for folder in dataset.system)


def test_what_is_stored_with_studies_and_trials_is_listed() -> None:
    sources = "\n".join(path.read_text() for path in ROOT.glob("hpo/**/*.py"))
    stored = set(re.findall(r'"(hpo:\w+)"', sources))
    assert len(stored) > 10
    assert set(re.findall(r"`(hpo:\w+)`", PAGES["docs/explanation/design.md"])) == stored
