"""What a check of `hpo doctor` finds: a record, as a line of text or of JSON.

Whatever it quotes, a finding is one line. Knows nothing of what is checked.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hpo.errors import HpoError
from hpo.results.result import Output
from hpo.storage import mask
from hpo.text import json_line

WIDTH = 18  # of the longest check's name


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding(Output):
    """What was checked, how it is, what was found, and what to do about it, "" where nothing is to be done."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def tree(self) -> dict[str, Any]:
        """Return the finding as a dictionary; `advice` is None where nothing is to be done."""
        return {"check": self.check, "verdict": self.verdict, "found": self.found, "advice": self.advice or None}

    def lines(self) -> list[str]:
        """Return the finding as one line, in columns."""
        return [f"{self.check:{WIDTH}}  {self.verdict:7}  {self.found}{'; ' if self.advice else ''}{self.advice}"]

    @property
    def json_text(self) -> str:
        """The finding as one line of JSON, in ASCII."""
        return json_line(self.tree())


def ok(check: str, found: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str = "") -> Finding:
    """Return a finding that may cost time, and loses nothing."""
    return Finding(check, Verdict.WARNING, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Return a finding that is to be put right."""
    return Finding(check, Verdict.PROBLEM, found, advice)


def failed(check: str, error: HpoError | OSError) -> Finding:
    """Return the finding that a check could not be made; errors say after a semicolon what to do."""
    found, _, advice = str(error).partition("; ")
    return problem(check, found, advice)


def option(url: str | None) -> str:
    """Return the option that names the storage in a command, passwords masked; "" for the usual storage."""
    return f" --storage {shlex.quote(mask(url))}" if url else ""
