"""Retry a transaction where the connection to the database server is lost.

Promises: a write is committed once, or the TransientError of the last attempt says why it may not be; attempts end when
the engine's `RetryPolicy` ends. The server's answer to a commit can be lost with the connection. So the function that
writes is told when an earlier run of it may have been committed, and has to check. This module knows nothing of what
the functions read and write.
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
class RetryPolicy:
    """The time limit for retries of an engine's transactions: `timeout_s` seconds, and not once `stop` is set.

    `total_s` is the time spent in transactions so far, waits included.
    """

    timeout_s: float = RETRY_S
    stop: threading.Event = field(default_factory=threading.Event)
    total_s: float = 0.0

    @contextmanager
    def override(self, stop: threading.Event, timeout_s: float | None = None) -> Iterator[None]:
        """Use another stop event, and another timeout unless None, until the block ends."""
        before = self.stop, self.timeout_s
        self.stop, self.timeout_s = stop, self.timeout_s if timeout_s is None else timeout_s
        try:
            yield
        finally:
            self.stop, self.timeout_s = before


def set_retry_policy(engine: Engine, policy: RetryPolicy) -> None:
    """Set the retry policy of an engine's transactions."""
    engine.update_execution_options(hpo_retry_policy=policy)


def _policy(engine: Engine) -> RetryPolicy:
    return engine.get_execution_options().get("hpo_retry_policy") or RetryPolicy()


def write_transaction(engine: Engine, work: Callable[[Connection, bool], Answer]) -> Answer:
    """Run a function that writes in a transaction, and return its answer.

    Its second argument is True if an earlier run of it may have been committed.
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

    return call_with_retries(_policy(engine), once)


def read_transaction(engine: Engine, work: Callable[[Connection], Answer]) -> Answer:
    """Run a function that reads in a transaction, so that all its queries see the same state; return its answer."""

    def once() -> Answer:
        with read(engine) as connection:
            return work(connection)

    return call_with_retries(_policy(engine), once)


def call_with_retries(policy: RetryPolicy, once: Callable[[], Answer]) -> Answer:
    """Call a function, again on TransientError as the policy allows, and return its answer.

    Logs a warning at the first failure, every minute of further failures, and at the success after a failure.
    """
    start = time.monotonic()
    warned_at: list[float] = []

    def warn(state: tenacity.RetryCallState) -> None:
        if state.outcome is not None and (not warned_at or time.monotonic() - warned_at[-1] >= REMIND_S):
            warned_at.append(time.monotonic())
            limit = "" if math.isinf(policy.timeout_s) else f" for up to {policy.timeout_s:.0f} s"
            log.warning("%s; trying again%s", state.outcome.exception(), limit)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        wait=tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
        stop=tenacity.stop_any(tenacity.stop_after_delay(policy.timeout_s), tenacity.stop_when_event_set(policy.stop)),
        sleep=tenacity.sleep_using_event(policy.stop),
        before_sleep=warn,
        reraise=True,
    )
    try:
        answer = retrying(once)
    finally:
        policy.total_s += time.monotonic() - start
    if warned_at:
        log.warning("the storage answers again, after %.0f s", time.monotonic() - start)
    return answer
