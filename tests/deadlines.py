"""Deadlines of tests that wait for processes, threads and servers, scaled to the speed of the machine.

A deadline ends a test that hangs. It measures nothing: no test may fail because the machine is slow or busy. So
deadlines are generous, and they grow with the time that a fixed task takes on this machine.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

IDLE_S = 0.15
"""Duration of the fixed task on an idle machine of 2020 or later."""

POLL_S = 0.01
Value = TypeVar("Value")


@cache
def slowness() -> float:
    """Return the factor by which this machine is slower than an idle one, at least 1; measured once a process."""
    start = time.monotonic()
    for _ in range(3):  # a process that starts and imports, as in most waits
        subprocess.run([sys.executable, "-c", "import json, asyncio, unittest"], check=True)
    return max(1.0, (time.monotonic() - start) / (3 * IDLE_S))


def deadline(seconds: float = 60.0) -> float:
    """Return a deadline in seconds of this machine, from seconds of an idle one."""
    return seconds * slowness()


def wait_for(
    condition: Callable[[], Value | None], message: Callable[[], object] = lambda: "", seconds: float = 60.0
) -> Value:
    """Return the first true value of the condition; fail with the message after the deadline."""
    end = time.monotonic() + deadline(seconds)
    while not (value := condition()):
        assert time.monotonic() < end, message()
        time.sleep(POLL_S)
    return value
