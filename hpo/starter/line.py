"""One line of a starter study file: a key with its value and a comment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpo.studyfile.writing import value_text
from hpo.text import printable

WIDTH = 118
"""Maximum length of a line; a longer comment has its own line, above the key."""


@dataclass(frozen=True)
class Line:
    """A key with its value, and the comment behind it; without a key, a comment alone."""

    key: str
    value: Any = None
    comment: str = ""

    def __str__(self) -> str:
        text = f"{self.key} = {value_text(self.value)}" if self.key else ""
        comment = f"# {printable(self.comment)}" if self.comment else ""
        separator = "  " if len(text) + len(comment) <= WIDTH else "\n"
        return separator.join(part for part in ((text, comment) if separator == "  " else (comment, text)) if part)
