"""Methods of `StoredStudy` for a study as a whole: pause, stop, resume, delete, copy, its place in the queue.

`StoredStudy` binds these functions as its methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hpo.storage import Storage


class Stored(Protocol):
    """A stored study: its storage, and its name there."""

    _storage: Storage
    name: str


def pause(study: Stored) -> str:
    """Pause the study: running trials are requeued at the end of their epoch. Return a line that confirms it.

    Raises HpoError where the study has ended.
    """
    from hpo.service.queue_control import pause

    return pause(study._storage, study.name)


def stop(study: Stored) -> str:
    """Stop the study early: running trials are finished, no new one starts. Return a line that confirms it.

    Raises HpoError where the study has ended.
    """
    from hpo.service.queue_control import stop

    return stop(study._storage, study.name)


def resume(study: Stored) -> str:
    """Open the study again after a pause or stop, for workers or a launch; return a line that confirms it.

    Raises HpoError where the study has ended.
    """
    from hpo.service.queue_control import resume

    return resume(study._storage, study.name)


def delete(study: Stored) -> str:
    """Delete the study with all its trials and checkpoints, without asking; return a line that confirms it.

    After that every method of this object raises UnknownStudyError.
    """
    from hpo.service.queue_control import delete

    return delete(study._storage, study.name)


def deletion_question(study: Stored) -> str:
    """Return the question that a user should answer before the study is deleted."""
    from hpo.service.queue_control import question

    return question(study._storage, study.name)


def copy(study: Stored, to: str, name: str | None = None) -> str:
    """Copy the study to the storage at the URL `to`, under another `name` if given; return a line that confirms it.

    A missing SQLite file is created. Running trials are waiting in the copy. Raises HpoError where the storage has
    a study of that name.
    """
    from hpo.results.copy import copy_line

    return copy_line(study._storage, study.name, to, name)


def queue_line(study: Stored) -> str:
    """Return a line with the study's state in the queue: its trials left, or why it is paused or ended."""
    from hpo.service.queue_control import queue_line

    return queue_line(study._storage, study.name)
