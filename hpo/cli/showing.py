"""How `hpo status` shows what it has found: once or again and again, as tables or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpo import stdout
from hpo.cli.app import show

if TYPE_CHECKING:
    from hpo import Status


@contextmanager
def shown(as_json: bool, once: bool = False) -> Iterator[Callable[[Status], None]]:
    """Give what shows a status on stdout: on a terminal in the place of the one before, unless it is shown `once`."""
    console = Console(file=stdout.stream())
    if as_json or once or not console.is_terminal:
        yield lambda status: show(status, as_json)
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda status: live.update(Text(status.text(console.height), no_wrap=True), refresh=True)
    stdout.stream().flush()
