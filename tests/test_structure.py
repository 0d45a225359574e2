"""Structure of the repository: the annotated tree in docs/reference/source-tree.md, and rules for every module.

Other tests check what `import hpo.cli` loads (tests/e2e/test_help.py); `make lint` checks the order of imports.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import source_tree

ROOT = Path(__file__).parent.parent
MODULES = sorted(path for path in ROOT.glob("hpo/**/*.py"))
LONGEST_MODULE = 500  # lines


def test_the_tree_lists_every_file_with_its_note() -> None:
    page = source_tree.PAGE.read_text()
    assert source_tree.rewritten(page) == page, "`python docs/generate.py` rewrites the tree"


def test_a_file_without_a_note_is_named() -> None:
    page = source_tree.PAGE.read_text()
    without = page.replace("MIT license", "")
    with pytest.raises(SystemExit, match=r"write a note for LICENSE$"):
        source_tree.rewritten(without)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_a_docstring_and_is_not_too_long(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
    assert len(text.splitlines()) <= LONGEST_MODULE
