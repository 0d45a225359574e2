"""Generate the annotated tree of docs/reference/source-tree.md.

A Python file's note is the first line of its docstring, a package's note that of its `__init__.py`, a study's note its
description, a page's note its heading. The notes of other files are written by hand in the page and stay as they are.
Hidden files are listed only where the page lists them. `python docs/generate.py` rewrites the page.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/source-tree.md"
IGNORED = [".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())]
UNLISTED = ("__init__.py", "py.typed", "__pycache__")
CLOSED = (ROOT / "docs/explanation/experiments", *(path for path in ROOT.glob("tests/*") if path.is_dir()))
"""Folders that the tree names without their content."""
ROOMS = (
    "cli",
    "api",
    "service",
    "tracking",
    "starter",
    "results",
    "search",
    "storage",
    "training",
    "data",
    "studyfile",
)
"""Packages of hpo/ in the order of their imports, from top to bottom."""
FOLDERS = (".ci", "docker", "hpo", "studies", "benchmarks", "demos", "tests", "docs")
"""Folders of the repository in the order of the tree."""
BLOCK = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COLUMN = 32
"""Column at which the notes start."""


def entries(page: str) -> dict[Path, str]:
    """Return the path and the note of every line of the page's tree."""
    block = BLOCK.search(page)
    if block is None:
        sys.exit(f"{PAGE}: has no block with a tree")
    found: dict[Path, str] = {}
    folders = [ROOT]
    for line in block[1].splitlines():
        name, _, note = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path = folders[depth] / name
        found[path] = note.strip()
        if name.endswith("/"):
            folders[depth + 1 :] = [path]
    return found


def rewritten(page: str) -> str:
    """Return the page with its tree rewritten. Exit where a file has no note."""
    known = entries(page)
    without = [path for path in files(ROOT, known) if not note(path, known)]
    if without:
        sys.exit(f"{PAGE}: write a note for {', '.join(str(path.relative_to(ROOT)) for path in without)}")
    lines = []
    for path in files(ROOT, known):
        depth = len(path.relative_to(ROOT).parts) - 1
        name = "  " * depth + path.name + "/" * path.is_dir()
        lines.append(f"{name:{COLUMN - 1}} {note(path, known)}\n")
    return BLOCK.sub(lambda _: f"```\n{''.join(lines)}```", page, count=1)


def files(folder: Path, known: dict[Path, str]) -> Iterator[Path]:
    """Yield the files and folders below a folder, in the order of the tree."""
    for path in sorted(folder.iterdir(), key=order):
        ignored = path.name in UNLISTED or any(fnmatch.fnmatch(path.name, pattern) for pattern in IGNORED)
        if ignored or (path.name.startswith(".") and path not in known):
            continue
        yield path
        if path.is_dir() and path not in CLOSED:
            yield from files(path, known)


def order(path: Path) -> tuple[bool, int, str]:
    """Return the sort key of a path among those of its folder: files first, then folders."""
    named = ROOMS if path.parent == ROOT / "hpo" else FOLDERS if path.parent == ROOT else ()
    return path.is_dir(), named.index(path.name) if path.name in named else len(named), path.name


def note(path: Path, known: dict[Path, str]) -> str:
    """Return the note of a file or folder, or "" where it has none."""
    module = path / "__init__.py" if path.is_dir() else path
    if module.suffix == ".py" and module.exists():
        docstring = ast.get_docstring(ast.parse(module.read_text())) or ""
        return docstring.partition("\n")[0].rstrip(".:")
    if path.suffix == ".toml" and path.parent in (ROOT / "studies", ROOT / "benchmarks", ROOT / "benchmarks/tables"):
        return str(tomllib.loads(path.read_text())["description"]).rstrip(".")
    if path.suffix == ".md" and path.parent.parent == ROOT / "docs":
        return path.read_text().partition("\n")[0].removeprefix("# ")
    return known.get(path, "")
