"""Signals that ask a command to stop: the first politely, the second at once, the third not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hpo.errors import InterruptionError
from hpo.signals import StopRequest


class Interruption:
    """The first SIGINT or SIGTERM asks the launch to stop, the second ends it at once, the third kills."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._ask = StopRequest(self.stop)
        self.status = 1  # stopped without a signal: the reader of --json went away

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.status = 128 + signum
        if not self._ask():
            signal.signal(signum, signal.SIG_DFL)
            raise SystemExit(self.status)  # unwinds, so that the terminal is restored


@contextmanager
def stop_on_signals() -> Iterator[Interruption]:
    """Give what SIGINT and SIGTERM set while the block runs; an interruption that leaves it has the signal's status."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    except InterruptionError as error:
        error.exit_status = interruption.status
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
