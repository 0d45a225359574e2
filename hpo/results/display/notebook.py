"""What a launch shows in a notebook: the two live lines of a terminal, in one place of the cell's output.

The lines are sent to the front end as text and as HTML, through IPython's display protocol, which every front end has:
no widgets are needed, and what is stored with the notebook is the last state. Notes are printed below.
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
    """Live lines in a notebook's cell."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(Console(file=sys.stdout, width=WIDTH, color_system=None, force_jupyter=False), clock)
        self._handle: Any = None
        self._shown = 0.0  # when the lines were last sent, by the monotonic clock

    def __enter__(self) -> Self:
        self._handle = display(self._picture(), raw=True, display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.update(self._picture(), raw=True)

    def show(self, event: Event) -> None:
        """Show what the event changes, though no more often than an eye can follow."""
        super().show(event)
        if self._handle is not None and time.monotonic() - self._shown >= REFRESH_S:
            self._shown = time.monotonic()
            self._handle.update(self._picture(), raw=True)

    def _picture(self) -> dict[str, str]:
        """Return the lines in the forms that a front end may choose from."""
        paper = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_jupyter=False)
        with paper.capture() as captured:
            paper.print(self.bars.get_renderable())
        text = captured.get().rstrip("\n")
        return {"text/plain": text, "text/html": f"<pre>{html.escape(text)}</pre>"}
