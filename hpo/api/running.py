"""Studies that are trained: launched here and now, or put into the queue for workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from typing import Any

from hpo.api.answers import Say, warn
from hpo.api.displays import Progress, display
from hpo.api.sections import plain
from hpo.api.stopping import stopping
from hpo.api.stored import StoredStudy
from hpo.api.study import Source, Study, read


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
    progress: Progress = "auto",
    stop: threading.Event | None = None,
) -> StoredStudy:
    """Search a study until it has its trials, or go on with it; return it as the storage has it then.

    `study` is a `Study`, a file's path or a dictionary. `storage` is a URL, None for that of HPO_STORAGE or
    `sqlite:///hpo.db`; it is made where it is not there. `device` is auto, cpu, cuda, cuda:1 or mps. `workers` is how
    many processes share the search, None for this one alone; `ray` the address of a Ray cluster, "local" for one that
    is started for it, with `gpus_per_worker`. `extend` lets a study go on whose file has changed, `changed_code` one
    whose own code has. `enqueue` are trials to train first, each as its values, {"lr": 0.01}, or JSON of them.
    `progress` says what is shown meanwhile: see `hpo.api.displays`.

    Ctrl-C, a notebook's "interrupt" and `stop` let the epoch in hand end: what has finished is kept, and the same call
    goes on from there. `ended` of what is returned says why the search has ended, `interrupted` whether it was stopped.

    Raises StudyFileError and UsageError for a study that cannot be searched or differs from the stored one, DataError,
    StorageError, StudyBusyError, StudyClosedError for a paused or stopped one, TrainingError, and HpoError, with the
    commonest reason, where every trial has failed.
    """
    given = read(study)

    from hpo.results.unranked import no_best
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
    )
    with stopping(stop) as asked:
        opened = open_storage(storage)
        with display(progress, asked) as shown:
            name = search(
                given.checked,
                opened,
                options,
                on_event=shown,
                stop=asked,
            )
        stored = StoredStudy(opened, name, shown.ended, shown.interrupted, given)
        for line in stored.summary_lines() if shown.says else ():
            shown.line(line)
    if stored.ended is not None and stored.ended.all_failed:
        raise no_best(opened, name)
    return stored


def submit(
    studies: Source | Iterable[Source],
    *,
    storage: str | None = None,
    extend: bool = False,
    priority: int | None = None,
    on_stored: Callable[[StoredStudy], None] = lambda study: None,
    say: Say = warn,
) -> list[StoredStudy]:
    """Put studies into the queue, for workers to train; return them, in their order, as the storage has them.

    All are checked before the first is stored, and one that is there already stays as it is, or is extended. A higher
    `priority` goes first, None leaves it as it is (0). `on_stored` is called with each as soon as it is stored, and
    `say` with what there is to say against its images, such as a class without a validation image.
    Raises what `launch` raises before it trains.
    """
    checked = [read(study).checked for study in _several(studies)]

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
    """Train whatever the queue has trials left of, or only these studies, until `stop`, Ctrl-C or, if told, idle.

    It is meant for a process of its own: it sets up this one's log, on stderr as `text` or `json`, and ends the process
    if an epoch takes more than 15 s after a stop. `threads` is how many it trains on, None for its share of the cores;
    `changed_code` has it train studies whose own code is another here. Prometheus finds metrics at `metrics_port` (0:
    any free one). Returns the exit status. Raises StorageError for a file that is not there, and HpoError for a port in
    use.
    """
    from hpo.service.worker import Duty
    from hpo.service.worker_process import run_worker

    duty = Duty(tuple(names), device, threads, until_idle, changed_code)
    with stopping(stop) as asked:
        return run_worker(storage, duty, log_format, metrics_host, metrics_port, asked)


def _several(studies: Source | Iterable[Source]) -> Iterable[Source]:
    return [studies] if isinstance(studies, Study | str | PathLike | Mapping) else studies
