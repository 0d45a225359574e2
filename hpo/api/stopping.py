"""Ctrl-C while something trains: the first one asks it to stop and keep what has finished, the second ends it at once.

A notebook's kernel hands on its "interrupt" as Ctrl-C, so that the same holds there. Who gives an event of their own,
has another handler for SIGINT, or calls from another thread than the first, keeps Ctrl-C to themselves.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hpo.signals import StopRequest


@contextmanager
def stopping(stop: threading.Event | None) -> Iterator[threading.Event]:
    """Give the event that asks what runs in the block to stop: the caller's, or one that the first Ctrl-C sets."""
    asked = threading.Event() if stop is None else stop
    if stop is not None or not _is_ours():
        yield asked
        return

    request = StopRequest(asked)

    def ask(signum: int, frame: FrameType | None) -> None:
        if not request():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def _is_ours() -> bool:
    """Whether Ctrl-C would raise KeyboardInterrupt here."""
    in_first_thread = threading.current_thread() is threading.main_thread()
    return in_first_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
