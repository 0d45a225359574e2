"""Shape of the repository: the annotated tree in docs/reference/source-tree.md, and rules for every module.

What importing the command line loads is tested in tests/e2e/test_help.py, the order of imports by `make lint`.
"""

from __future__ import annotations

import ast
import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/source-tree.md"
IGNORED = [".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())]
UNLISTED = {"__init__.py", "py.typed"}  # the line of their folder speaks for them
MODULES = sorted(path for path in ROOT.glob("hpo/**/*.py"))
LONGEST_MODULE = 600  # lines


def annotated_tree() -> dict[Path, str]:
    """Return every file and folder of the tree with its note."""
    block = re.search(r"^```\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert block is not None
    entries: dict[Path, str] = {}
    folders: list[Path] = [Path()]
    for line in block[1].splitlines():
        name, _, note = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path = folders[depth] / name
        entries[path] = note.strip()
        if name.endswith("/"):
            folders[depth + 1 :] = [path]
    return entries


TREE = annotated_tree()
OPEN = sorted({path.parent for path in TREE})


@pytest.mark.parametrize("folder", OPEN, ids=str)
def test_the_tree_lists_every_file(folder: Path) -> None:
    """A folder with anything listed under it is listed whole, but for hidden files, which editors leave too."""
    there = {
        path.relative_to(ROOT)
        for path in (ROOT / folder).iterdir()
        if path.name not in UNLISTED and not any(fnmatch.fnmatch(path.name, pattern.strip("/")) for pattern in IGNORED)
    }
    listed = {path for path in TREE if path.parent == folder}
    assert listed <= there
    assert all(path.name.startswith(".") for path in there - listed)


def test_the_tree_lists_every_module_with_a_note() -> None:
    listed = {path for path in TREE if path.suffix == ".py"}
    assert {path.relative_to(ROOT) for path in MODULES if path.name != "__init__.py"} <= listed
    assert all(TREE[path] for path in listed)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_is_not_too_long(path: Path) -> None:
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":"))
    assert len(text.splitlines()) <= LONGEST_MODULE
