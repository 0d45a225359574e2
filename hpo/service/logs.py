"""Log of a worker: one line for each event, as text or JSON, with the study, the trials' numbers and the worker.

Other log records of hpo, such as a storage that cannot be reached, are written the same way. Epochs are not logged:
the storage has their values, and the metrics count them.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from typing import IO, Any

from hpo.results.display.event_lines import (
    failure_line,
    labelled,
    not_promoted_line,
    not_trained_line,
    population_line,
    start_line,
)
from hpo.search.events import (
    Event,
    Note,
    PopulationEnded,
    PopulationStarted,
    StudyEnded,
    StudyStarted,
    TrialsFailed,
    TrialsLeftOut,
    TrialsNotPromoted,
)
from hpo.text import json_line, number_ranges, printable

LOGGER = logging.getLogger("hpo")


def event_logger(log: logging.Logger = LOGGER) -> Callable[[str, Event], None]:
    """Return a function that logs an event of a study."""

    def log_event(study: str, event: Event) -> None:
        text = sentence(event)
        if text is not None:
            is_warning = isinstance(event, TrialsFailed) or (isinstance(event, Note) and event.level == "warning")
            level = logging.WARNING if is_warning else logging.INFO
            log.log(level, "%s: %s", study, text, extra={"hpo_study": study, "hpo_event": event})

    return log_event


def sentence(event: Event) -> str | None:
    """Return the log message of an event, None for an event that is not logged."""
    match event:
        case StudyStarted():
            return start_line(event).removeprefix(f"{event.study}: ")
        case PopulationStarted():
            return f"population of {len(event.members)} begins, trials {number_ranges(event.members)}"
        case PopulationEnded():
            return f"{population_line(event)}{labelled('its best', event.best)}, trials {number_ranges(event.members)}"
        case Note():
            return event.text
        case TrialsFailed():
            return failure_line(event)
        case TrialsLeftOut():
            return not_trained_line(event)
        case TrialsNotPromoted():
            return not_promoted_line(event)
        case StudyEnded():
            counts = f"{event.completed} completed, {event.pruned} pruned, {event.failed} failed"
            return f"{event.reason}, {counts}"
        case _:
            return None


class TextFormatter(logging.Formatter):
    """Formatter of `2026-11-21T07:40:00Z info vm:4711 digits: population of 16 begins, trials 0-15`."""

    def __init__(self, worker: str) -> None:
        super().__init__()
        self.worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        message = printable(" ".join(record.getMessage().split()))
        return f"{_time(record)} {record.levelname.lower()} {self.worker} {message}"


class JsonFormatter(logging.Formatter):
    """Formatter of JSON lines: time, level, worker, message, and for an event its name, study and fields."""

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
    """Write hpo's log to a stream, in one of `FORMATTERS`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(FORMATTERS[form](worker))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def _time(record: logging.LogRecord) -> str:
    return f"{datetime.datetime.fromtimestamp(record.created, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
