"""Settings of Sphinx: `make docs` builds a site from README.md, CHANGELOG.md and the pages of this folder.

The links between pages work in the repository too, so the source folder is the root of the repository.
"""

from __future__ import annotations

import logging

import hpo

logging.getLogger("alembic").setLevel(logging.WARNING)  # logs its plugins when autodoc imports it

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
