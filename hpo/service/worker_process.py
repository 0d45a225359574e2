"""Main function of a worker process: wait for the storage, log, serve metrics, stop with a timeout."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hpo.errors import HpoError, StorageError
from hpo.results.study_facts import open_existing
from hpo.search.events import Event
from hpo.service.logs import event_logger, start_log
from hpo.service.metrics import Metrics
from hpo.service.worker import WorkerOptions, work
from hpo.storage import Storage
from hpo.storage.connections import TransientError
from hpo.storage.sql.retry import RetryPolicy, call_with_retries
from hpo.storage.workers import this_worker

STOP_S = 15.0
"""Seconds that the current epoch may take after a stop."""

REQUEUE_S = 10.0
"""Seconds that requeueing the trials may take after that."""

log = logging.getLogger(__name__)


def run_worker(
    url: str | None,
    options: WorkerOptions,
    log_format: str,
    metrics_address: str,
    metrics_port: int | None,
    stop: threading.Event,
) -> int:
    """Train trials of the queue until `stop` is set, or none are left with `until_idle`; return the exit status.

    Raises what `work` raises, and HpoError for a port in use; with a JSON log the error is its last line instead.
    """
    worker = this_worker()
    start_log(sys.stderr, log_format, f"{worker.host}:{worker.pid}")
    try:
        _run(url, options, metrics_address, metrics_port, stop)
    except HpoError as error:
        if log_format != "json":
            raise
        log.error("%s", error)
        return error.exit_status
    return 0


def _run(
    url: str | None, options: WorkerOptions, metrics_address: str, metrics_port: int | None, stop: threading.Event
) -> None:
    metrics = Metrics()
    if metrics_port is not None:
        port = metrics.serve(metrics_address, metrics_port)
        host = f"[{metrics_address}]" if ":" in metrics_address else metrics_address
        log.info("metrics at http://%s:%d/metrics", host, port)
    storage = wait_for_storage(url, stop)
    if storage is None:
        return
    metrics.count_storage_time(storage)
    log_event = event_logger()

    def listen(study: str, event: Event) -> None:
        metrics(study, event)
        log_event(study, event)

    log.info("works on %s", storage.shown)
    with shutdown_timeout(storage, stop):
        work(storage, options, listen, stop)
    log.info("ends: %s", "a stop was requested" if stop.is_set() else "nothing is left to do")


def wait_for_storage(url: str | None, stop: threading.Event) -> Storage | None:
    """Open the storage as soon as it can be reached; return None if a stop comes first.

    Raises StorageError for a missing file.
    """
    try:
        return call_with_retries(RetryPolicy(math.inf, stop), lambda: open_existing(url))
    except TransientError:
        return None


@contextmanager
def shutdown_timeout(storage: Storage, stop: threading.Event) -> Iterator[None]:
    """Requeue the trials and exit with status 0 if the block goes on for more than `STOP_S` seconds after a stop."""
    done = threading.Event()

    def watch() -> None:
        stop.wait()
        if done.wait(STOP_S):
            return
        exit_timer = threading.Timer(REQUEUE_S, os._exit, (0,))
        exit_timer.daemon = True
        exit_timer.start()  # before the log, which may hang too
        log.warning("the epoch takes longer than %.0f s after the stop: aborted, its trials are requeued", STOP_S)
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
