"""How Sphinx makes README.md, CHANGELOG.md and the pages of this folder into a site: `make docs`.

The pages are Markdown that reads well without it, too, and their links are those of the repository: so its root is the
source. What is written by a program comes in here: the reference of the commands, made from the command line itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click
from typer.main import get_command

import hpo
from hpo.cli import app

project = "hpo"
author = "the authors of hpo"
release = version = hpo.__version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**"]
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "hpo"
html_show_copyright = False
html_copy_source = False
highlight_language = "text"
myst_heading_anchors = 3
COMMANDS_PAGE = "docs/commands"


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words, in the order of `hpo --help`."""
    inner = getattr(command, "commands", {})
    for name, each in inner.items():
        yield from commands(each, f"{path} {name}")
    if not inner:
        yield path, command


def command_reference() -> str:
    """Usage, arguments and options of every command, as its `--help` has them."""
    root = get_command(app)
    context = typer.Context(root, info_name="hpo")
    return "\n".join(
        get_docs_for_click(obj=command, ctx=context, indent=1, name=path) for path, command in commands(root, "hpo")
    )


def add_command_reference(sphinx: Sphinx, page: str, source: list[str]) -> None:
    if page == COMMANDS_PAGE:
        source[0] += f"\n{command_reference()}"


def setup(sphinx: Sphinx) -> None:
    sphinx.connect("source-read", add_command_reference)
