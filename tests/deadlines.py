"""How long tests wait for processes, threads and servers before they fail: in seconds of this machine, on this day.

A deadline ends a test that hangs. It is not a measurement: nothing may fail because the machine is slow, or busy with
something else. So deadlines are generous, and they grow with the time that a fixed piece of work takes here and now.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

QUIET_S = 0.15
"""What the piece of work takes on a quiet machine of 2020 or later."""

POLL_S = 0.01
Found = TypeVar("Found")


@cache
def slowness() -> float:
    """How many times slower than a quiet machine this one is, and at least 1; measured once a process."""
    began = time.monotonic()
    for _ in range(3):  # a process that starts and imports: what most waits are for
        subprocess.run([sys.executable, "-c", "import json, asyncio, unittest"], check=True)
    return max(1.0, (time.monotonic() - began) / (3 * QUIET_S))


def deadline(seconds: float = 60.0) -> float:
    """Return a deadline of so many seconds of a quiet machine, in seconds of this one."""
    return seconds * slowness()


def wait_for(what: Callable[[], Found | None], why: Callable[[], object] = lambda: "", seconds: float = 60.0) -> Found:
    """Return the first answer that is true; fail after a deadline, and say why."""
    ends = time.monotonic() + deadline(seconds)
    while not (found := what()):
        assert time.monotonic() < ends, why()
        time.sleep(POLL_S)
    return found
