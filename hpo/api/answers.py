"""Lines that a caller sees while a command runs, and warnings."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeAlias

from hpo.results.result import Output as Output
from hpo.text import printable

Say: TypeAlias = Callable[[str], None]
"""Called with a line of text that the caller should see while something runs."""


def warn(text: str) -> None:
    """Print a warning on stderr."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def on_stderr(text: str) -> None:
    """Print a line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)
