"""What a user sees as one line, never as a traceback.

    HpoError                    exit status 1: a failure the user can act on
    +- DataError                a data set's file is missing, damaged or not what it claims to be
    +- CodeError                the user's own code is missing, cannot be imported or is not what the study began with
    +- SettingError             one setting of a trial proves wrong where it is used
    +- StorageError             the storage cannot be opened, read or written
    +- UnknownStudyError        no study of that name in the storage
    +- StudyBusyError           another process is searching that study
    +- StudyClosedError         the study was paused, stopped, changed or deleted
    +- TrainingError            training raised the same in one population after another
    +- InterruptionError        a stop was asked for before there was anything to keep
    +- UsageError               exit status 2: the command or the study file is wrong
       +- StudyFileError        one key of a study file: `studies/x.toml: optimizer.lr.low: must be above 0`

A message names the thing, what is wrong with it, and what to do. It is one printable line, whatever text of files and
storages is in it: the command line prints it as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal

from hpo.text import printable


class HpoError(Exception):
    """A failure the user can act on."""

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


class DataError(HpoError):
    """A data set's file is missing, damaged or not what it claims to be."""


class CodeError(HpoError):
    """The user's own code is missing, cannot be imported or is not what the study began with."""


class SettingError(HpoError):
    """One setting of a trial proves wrong where it is used: `key` is its place in the study file."""

    def __init__(self, key: str, problem: str) -> None:
        self.key, self.problem = key, problem
        super().__init__(f"{key}: {problem}")


class StorageError(HpoError):
    """The storage cannot be opened, read or written."""


class UnknownStudyError(HpoError):
    """No study of that name is in the storage."""


class StudyBusyError(HpoError):
    """Another process is searching the study."""


class StudyClosedError(HpoError):
    """The study gives out no more trials: `how` is `paused`, `stopped`, `changed` or `deleted`."""

    def __init__(self, message: str, how: Literal["paused", "stopped", "changed", "deleted"]) -> None:
        self.how = how
        super().__init__(message)


class TrainingError(HpoError):
    """Training raised the same in one population after another: `raised` says what, and how often.

    `left` says whether the study has trials that have not failed.
    """

    def __init__(self, study: str, raised: str, left: bool) -> None:
        self.raised = raised
        waits, none = "what has not failed waits: launch again to go on", "mend that, and launch under another --name"
        super().__init__(f"study '{study}': {raised}; {waits if left else none}")


class InterruptionError(HpoError):
    """A stop was asked for before there was anything to keep; the command line gives it the signal's status."""


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
    """Return ` (did you mean 'x'?)` for the known name closest to `name`, or "" where none is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""
