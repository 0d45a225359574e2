"""How attempts at a trial ended: what is kept with it of the earlier ones, and why it failed in the end."""

from __future__ import annotations

import datetime
from typing import Any, Literal

from hpo.storage.workers import Worker

ATTEMPTS = "hpo:attempts"
"""The system attribute that lists how earlier attempts at a trial ended."""

REASON = "reason"
"""The user attribute that says why a trial failed."""


def attempt(ended: Literal["died", "raised"], reason: str, worker: Worker | None, details: str = "") -> dict[str, Any]:
    """Return the record of an attempt whose process died, or whose training raised; `details` is the traceback."""
    record = {
        "ended": ended,
        "reason": reason,
        "worker": None if worker is None else str(worker),
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return record | ({"traceback": details} if details else {})
