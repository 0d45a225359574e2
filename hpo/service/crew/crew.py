"""Launch by a crew of workers: store the study, start the crew, and show its progress until the study ends.

The progress is read from the storage, so it is right even if workers die, and the same for local workers and for those
of a cluster. When the launch ends, for whatever reason, so do its workers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol, Self, cast

from hpo.errors import HpoError, UnknownStudyError
from hpo.search.driver import Driver, trial_counts
from hpo.search.events import Event, FrozenTrials, Note, OthersEnded, Reason, WorkerSeen, WorkersSeen
from hpo.search.launch import check_joinable, current_name, ended, submit, warn
from hpo.search.options import DEFAULTS, LaunchOptions
from hpo.service.status import StudyStatus, WorkerStatus, status
from hpo.storage import Storage, StudyState, summary
from hpo.studyfile import AnyStudy

POLL_S = 0.5
"""Seconds between two reads of the workers' progress."""


class Crew(Protocol):
    """Workers of one launch: a context manager that starts them, and ends them when it exits.

    `study` is the name or id of the study that they train.
    """

    study: str | int

    def __enter__(self) -> Self:
        """Start the workers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers after the current epoch; kill those that exceed the shutdown timeout."""

    def check(self) -> int:
        """Return the number of workers that work or are starting. Raises HpoError if all have ended with an error."""


def launch_with(
    study: AnyStudy,
    storage: Storage,
    crew: Crew,
    options: LaunchOptions = DEFAULTS,
    *,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> str:
    """Search the study with a crew until it ends or `stop` is set; return its name then, for it may have been renamed.

    Raises what `submit` raises, StudyClosedError if the study is paused or stopped, and HpoError if all workers end
    before the study does.
    """
    start = time.perf_counter()
    driver = submit(study, storage, options, say=lambda text: on_event(Note(text)))
    study_id = check_joinable(study, storage)
    warn(driver, on_event)
    before = summary(storage, study_id)
    crew.study = study_id  # it may be renamed before a worker starts
    with crew:
        at_work = crew.check()
        workers = f"{at_work} worker{'s' if at_work > 1 else ''}"
        on_event(driver.started(before, workers, driver.precisions("float32 or bfloat16")))
        reason = _follow(driver, study_id, storage, crew, on_event, stop, trial_counts(before))
    on_event(ended(study, study_id, storage, reason, time.perf_counter() - start, on_event))
    return current_name(study, study_id, storage)


def _follow(
    driver: Driver,
    study_id: int,
    storage: Storage,
    crew: Crew,
    on_event: Callable[[Event], None],
    stop: threading.Event,
    before: tuple[int, int, int],
) -> Reason:
    """Report the workers' progress until they have ended, or a stop; return the reason of the end."""
    frozen: Mapping[int, int] = {}
    while True:
        at_work = crew.check()  # before the storage is read: then an ended crew's last results are read too
        try:
            now = status(storage, study_id)
        except UnknownStudyError:
            return "deleted"
        state = now.studies[0]
        counts = state.counts["complete"], state.counts["pruned"], state.counts["failed"]
        if counts != before:
            completed, pruned, failed = (new - old for new, old in zip(counts, before, strict=True))
            on_event(OthersEnded(completed, pruned, failed, state.best))
            before = counts
        if state.frozen != frozen:
            frozen = state.frozen
            on_event(FrozenTrials(tuple(frozen.items())))
        on_event(WorkersSeen(tuple(map(_progress, now.workers)), driver.epochs))
        reason = _reason(state)
        if reason is not None and not at_work:
            return reason
        if stop.is_set():
            return reason or "interrupted"
        if not at_work:
            raise HpoError(f"study '{driver.study.name}': all workers have ended before it; launch it again to go on")
        stop.wait(POLL_S)


def _reason(study: StudyStatus) -> Reason | None:
    match study.state:
        case StudyState.PAUSED:
            return "paused"
        case StudyState.STOPPED:
            return "stopped"
        case StudyState.ENDED:
            return cast(Reason, study.why)
        case _:
            return None


def _progress(worker: WorkerStatus) -> WorkerSeen:
    name = f"{worker.host}:{worker.pid}"
    return WorkerSeen(name, worker.device, worker.population, worker.epoch, worker.frozen)
