"""What a command has found: a record, and how it reads as text and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from hpo.text import printable, printable_lines

Found = TypeVar("Found")

Say: TypeAlias = Callable[[str], None]
"""Called with a line of text that the caller should see while something runs."""


@dataclass(frozen=True)
class Result(Generic[Found]):
    """What was found, as a record; `str()` is what the command prints, `to_json()` what it prints with `--json`."""

    found: Found
    text: str
    json_text: str

    def __str__(self) -> str:
        return printable_lines(self.text)

    def to_json(self) -> dict[str, Any]:
        """Return every number as a tree of dictionaries and lists; None where there is none, "NaN" where it is NaN."""
        tree: dict[str, Any] = json.loads(self.json_text)
        return tree


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def on_stderr(text: str) -> None:
    """Print a line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)
