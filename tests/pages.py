"""README and docs as a reader goes through them: fenced blocks in order, and the markers between them.

A marker is a comment that the rendered page does not show, and it says what a test does otherwise than a reader:

    <!-- test: not run, REASON -->            the next block
    <!-- test: not run from here, REASON -->  every block that follows
    <!-- test: first COMMAND -->              is run here, though the page does not show it
    <!-- test: small KEY=VALUE... -->         what every launch and submit that follows gets by --set
    <!-- test: numbers vary -->               the next session's output is compared without its numbers and spacing
    <!-- test: output varies -->              the next session's output is not compared
    <!-- test: as processes -->               all that follows: commands as processes, in an empty folder

A block whose first line is a comment with a file's name and nothing else, such as `# my_net.py`, is that file. This
module reads pages and runs nothing; `test_pages.py` does.
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
    """What a comment tells the tests."""

    line: int
    text: str


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, or "" for what is only to be looked at."""

    line: int
    language: str
    body: str

    @property
    def file(self) -> str | None:
        """The name of the file that this is."""
        found = FILE_NAME.fullmatch(self.body.partition("\n")[0])
        return found and found[1]


def parts(text: str) -> Iterator[Marker | Block]:
    """The markers and blocks of a page's text in order."""
    for found in TOKEN.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        if found["marker"] is not None:
            yield Marker(line, " ".join(found["marker"].split()))
        else:
            yield Block(line, found["language"].strip(), textwrap.dedent(found["body"]))


def blocks(page: str) -> list[Block]:
    return [part for part in parts(PAGES[page]) if isinstance(part, Block)]


def sessions(body: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that it shows."""
    for session in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
        command, _, output = session.partition("\n")
        while command.endswith("\\"):
            further, _, output = output.partition("\n")
            command = command.removesuffix("\\") + further.removeprefix("> ")
        yield command, output


def commands(body: str) -> list[str]:
    """The commands of a shell block, one a line, without blank lines and comments."""
    lines = re.sub(r" *\\\n *", " ", body).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
