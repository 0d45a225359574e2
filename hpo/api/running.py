"""Launch studies here, submit them to the queue, work on the queue, and watch it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from hpo.api.displays import PrintLine, Progress, display, print_warning
from hpo.api.interruption import stop_event
from hpo.api.loading import open_existing
from hpo.api.sections import plain
from hpo.api.stored_study import StoredStudy
from hpo.api.study import Source, Study, read
from hpo.memory_code import register

if TYPE_CHECKING:
    from hpo.service.status import Status

WATCH_S = 2.0
"""Seconds between two statuses of `watch`."""


def launch(
    study: Source,
    *,
    storage: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    ray: str | None = None,
    gpus_per_worker: float = 0.0,
    extend: bool = False,
    changed_code: bool = False,
    enqueue: Sequence[str | Mapping[str, Any]] = (),
    track: str | Sequence[str] = (),
    progress: Progress = "auto",
    stop: threading.Event | None = None,
) -> StoredStudy:
    """Run a study until it has all its trials, or continue it; return the stored study.

    `study` is a `Study`, a file's path or a dictionary. `storage` is a URL, None for that of HPO_STORAGE or
    `sqlite:///hpo.db`; a missing SQLite file is created. `device` is auto, cpu, cuda, cuda:1 or mps. `workers` is the
    number of processes that share the search, None for this process alone; `ray` the address of a Ray cluster, "local"
    to start one, with `gpus_per_worker`. `extend` continues a study whose file has changed, `changed_code` one whose
    user code has changed. `enqueue` are trials to train first, each as its values, {"lr": 0.01}, or as JSON of them.
    `track` names trackers to write the trials to as well, such as "mlflow" or "tensorboard:runs".
    `progress` is the display: see `hpo.api.displays`.

    On Ctrl-C, a notebook's "interrupt" or `stop`, the current epoch ends and finished trials are stored; the same call
    continues the study. `ended` of the result has the reason for the end, `interrupted` is true after a stop.

    Raises StudyFileError and UsageError for a study that is invalid or differs from the stored one, DataError,
    StorageError, StudyBusyError, StudyClosedError for a paused or stopped study, TrainingError, and HpoError, with the
    most frequent reason, where every trial has failed.
    """
    parsed = read(study)

    from hpo.search.options import LaunchOptions
    from hpo.service.launching import launch as search
    from hpo.storage import open_storage

    options = LaunchOptions(
        device=device,
        workers=workers,
        ray=ray,
        gpus_per_worker=gpus_per_worker,
        extend=extend,
        changed_code=changed_code,
        enqueue=tuple(each if isinstance(each, str) else json.dumps(plain(each)) for each in enqueue),
        track=(track,) if isinstance(track, str) else tuple(track),
    )
    register(parsed.memory)  # another study may have objects of these names since
    with stop_event(stop) as stop:
        opened = open_storage(storage)
        with display(progress, stop) as progress_display:
            name = search(parsed.checked, opened, options, on_event=progress_display, stop=stop)
        stored = StoredStudy(opened, name, progress_display.ended, progress_display.interrupted, parsed)
        for line in stored.summary_lines() if progress_display.prints_notes else ():
            progress_display.line(line)
    if stored.ended is not None and stored.ended.all_failed:
        from hpo.results.no_best_trial import no_best_trial

        raise no_best_trial(opened, name)
    return stored


def submit(
    studies: Source | Iterable[Source],
    *,
    storage: str | None = None,
    extend: bool = False,
    priority: int | None = None,
    on_stored: Callable[[StoredStudy], None] = lambda study: None,
    say: PrintLine = print_warning,
) -> list[StoredStudy]:
    """Put studies into the queue for workers; return the stored studies in their order.

    All studies are checked before the first is stored. A study that is already stored is not changed, or with `extend`
    is extended. A higher `priority` goes first; None leaves the priority as it is (0). `on_stored` is called with each
    study as soon as it is stored, `say` with warnings about its data, such as a class without a validation example.
    Raises what `launch` raises before it trains.
    """
    if isinstance(studies, Study | str | PathLike | Mapping):
        studies = [studies]
    checked = [read(study).checked for study in studies]

    from hpo.search.options import LaunchOptions
    from hpo.service.queue_control import submit_all
    from hpo.storage import open_storage

    opened = open_storage(storage)
    stored = []
    for name in submit_all(checked, opened, LaunchOptions(extend=extend, priority=priority), say):
        stored.append(StoredStudy(opened, name))
        on_stored(stored[-1])
    return stored


def work(
    names: Sequence[str] = (),
    *,
    storage: str | None = None,
    until_idle: bool = False,
    device: str = "auto",
    threads: int | None = None,
    changed_code: bool = False,
    log_format: str = "text",
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
    stop: threading.Event | None = None,
) -> int:
    """Train trials of all queued studies, or of these, until `stop`, Ctrl-C or, with `until_idle`, no trial is left.

    Meant for a process of its own: sets up the process's log, on stderr as `text` or `json`, and exits the process if
    an epoch takes more than 15 s after a stop. `threads` is the number of threads, None for the worker's share of the
    cores; `changed_code` trains studies whose user code differs on this machine. `metrics_port` serves metrics for
    Prometheus (0: any free port). Returns the exit status. Raises StorageError for a missing file, and HpoError for a
    port in use.
    """
    from hpo.service.worker import WorkerOptions
    from hpo.service.worker_process import run_worker

    options = WorkerOptions(tuple(names), device, threads, until_idle, changed_code)
    with stop_event(stop) as stop:
        return run_worker(storage, options, log_format, metrics_host, metrics_port, stop)


def status(name: str | None = None, *, storage: str | None = None) -> Status:
    """Return the status of the storage's studies and workers, or of one study and its workers.

    Its `studies` and `workers` are records, its `text()` two tables, its `to_json()` a tree. Raises UnknownStudyError.
    """
    from hpo.service.status import status

    return status(open_existing(storage), name)


def watch(name: str | None = None, *, storage: str | None = None) -> Iterator[Status]:
    """Yield the status every 2 seconds, without end."""
    from hpo.service.status import status

    opened = open_existing(storage)
    while True:
        yield status(opened, name)
        time.sleep(WATCH_S)


def studies_table(*, storage: str | None = None) -> str:
    """Return the table that `hpo studies` prints: name, data set, trials by state, best value, last activity."""
    from hpo.results.display.tables import studies_table

    return studies_table(open_existing(storage))
