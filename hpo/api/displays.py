"""What shows the progress of a search: by name, or whatever the caller has for it.

"auto"      what suits the place: two live lines in a notebook's cell or on a terminal, else a line a population
"quiet"     warnings only
"json"      events on stdout, one JSON object a line
a function  is called with each event (`hpo.events`), and nothing is shown
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from hpo.errors import UsageError

if TYPE_CHECKING:
    from hpo.results.display.progress import QuietProgress
    from hpo.search.events import Event

Progress: TypeAlias = "Literal['auto', 'quiet', 'json'] | Callable[[Event], None]"
"""How progress is shown: see the module."""


def display(progress: Progress, stop: threading.Event) -> QuietProgress:
    """Return the display that was asked for; `stop` is set by one whose reader has gone."""
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
    """Whether this is a notebook's kernel: IPython with a front end that shows what it is sent."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None
