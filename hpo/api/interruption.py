"""Ctrl-C while something trains: the first one requests a stop that stores finished trials, the second ends at once.

A notebook's "interrupt" arrives as Ctrl-C, so it works the same way. Ctrl-C is not handled here for a caller that
passes an event of its own, has another handler for SIGINT, or calls from another thread than the main thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hpo.signals import StopRequest


@contextmanager
def stop_event(given: threading.Event | None) -> Iterator[threading.Event]:
    """Yield the event that requests a stop of the block: the given one, or one that the first Ctrl-C sets."""
    stop = threading.Event() if given is None else given
    if given is not None or not _raises_keyboard_interrupt():
        yield stop
        return

    request = StopRequest(stop)

    def handle(signum: int, frame: FrameType | None) -> None:
        if not request():
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _raises_keyboard_interrupt() -> bool:
    """Return whether Ctrl-C would raise KeyboardInterrupt in this thread."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
