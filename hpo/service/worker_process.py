"""A worker as a process: it waits for its storage, keeps a log, serves metrics, and ends in time when it is told to."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hpo.errors import HpoError, StorageError
from hpo.results.lookup import open_existing
from hpo.search.events import Event
from hpo.service.logs import log_events, start_log
from hpo.service.metrics import Metrics
from hpo.service.worker import Duty, work
from hpo.storage import Storage
from hpo.storage.connections import TransientError
from hpo.storage.retry import RetryPolicy, call_with_retries
from hpo.storage.workers import this_worker

STOP_S = 15.0
"""What an epoch may take after a stop before it is given up."""

HAND_BACK_S = 10.0
"""What handing back its trials may then take."""

log = logging.getLogger(__name__)


def run_worker(
    url: str | None, duty: Duty, log_format: str, metrics_address: str, metrics_port: int | None, stop: threading.Event
) -> int:
    """Work until `stop` is set, or as the duty says; return the exit status.

    Raises what `work` raises, and HpoError for a port in use; with a log in JSON they are its last line instead.
    """
    worker = this_worker()
    start_log(sys.stderr, log_format, f"{worker.host}:{worker.pid}")
    try:
        _run(url, duty, metrics_address, metrics_port, stop)
    except HpoError as error:
        if log_format != "json":
            raise
        log.error("%s", error)
        return error.exit_status
    return 0


def _run(url: str | None, duty: Duty, metrics_address: str, metrics_port: int | None, stop: threading.Event) -> None:
    metrics = Metrics()
    if metrics_port is not None:
        port = metrics.serve(metrics_address, metrics_port)
        host = f"[{metrics_address}]" if ":" in metrics_address else metrics_address
        log.info("metrics at http://%s:%d/metrics", host, port)
    storage = await_storage(url, stop)
    if storage is None:
        return
    metrics.watch(storage)
    in_log = log_events()

    def listen(study: str, event: Event) -> None:
        metrics(study, event)
        in_log(study, event)

    log.info("works on %s", storage.shown)
    with ends_in_time(storage, stop):
        work(storage, duty, listen, stop)
    log.info("ends: %s", "told to stop" if stop.is_set() else "nothing is left to do")


def await_storage(url: str | None, stop: threading.Event) -> Storage | None:
    """Open the storage as soon as it can be reached; None where a stop comes first.

    Raises StorageError for a file that is not there.
    """
    try:
        return call_with_retries(RetryPolicy(math.inf, stop), lambda: open_existing(url))
    except TransientError:
        return None


@contextmanager
def ends_in_time(storage: Storage, stop: threading.Event) -> Iterator[None]:
    """Let this process end with status 0 even if the block goes on for too long after a stop: what runs is given up."""
    done = threading.Event()

    def watch() -> None:
        stop.wait()
        if done.wait(STOP_S):
            return
        last = threading.Timer(HAND_BACK_S, os._exit, (0,))
        last.daemon = True
        last.start()  # first: even the log may be what hangs
        log.warning("what is in hand takes longer than %.0f s after the stop: given up", STOP_S)
        try:
            storage.requeue(storage.claimed_ids)
        except StorageError as error:
            log.warning("%s", error)
        logging.shutdown()
        os._exit(0)

    threading.Thread(target=watch, name="hpo-stop", daemon=True).start()
    try:
        yield
    finally:
        done.set()
