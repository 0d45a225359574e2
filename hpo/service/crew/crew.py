"""A launch by several processes: put the study into the storage, start a crew of workers, and follow what they do.

Progress is read from the storage, so that it is right whatever becomes of a worker, and the same for workers of this
machine and of a cluster. Promises: the crew is gone when the launch has ended, whichever way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, cast

from hpo.errors import HpoError, UnknownStudyError
from hpo.search.driver import Driver, trial_counts
from hpo.search.events import Event, OthersEnded, Reason, WorkerSeen, WorkersSeen
from hpo.search.launch import check_joinable, current_name, ended, submit, warn
from hpo.search.options import DEFAULTS, LaunchOptions
from hpo.service.status import StudyStatus, WorkerStatus, status
from hpo.storage import Storage, StudyState, summary
from hpo.studyfile import AnyStudy

LOOK_S = 0.5
"""How often a launch looks what its workers have done."""


class Crew(Protocol):
    """Workers started for one launch: a context manager that starts them, and has ended them all when it is left.

    `study` is the name or the id of the one that they work on.
    """

    study: str | int

    def __enter__(self) -> Self:
        """Start the workers."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask them to stop, wait for the epoch in hand, and end those that take too long."""

    def check(self) -> int:
        """Return how many are at work, or about to be. Raises HpoError where all have ended for a reason."""


def launch_with(
    study: AnyStudy,
    storage: Storage,
    crew: Crew,
    options: LaunchOptions = DEFAULTS,
    *,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> str:
    """Search the study with a crew until it comes to its end, or until `stop` is set; return what it is called then.

    Raises what `submit` raises, StudyClosedError where the study is paused or stopped, and HpoError where the crew ends
    before the study.
    """
    start = time.perf_counter()
    driver = submit(study, storage, options)
    study_id = check_joinable(study, storage)
    warn(driver, on_event)
    before = summary(storage, study_id)
    crew.study = study_id  # whatever it is called by the time that a worker starts
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
    """Say what the workers do until they have ended, or a stop; return why."""
    while True:
        at_work = crew.check()  # first: what is stored afterwards is what they left
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
        on_event(WorkersSeen(tuple(map(_seen, now.workers)), driver.epochs))
        reason = _reason(state)
        if reason is not None and not at_work:
            return reason
        if stop.is_set():
            return reason or "interrupted"
        if not at_work:
            raise HpoError(
                f"study '{driver.study.name}': all workers have ended, and it has not; launch it again to go on"
            )
        stop.wait(LOOK_S)


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


def _seen(worker: WorkerStatus) -> WorkerSeen:
    return WorkerSeen(f"{worker.host}:{worker.pid}", worker.device, worker.population, worker.epoch)
