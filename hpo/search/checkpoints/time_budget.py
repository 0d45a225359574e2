"""Time budget of writing training states: a fraction of the time of the process, which accumulates while none is spent.

A write is permitted once the time so far pays for all earlier ones. So the budget is exceeded by the duration of one
write at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class TimeBudget:
    """Measures the time spent on writing. `fraction` of the time since the construction may be spent.

    Nothing may be spent in the first `first_s` seconds, because the duration of a write is not known yet. `clock`
    returns a time in seconds.
    """

    def __init__(self, fraction: float, first_s: float, clock: Callable[[], float]) -> None:
        self._fraction, self._first_s, self._clock = fraction, first_s, clock
        self._began, self._spent_s = clock(), 0.0
        self._writing_since: float | None = None
        self._writes = 0

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of a block as spent; a block inside another one is counted once."""
        if self._writing_since is not None:
            yield
            return
        self._writing_since = self._clock()
        try:
            yield
        finally:
            self._spent_s, self._writing_since = self.spent_s, None

    def add_write(self) -> None:
        """Count a state that was written."""
        self._writes += 1

    @property
    def spent_s(self) -> float:
        """The seconds spent so far."""
        return self._spent_s + (0.0 if self._writing_since is None else self._clock() - self._writing_since)

    @property
    def seconds_per_write(self) -> float | None:
        """The mean duration of a write; None before the first one."""
        return self.spent_s / self._writes if self._writes else None

    def permits(self, seconds: float = 0.0) -> bool:
        """Return whether the time so far pays for all earlier writes, and for `seconds` more."""
        age_s = self._clock() - self._began
        return age_s >= self._first_s and self.spent_s + seconds <= self._fraction * age_s
