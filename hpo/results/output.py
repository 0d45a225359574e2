"""Base classes of command output: a tree for JSON, and lines of text.

A subclass of `Output` defines `tree` and `lines`; everything that prints or returns a result uses `str()`, `json_text`
and `to_json` of it. Every line of text is printable, whatever names the result contains. Nothing is computed here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from hpo.text import encode_non_finite, json_text, printable

Found = TypeVar("Found")


class Output(ABC):
    """Output of a command: `str()` is the text that it prints, `json_text` the JSON that it prints with `--json`."""

    indent: ClassVar[int | None] = None

    @abstractmethod
    def tree(self) -> dict[str, Any]:
        """Return all numbers, unrounded, as dictionaries and lists; numbers that are not finite as they are."""

    @abstractmethod
    def lines(self) -> list[str]:
        """Return the lines of text for people."""

    def to_json(self) -> dict[str, Any]:
        """Return every number as a tree of dictionaries and lists; None where there is none, "NaN" where it is NaN."""
        written: dict[str, Any] = encode_non_finite(self.tree())
        return written

    @property
    def json_text(self) -> str:
        """The tree as JSON text."""
        return json_text(self.tree(), self.indent)

    def __str__(self) -> str:
        return "\n".join(map(printable, self.lines()))


@dataclass(frozen=True)
class Result(Output, Generic[Found]):
    """Result of a command: `found` is the record; `str()` is its text, and `to_json()` its numbers."""

    found: Found
