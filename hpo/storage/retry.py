"""Whole transactions, run again where the connection to the server was lost.

Promises: what is asked for is kept once, or the TransientError of the last try says why it may not have been, after
RETRY_S. The answer to a commit can be lost together with the connection, so the work that writes is told when an
earlier run of it may have been kept; it then has to find out. On SQLite, which has no connection to lose, a
transaction runs once. Knows nothing of what the work does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import tenacity
from sqlalchemy.engine import Connection, Engine

from hpo.storage.connections import TransientError, read, write

RETRY_S = 120.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


def transact(engine: Engine, work: Callable[[Connection, bool], Answer]) -> Answer:
    """Run work that writes in a transaction, and return its answer.

    Its second argument is whether an earlier run of it may have been kept.
    """
    uncertain = False

    def once() -> Answer:
        nonlocal uncertain
        committing = False
        try:
            with write(engine) as connection:
                answer = work(connection, uncertain)
                committing = True
        except TransientError:
            uncertain |= committing
            raise
        return answer

    return _patiently(once)


def consult(engine: Engine, work: Callable[[Connection], Answer]) -> Answer:
    """Run work that reads on one view of the storage, and return its answer."""

    def once() -> Answer:
        with read(engine) as connection:
            return work(connection)

    return _patiently(once)


def _patiently(once: Callable[[], Answer]) -> Answer:
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=tenacity.stop_after_delay(RETRY_S),
        before_sleep=_tell,
        reraise=True,
    )
    return retrying(once)


def _tell(state: tenacity.RetryCallState) -> None:
    """Say once that the work waits, and for what."""
    if state.attempt_number == 1 and state.outcome is not None:
        log.warning("%s; trying again for up to %.0f s", state.outcome.exception(), RETRY_S)
