"""Whole transactions, run again where the connection to the server was lost.

Promises: what is asked for is kept once, or the TransientError of the last try says why it may not have been, after
as long as the engine's `Patience` lasts. The answer to a commit can be lost together with the connection, so the work
that writes is told when an earlier run of it may have been kept; it then has to find out. Knows nothing of what the
work does.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import tenacity
from sqlalchemy.engine import Connection, Engine

from hpo.storage.connections import TransientError, read, write

RETRY_S = 120.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
REMIND_S = 60.0

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


@dataclass
class Patience:
    """How long the transactions of an engine are tried for; once `stop` is set, no failed one is tried again.

    `spent_s` adds up what all of them took, waiting included.
    """

    seconds: float = RETRY_S
    stop: threading.Event = field(default_factory=threading.Event)
    spent_s: float = 0.0

    @contextmanager
    def until(self, stop: threading.Event, seconds: float | None = None) -> Iterator[None]:
        """Let `stop` be what cuts waits short until the block ends, and `seconds`, where given, how long they are."""
        before = self.stop, self.seconds
        self.stop, self.seconds = stop, self.seconds if seconds is None else seconds
        try:
            yield
        finally:
            self.stop, self.seconds = before


def give_patience(engine: Engine, patience: Patience) -> None:
    """Let an engine's transactions have this patience."""
    engine.update_execution_options(hpo_patience=patience)


def _patience(engine: Engine) -> Patience:
    return engine.get_execution_options().get("hpo_patience") or Patience()


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

    return patiently(_patience(engine), once)


def consult(engine: Engine, work: Callable[[Connection], Answer]) -> Answer:
    """Run work that reads on one view of the storage, and return its answer."""

    def once() -> Answer:
        with read(engine) as connection:
            return work(connection)

    return patiently(_patience(engine), once)


def patiently(patience: Patience, once: Callable[[], Answer]) -> Answer:
    """Run what may raise TransientError, again while patience lasts; say so on the log, and when it has succeeded."""
    start = time.monotonic()
    said: list[float] = []

    def tell(state: tenacity.RetryCallState) -> None:
        """Say that the work waits, and for what: at first, and every minute."""
        if state.outcome is not None and (not said or time.monotonic() - said[-1] >= REMIND_S):
            said.append(time.monotonic())
            until = "" if math.isinf(patience.seconds) else f" for up to {patience.seconds:.0f} s"
            log.warning("%s; trying again%s", state.outcome.exception(), until)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=tenacity.stop_any(
            tenacity.stop_after_delay(patience.seconds), tenacity.stop_when_event_set(patience.stop)
        ),
        sleep=tenacity.sleep_using_event(patience.stop),
        before_sleep=tell,
        reraise=True,
    )
    try:
        answer = retrying(once)
    finally:
        patience.spent_s += time.monotonic() - start
    if said:
        log.warning("the storage answers again, after %.0f s", time.monotonic() - start)
    return answer
