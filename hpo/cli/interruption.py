"""Signal handling of commands that train: graceful stop, immediate exit, kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hpo.errors import InterruptionError
from hpo.signals import StopRequest


class Interruption:
    """A signal handler: the first SIGINT or SIGTERM sets `stop`, the second exits, the third kills the process."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self._request = StopRequest(self.stop)
        self.status = 1  # for a stop without a signal: the reader of --json closed the pipe

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.status = 128 + signum
        if not self._request():
            signal.signal(signum, signal.SIG_DFL)
            raise SystemExit(self.status)  # an exception, so that the terminal is restored


@contextmanager
def stop_on_signals() -> Iterator[Interruption]:
    """Handle SIGINT and SIGTERM in the block; an InterruptionError that leaves it gets the signal's exit status."""
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
