"""The log of a worker: a line an event, whatever it holds, as text and as JSON."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from hpo.search.events import (
    EpochEnded,
    Event,
    FrozenTrials,
    Note,
    OthersEnded,
    PopulationEnded,
    PopulationStarted,
    StudyEnded,
    StudyStarted,
    TrialsNotPromoted,
    WorkerSeen,
    WorkersSeen,
)
from hpo.service.logs import LOGGER, event_logger, start_log
from hpo.text import number_ranges

WORKER = "vm:4711"
STARTED = StudyStarted("tiny", 8, 1, 0, 0, 4, "cpu", "float32", 1234, 120)
SAID: list[tuple[Event, str]] = [
    (STARTED, "8 trials, 1 of them done before, 4 at once on cpu in float32, 1,234 parameters a network"),
    (PopulationStarted((4, 0, 1, 2), 9), "population of 4 begins, trials 0-2, 4"),
    (
        PopulationEnded((0, 1), 1, 1, 0, 0.5, 1.25),
        "population: 1 completed, 1 pruned, 0 failed in 1.2 s, its best 0.5",
    ),
    (PopulationEnded((0,), 0, 0, 1, None, 61), "population: 0 completed, 0 pruned, 1 failed in 1 min 01 s, trials 0"),
    (
        PopulationEnded((0, 1, 2), 0, 0, 1, None, 2.0, frozen=2, frozen_at=3),
        "population: 2 frozen at epoch 3, 1 failed in 2.0 s, trials 0-2",
    ),
    (TrialsNotPromoted((4, 7, 5)), "3 trials not promoted from a rung, pruned: trials 4-5, 7"),
    (Note("2 orphaned trials requeued: the worker that trained them is dead"), "2 orphaned trials requeued"),
    (StudyEnded("finished", 8, 0, 0, 3.5), "finished, 8 completed, 0 pruned, 0 failed"),
]
SILENT: list[Event] = [
    EpochEnded(1, 9, 2, 0.5),
    FrozenTrials(((3, 2),)),
    OthersEnded(1, 0, 0),
    WorkersSeen((WorkerSeen("vm:1", "cpu", 4, 1),), 9),
]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """A stream for the log, which is as it was after the test."""
    handlers, level, propagate = list(LOGGER.handlers), LOGGER.level, LOGGER.propagate
    yield io.StringIO()
    LOGGER.handlers, LOGGER.propagate = handlers, propagate
    LOGGER.setLevel(level)


@pytest.mark.parametrize(("event", "said"), SAID)
def test_an_event_is_one_line_of_text(stream: io.StringIO, event: Event, said: str) -> None:
    start_log(stream, "text", WORKER)
    event_logger()("tiny", event)
    (line,) = stream.getvalue().splitlines()
    time, level, worker, rest = line.split(" ", 3)
    assert time.endswith("Z")
    assert (level, worker) == ("info", WORKER)
    assert rest.startswith(f"tiny: {said}")


@pytest.mark.parametrize(("event", "said"), SAID)
def test_an_event_is_one_object_with_all_its_fields(stream: io.StringIO, event: Event, said: str) -> None:
    start_log(stream, "json", WORKER)
    event_logger()("tiny", event)
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record["message"].startswith(f"tiny: {said}")
    fields = json.loads(json.dumps(event.to_json()))
    assert record == {**fields, **{key: record[key] for key in ("time", "level", "worker", "study", "message")}}
    assert (record["worker"], record["study"], record["level"]) == (WORKER, "tiny", "info")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("event", SILENT)
def test_what_the_storage_keeps_anyway_is_not_logged(stream: io.StringIO, form: str, event: Event) -> None:
    start_log(stream, form, WORKER)
    event_logger()("tiny", event)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_warning_is_one(stream: io.StringIO, form: str) -> None:
    start_log(stream, form, WORKER)
    event_logger()("tiny", Note("3 trials failed: out of memory", "warning"))
    assert "warning" in stream.getvalue()
    assert "info" not in stream.getvalue()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    "text", ["two\nlines", "carriage\rreturn", "tab\tand \x0b\x0c\x85\u2028 all that ends a line", "50% of %s and %d"]
)
def test_whatever_an_event_says_is_one_line(stream: io.StringIO, form: str, text: str) -> None:
    start_log(stream, form, WORKER)
    event_logger()("100% of %s", Note(text))
    assert len(stream.getvalue().splitlines()) == 1
    assert "100% of %s: " in stream.getvalue()


def test_no_name_can_move_the_cursor_of_who_reads_the_log(stream: io.StringIO) -> None:
    start_log(stream, "text", WORKER)
    event_logger()("evil\x1b[2J", Note("and \x07\x1b[1A its text"))
    assert stream.getvalue().removesuffix("\n").isprintable()


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_a_value_that_json_has_not_is_a_word(stream: io.StringIO, word: str) -> None:
    start_log(stream, "json", WORKER)
    event_logger()("tiny", PopulationEnded((0,), 1, 0, 0, float(word), 1.0))
    assert json.loads(stream.getvalue(), parse_constant=lambda constant: pytest.fail(constant))["best"] == word


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_the_rest_of_hpo_logs_goes_the_same_way(stream: io.StringIO, form: str) -> None:
    start_log(stream, form, WORKER)
    log = logging.getLogger("hpo.storage.sql.retry")
    log.warning("%s; trying again", "the server\nis away")
    log.debug("no heartbeat")
    logging.getLogger("another").error("not ours")
    (line,) = stream.getvalue().splitlines()
    assert "the server is away; trying again" in line
    assert WORKER in line
    assert "warning" in line


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((0, 1, 2, 3), "0-3"), ((7, 0, 1), "0-1, 7"), ((5, 3, 1), "1, 3, 5"), ((2, 1), "1-2")],
)
def test_numbers_are_given_as_ranges(numbers: tuple[int, ...], text: str) -> None:
    assert number_ranges(numbers) == text
