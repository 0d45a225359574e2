"""Leases: one process at a time writes a study's runs to a tracker, so that no trial gets two runs.

A lease is an entry in a user attribute of the study: the place of the tracker as a hash, the holder, and the time of
the last renewal. A lease that has not been renewed for `LEASE_S` seconds has ended, as after the death of its holder.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy.engine import Connection

from hpo.errors import UnknownStudyError
from hpo.storage.sql.statements import read_study_attr
from hpo.storage.storage import Storage

TRACKING = "hpo:tracking"
"""The user attribute of a study with its leases: place -> [holder, time of the last renewal in seconds since 1970]."""

LEASE_S = 60.0
RENEW_S = 20.0


class TrackingLease:
    """This process's lease for one study and one place, which may contain a password: only its hash is stored."""

    def __init__(self, storage: Storage, study_id: int, place: str) -> None:
        self._storage, self._study_id = storage, study_id
        self._place = hashlib.sha256(place.encode()).hexdigest()[:16]
        self._holder = secrets.token_hex(8)
        self._renewed: float | None = None  # by the monotonic clock

    def acquire(self) -> bool:
        """Take or renew the lease; return False where another process has it. Raises UnknownStudyError."""
        if self._renewed is not None and time.monotonic() - self._renewed < RENEW_S:
            return True
        acquired = False

        def change(connection: Connection) -> Mapping[str, Any]:
            nonlocal acquired
            leases = read_study_attr(connection, self._study_id, TRACKING) or {}
            holder, renewed = leases.get(self._place, ("", 0.0))
            acquired = holder == self._holder or not 0 <= time.time() - renewed < LEASE_S
            return {TRACKING: {**leases, self._place: [self._holder, time.time()]}} if acquired else {}

        self._store(change)
        self._renewed = time.monotonic() if acquired else None
        return acquired

    def release(self) -> None:
        """End the lease, if this process has it. Raises UnknownStudyError."""

        def change(connection: Connection) -> Mapping[str, Any]:
            leases = read_study_attr(connection, self._study_id, TRACKING) or {}
            own = leases.get(self._place, ("", 0.0))[0] == self._holder
            return {TRACKING: {place: each for place, each in leases.items() if place != self._place}} if own else {}

        self._renewed = None
        self._store(change)

    def _store(self, change: Callable[[Connection], Mapping[str, Any]]) -> None:
        try:
            self._storage.set_study_attrs(self._study_id, {}, change)
        except KeyError as error:
            raise UnknownStudyError(f"{self._storage.shown}: the study was deleted by another process") from error
