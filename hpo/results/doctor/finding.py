"""Finding of a check of `hpo doctor`, as one line of text or of JSON."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hpo.errors import HpoError
from hpo.results.output import Output
from hpo.text import json_line

WIDTH = 18  # of the longest name of a check


class Verdict(StrEnum):
    """Result of a check."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding(Output):
    """Name of the check, its verdict, what was found, and the advice what to do; "" where nothing is to do."""

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def tree(self) -> dict[str, Any]:
        """Return the finding as a dictionary; `advice` is None where nothing is to do."""
        return {"check": self.check, "verdict": self.verdict, "found": self.found, "advice": self.advice or None}

    def lines(self) -> list[str]:
        """Return the finding as one line, in columns."""
        return [f"{self.check:{WIDTH}}  {self.verdict:7}  {self.found}{'; ' if self.advice else ''}{self.advice}"]

    @property
    def json_text(self) -> str:
        """The finding as one line of JSON, in ASCII."""
        return json_line(self.tree())


def ok(check: str, found: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str = "") -> Finding:
    """Return a finding that may cost time but no results."""
    return Finding(check, Verdict.WARNING, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """Return a finding that must be fixed."""
    return Finding(check, Verdict.PROBLEM, found, advice)


def failed(check: str, error: HpoError | OSError) -> Finding:
    """Return the finding of a check that raised an error; an error text has its advice after a semicolon."""
    found, _, advice = str(error).partition("; ")
    return problem(check, found, advice)
