"""Submit a study, launch it, or join the search of a stored one.

submit    store a study, for workers to train
join      search a stored study: any process can that has the storage, the data and the code
launch    store a study and search it until it ends
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import optuna

from hpo.errors import UnknownStudyError
from hpo.search.driver import Driver, Listener, driver_of, driver_of_stored, trial_counts
from hpo.search.enqueueing import store_enqueued
from hpo.search.events import Note, Reason, StudyEnded
from hpo.search.loop import Search
from hpo.search.options import DEFAULTS, LaunchOptions
from hpo.search.space import size_text
from hpo.search.study_records import (
    any_stored_study,
    claim_conditions,
    open_study,
    record_change,
    with_stored_defaults,
)
from hpo.storage import PRIORITY, Storage, check_open, heartbeats, load_study, summary
from hpo.studyfile import AnyStudy, Study
from hpo.text import join_and


def submit(
    study: AnyStudy,
    storage: Storage,
    options: LaunchOptions = DEFAULTS,
    *,
    driver: Driver | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Driver:
    """Store the study, for workers to train; return its driver. A stored study is left as it is, or extended.

    `say` is called with a line on the trials that an extension continues. Give the driver on this machine's CPU where
    it is made already. Raises UsageError or StudyFileError (the file, or a file that differs from the stored one),
    DataError, CodeError and StudyBusyError before anything is stored.
    """
    driver = driver or driver_of(with_stored_defaults(study, storage), "cpu")
    _store(driver, storage, options, say)
    return driver


def check_joinable(study: AnyStudy, storage: Storage) -> int:
    """Return the stored study's id. Raises StudyClosedError unless the study is open."""
    stored = load_study(storage, study.name)
    check_open(storage, claim_conditions(study, stored))
    return stored._study_id


def join(
    name: str,
    storage: Storage,
    *,
    device: str,
    on_event: Listener,
    stop: threading.Event,
    recent_errors: list[str] | None = None,
    changed_code: bool = False,
) -> Search:
    """Return this process's search of a stored study, which appends the errors of its populations to `recent_errors`.

    Raises HpoError where this machine lacks the study's data or code, and StudyClosedError unless the study is open.
    """
    stored = load_study(storage, name)
    errors = [] if recent_errors is None else recent_errors
    driver = driver_of_stored(any_stored_study(stored), stored, device, changed_code=changed_code)
    return driver.search(stored, storage, on_event, stop, errors)


def launch(
    study: AnyStudy,
    storage: Storage,
    options: LaunchOptions = DEFAULTS,
    *,
    on_event: Listener,
    stop: threading.Event,
) -> str:
    """Search the study until it has all its trials, or until `stop` is set; return its name, which may have changed.

    After `stop` is set the current epoch ends. A stored study continues; where other workers search it, this process
    joins them. Raises UsageError or StudyFileError (the file, the device, a file that differs from the stored one),
    DataError and CodeError (code that differs from the stored one, without `changed_code`) before anything is stored,
    StudyBusyError where a changed file would leave other workers on the old one, and StudyClosedError where the study
    is paused or stopped.
    """
    start = time.perf_counter()
    with storage.retry_policy.override(stop):
        driver = driver_of(with_stored_defaults(study, storage), options.device)
        stored = _store(driver, storage, options, lambda text: on_event(Note(text)))
        warn(driver, on_event)
        if keys := study.keys_in_memory:
            on_event(Note(f"{join_and(keys)}: in the memory of this process, so no other process can train this study"))
        with heartbeats(storage):
            reason = driver.search(stored, storage, on_event, stop, []).run()
    on_event(ended(study, stored._study_id, storage, reason, time.perf_counter() - start, on_event))
    return current_name(study, stored._study_id, storage)


def warn(driver: Driver, on_event: Listener) -> None:
    """Report what the data lack, once a launch and not once a worker."""
    if driver.warning:
        on_event(Note(driver.warning, "warning"))


def ended(
    study: AnyStudy, study_id: int, storage: Storage, reason: Reason, seconds: float, on_event: Listener
) -> StudyEnded:
    """Return the event of the end of a launch, after a note where the search space is exhausted."""
    if reason == "space exhausted" and isinstance(study, Study):
        on_event(Note(f"the search space is exhausted: it holds only {size_text(study)}"))
    try:
        return StudyEnded(reason, *trial_counts(summary(storage, study_id)), seconds)
    except UnknownStudyError:
        return StudyEnded("deleted", 0, 0, 0, seconds)


def current_name(study: AnyStudy, study_id: int, storage: Storage) -> str:
    """Return the name of the study of that id; the old name where the study has been deleted."""
    try:
        return summary(storage, study_id).name
    except UnknownStudyError:
        return study.name


def _store(driver: Driver, storage: Storage, options: LaunchOptions, say: Callable[[str], None]) -> optuna.Study:
    study = driver.study
    driver.check_new(storage, options.changed_code)
    enqueued = driver.enqueued_values(options.enqueue, storage)
    stored = open_study(study, driver.split, driver.code, storage, options)
    extension = driver.epoch_extension(stored, storage)
    record_change(stored, study, driver.code, storage, extension.reopened)
    if extension.note:
        say(extension.note)
    driver.update_stored(stored, storage, options.changed_code)
    if enqueued:
        store_enqueued(
            study,
            enqueued,
            driver.trial_maker(stored, storage),
            storage,
            claim_conditions(study, stored),
            key=driver.enqueued_key,
            repeats=driver.repeats_configurations,
        )
    if options.priority is not None:
        storage.set_study_attrs(stored._study_id, {PRIORITY: options.priority})
    return stored
