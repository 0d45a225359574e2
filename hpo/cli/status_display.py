"""Display of `hpo status`: once or continuously, as tables or as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hpo import stdout
from hpo.cli.app import print_result

if TYPE_CHECKING:
    from hpo import Status


@contextmanager
def status_display(as_json: bool, once: bool = False) -> Iterator[Callable[[Status], None]]:
    """Yield a function that shows a status on stdout.

    On a terminal each status replaces the one before, unless `once` is true.
    """
    console = Console(file=stdout.stream())
    if as_json or once or not console.is_terminal:
        yield lambda status: print_result(status, as_json)
    else:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda status: live.update(Text(status.text(console.height), no_wrap=True), refresh=True)
    stdout.stream().flush()
