"""Errors for users: one line each, without a traceback.

    HpoError                    exit status 1: a failure that the user can resolve
    +- DataError                a data set's file is missing, damaged or in the wrong format
    +- CodeError                the user's code is missing, fails to import or has changed since the study began
    +- SettingError             a trial's setting is invalid where it is used
    +- StorageError             the storage cannot be opened, read or written
    +- UnknownStudyError        no study of that name in the storage
    +- StudyBusyError           another process is searching the study
    +- StudyClosedError         the study was paused, stopped, changed or deleted
    +- TrainingError            training raised the same error in several populations in a row
    +- InterruptionError        stopped before there was a result to store
    +- UsageError               exit status 2: the command line or the study file is wrong
       +- StudyFileError        one key of a study file: `studies/x.toml: optimizer.lr.low: must be above 0`

A message says what is wrong, where, and what to do. It is one printable line, whatever text from files and storages it
contains.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

from hpo.text import printable

OTHER_TASKS = (
    'For numbers or several labels, set `kind` of [task]; for anything else write `objective = "FILE.py:NAME"`'
)


class HpoError(Exception):
    """A failure that the user can resolve."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


class DataError(HpoError):
    """A data set's file is missing, damaged or in the wrong format."""


class CodeError(HpoError):
    """The user's code is missing, fails to import or has changed since the study began."""


class SettingError(HpoError):
    """A trial's setting is invalid where it is used; `key` is its place in the study file."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key}: {problem}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.key, self.problem), vars(self)  # for a message between processes


class StorageError(HpoError):
    """The storage cannot be opened, read or written."""


class UnknownStudyError(HpoError):
    """No study of that name is in the storage."""


class StudyBusyError(HpoError):
    """Another process is searching the study."""


class StudyClosedError(HpoError):
    """The study has no more trials for workers: `how` is `paused`, `stopped`, `changed` or `deleted`."""

    def __init__(self, message: str, how: Literal["paused", "stopped", "changed", "deleted"]) -> None:
        self.how = how
        super().__init__(message)


class TrainingError(HpoError):
    """Training raised the same error in several populations in a row.

    `raised` names the error and how often it was raised; `left` is true if the study has trials that have not failed.
    """

    def __init__(self, study: str, raised: str, left: bool) -> None:
        self.raised = raised
        others, none = (
            "the other trials are waiting: launch again to continue",
            "correct it and launch under another --name",
        )
        super().__init__(f"study '{study}': {raised}; {others if left else none}")


class InterruptionError(HpoError):
    """Stopped before there was a result to store; the command line exits with the signal's status."""


class UsageError(HpoError):
    """The command line or the study file is wrong."""

    exit_status = 2


class StudyFileError(UsageError):
    """One key of a study file is wrong.

    `source` is the file as the user named it, `key` the dotted key ("" for the file as a whole).
    """

    def __init__(self, source: str, key: str, problem: str) -> None:
        self.source, self.key, self.problem = source, key, problem
        super().__init__(": ".join(part for part in (source, key, problem) if part))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known name closest to `name`, or "" if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
