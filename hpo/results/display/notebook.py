"""Progress display for notebooks: the two live lines of a terminal, updated in place in the cell's output.

The lines are sent as text and as HTML through IPython's display protocol, which every front end supports: no widgets
are needed, and the saved notebook contains the last state. Notes are printed below.
"""

from __future__ import annotations

import html
import io
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from IPython.display import display
from rich.console import Console

from hpo.results.display.progress import LiveProgress
from hpo.search.events import Event

WIDTH = 100
"""Columns of the live lines."""

REFRESH_S = 0.25


class NotebookProgress(LiveProgress):
    """Live lines in the output of a notebook cell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(Console(file=sys.stdout, width=WIDTH, color_system=None, force_jupyter=False), clock)
        self._handle: Any = None
        self._sent_at = 0.0  # time of the last update, by the monotonic clock

    def __enter__(self) -> Self:
        self._handle = display(self._rendered(), raw=True, display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.update(self._rendered(), raw=True)

    def show(self, event: Event) -> None:
        """Update the lines, at most every `REFRESH_S` seconds."""
        super().show(event)
        if self._handle is not None and time.monotonic() - self._sent_at >= REFRESH_S:
            self._sent_at = time.monotonic()
            self._handle.update(self._rendered(), raw=True)

    def _rendered(self) -> dict[str, str]:
        """Return the lines as text and as HTML; the front end chooses one."""
        console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
        with console.capture() as captured:
            console.print(self.bars.get_renderable())
        text = captured.get().rstrip("\n")
        return {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
