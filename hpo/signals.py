"""Stop requests from signal handlers.

A handler interrupts the main thread anywhere, even while that thread owns the lock of the event to set. Setting the
event in the handler itself could then deadlock.
"""

from __future__ import annotations

import _thread
import threading
import time

WAIT_S = 0.1
"""Maximum time a handler waits for the event: the interrupted thread may own the event's lock."""


class StopRequest:
    """Callable for a signal handler that sets an event from another thread."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._requested = stop, False

    def __call__(self) -> bool:
        """Set the event; return whether this is the first request and the event was not set before."""
        if self._requested or self._stop.is_set():
            return False
        self._requested = True
        _thread.start_new_thread(self._stop.set, ())
        until = time.monotonic() + WAIT_S
        while not self._stop.is_set() and time.monotonic() < until:
            time.sleep(0.001)
        return True
