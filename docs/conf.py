"""How Sphinx makes README.md, CHANGELOG.md and the pages of this folder into a site: `make docs`.

The pages are Markdown that reads well without it, too, and their links are those of the repository: so its root is the
source. The reference of the commands comes in here (`reference.py`).
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from sphinx.application import Sphinx

import hpo

sys.path.insert(0, str(Path(__file__).parent))
import reference  # it lies beside this file, which Sphinx reads from elsewhere

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its own plugins when autodoc imports it

project = "hpo"
author = "the authors of hpo"
release = version = hpo.__version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]
autodoc_member_order = "groupwise"
default_role = "code"  # in docstrings, as in Markdown
html_theme = "furo"
html_title = "hpo"
html_show_copyright = False
html_copy_source = False
highlight_language = "text"
myst_heading_anchors = 3
COMMANDS_PAGE = "docs/commands"


def add_commands(sphinx: Sphinx, page: str, source: list[str]) -> None:
    if page == COMMANDS_PAGE:
        source[0] += f"\n{reference.commands()}"


def setup(sphinx: Sphinx) -> None:
    sphinx.connect("source-read", add_commands)
