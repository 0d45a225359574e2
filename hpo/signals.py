"""A signal that asks a process to stop: how its handler sets an event that the process waits for.

A handler interrupts the main thread anywhere, also where that holds the event's own lock: to set it there would be to
wait for itself.
"""

from __future__ import annotations

import _thread
import threading
import time

SOON_S = 0.1
"""How long a handler waits for the event to be set: no longer, for it may be the one that holds it up."""


class Request:
    """Asks for a stop, from a handler."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop, self._made = stop, False

    def __call__(self) -> bool:
        """Have the event set; return whether it had not been asked for before, nor set by others."""
        if self._made or self._stop.is_set():
            return False
        self._made = True
        _thread.start_new_thread(self._stop.set, ())
        until = time.monotonic() + SOON_S
        while not self._stop.is_set() and time.monotonic() < until:
            time.sleep(0.001)
        return True
