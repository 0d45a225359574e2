"""Progress displays, by name or as a function; and lines on stderr.

"auto"      in a notebook's cell or on a terminal two live lines, elsewhere a line a population
"quiet"     warnings only
"json"      events on stdout, one JSON object a line
a function  is called with each event (`hpo.events`); nothing is printed
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from hpo.errors import UsageError
from hpo.text import printable

if TYPE_CHECKING:
    from hpo.results.display.progress import QuietProgress
    from hpo.search.events import Event

Progress: TypeAlias = "Literal['auto', 'quiet', 'json'] | Callable[[Event], None]"
"""A display: its name, or a function of the caller."""

PrintLine: TypeAlias = Callable[[str], None]
"""A function that gets a line of text for the user while something runs."""


def display(progress: Progress, stop: threading.Event) -> QuietProgress:
    """Return the display; it sets `stop` when the reader of its output closes the pipe."""
    from rich.console import Console

    from hpo.results.display.progress import CallingProgress, JsonProgress, QuietProgress, progress_on

    if callable(progress):
        return CallingProgress(Console(stderr=True), progress)
    if progress == "json":
        return JsonProgress(Console(stderr=True), None, stop)
    if progress == "quiet":
        return QuietProgress(Console(stderr=True))
    if progress != "auto":
        raise UsageError(f"progress: must be auto, quiet, json or a function (got {progress!r})")
    if in_notebook():
        from hpo.results.display.notebook import NotebookProgress

        return NotebookProgress()
    return progress_on(Console(stderr=True))


def in_notebook() -> bool:
    """Return whether this process is a notebook's kernel: IPython with a front end that shows its output."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


def print_warning(text: str) -> None:
    """Print a warning on stderr."""
    print_to_stderr(f"warning: {text}")


def print_to_stderr(text: str) -> None:
    """Print a line on stderr."""
    print(printable(text), file=sys.stderr, flush=True)
