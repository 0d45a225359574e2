"""Fenced blocks of README and docs in order, and the test markers between them.

A marker is a hidden comment. It states what a test does differently from a reader:

    <!-- test: not run, REASON -->            do not run the next block
    <!-- test: not run from here, REASON -->  do not run any block that follows
    <!-- test: first COMMAND -->              run this command here, hidden from the reader
    <!-- test: small KEY=VALUE... -->         pass these values with --set to every launch and submit that follows
    <!-- test: numbers vary -->               compare the next session's output without numbers and spacing
    <!-- test: output varies -->              do not compare the next session's output
    <!-- test: as processes -->               run all following commands as processes, in an empty folder

A block whose first line is a comment with only a file name, such as `# my_net.py`, is the content of that file. This
module reads the pages; `test_pages.py` runs them.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
}
TOKEN = re.compile(
    r"^<!-- test: (?P<marker>.*?) -->$|^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<body>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
FILE_NAME = re.compile(r"# ([\w-]+\.\w+)")


@dataclass(frozen=True)
class Marker:
    """A test marker: its line and text."""

    line: int
    text: str


@dataclass(frozen=True)
class Block:
    """A fenced block; its language is "" where the block is not run."""

    line: int
    language: str
    body: str

    @property
    def file(self) -> str | None:
        """Name of the file whose content the block is, or None."""
        found = FILE_NAME.fullmatch(self.body.partition("\n")[0])
        return found and found[1]


def parts(text: str) -> Iterator[Marker | Block]:
    """Yield the markers and blocks of a page in order."""
    for found in TOKEN.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["marker"] is not None:
            yield Marker(line, " ".join(found["marker"].split()))
        else:
            yield Block(line, found["language"].strip(), textwrap.dedent(found["body"]))


def blocks(page: str) -> list[Block]:
    return [part for part in parts(PAGES[page]) if isinstance(part, Block)]


def sessions(body: str) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block, each with its output."""
    for session in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, output = session.partition("\n")
        while command.endswith("\\"):
            further, _, output = output.partition("\n")
            command = command.removesuffix("\\") + further.removeprefix("> ")
        yield command, output


def commands(body: str) -> list[str]:
    """Return the commands of a shell block, without blank lines and comments."""
    lines = re.sub(r" *\\\n *", " ", body).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
