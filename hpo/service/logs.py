"""The log of a worker: a line an event, as text or as JSON, each with the study, the trials' numbers and the worker.

Python's own log records, such as that of a storage that is away, go the same way. Epochs are not logged: the storage
has what became of them, and metrics count them.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import IO, Any

from hpo.results.display.progress import failure_line, labelled, not_trained_line, population_line, start_line
from hpo.search.events import (
    Event,
    Note,
    PopulationEnded,
    PopulationStarted,
    StudyEnded,
    StudyStarted,
    TrialsFailed,
    TrialsLeftOut,
)
from hpo.text import json_line, printable

LOGGER = logging.getLogger("hpo")


def log_events(log: logging.Logger = LOGGER) -> Callable[[str, Event], None]:
    """Return what logs an event of a study."""

    def note(study: str, event: Event) -> None:
        said = sentence(event)
        if said is not None:
            is_warning = isinstance(event, TrialsFailed) or (isinstance(event, Note) and event.level == "warning")
            level = logging.WARNING if is_warning else logging.INFO
            log.log(level, "%s: %s", study, said, extra={"hpo_study": study, "hpo_event": event})

    return note


def sentence(event: Event) -> str | None:
    """Return what a line says of an event, None where it has none."""
    match event:
        case StudyStarted():
            return start_line(event).removeprefix(f"{event.study}: ")
        case PopulationStarted():
            return f"population of {len(event.members)} begins, trials {ranges(event.members)}"
        case PopulationEnded():
            return f"{population_line(event)}{labelled('its best', event.best)}, trials {ranges(event.members)}"
        case Note():
            return event.text
        case TrialsFailed():
            return failure_line(event)
        case TrialsLeftOut():
            return not_trained_line(event)
        case StudyEnded():
            counts = f"{event.completed} completed, {event.pruned} pruned, {event.failed} failed"
            return f"{event.reason}, {counts}"
        case _:
            return None


def ranges(numbers: Sequence[int]) -> str:
    """Return `0-3, 7` for 0, 1, 2, 3 and 7."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(sorted(numbers)), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


class TextFormatter(logging.Formatter):
    """`2026-11-21T07:40:00Z info vm:4711 digits: population of 16 begins, trials 0-15`."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self.worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        said = printable(" ".join(record.getMessage().split()))
        return f"{_time(record)} {record.levelname.lower()} {self.worker} {said}"


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time, level, worker, message, and for an event its name, its study and its fields."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self.worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "worker": self.worker}
        event = getattr(record, "hpo_event", None)
        if event is not None:
            line |= {"study": getattr(record, "hpo_study", ""), **event.to_json()}
        return json_line({**line, "message": " ".join(record.getMessage().split())})


FORMATTERS: dict[str, Callable[[str], logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def start_log(stream: IO[str], form: str, worker: str) -> None:
    """Let the log go to a stream from now on, in one of `FORMATTERS`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(FORMATTERS[form](worker))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def _time(record: logging.LogRecord) -> str:
    return f"{datetime.datetime.fromtimestamp(record.created, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
