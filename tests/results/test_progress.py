"""What each display shows of the same events."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterable

import pytest
from rich.console import Console

from hpo.results.display.progress import JsonProgress, LiveProgress, PlainProgress, QuietProgress, progress_on
from hpo.search.events import (
    EpochEnded,
    Event,
    Note,
    OthersEnded,
    PopulationEnded,
    PopulationStarted,
    StudyEnded,
    StudyStarted,
)

STARTED = StudyStarted(
    study="digits [bold]x[/]",
    trials=8,
    finished=0,
    pruned=0,
    failed=0,
    population=4,
    device="cpu",
    precision="float32",
    parameters=12345,
    images=400,
)
EVENTS: list[Event] = [
    STARTED,
    PopulationStarted(members=(0, 1, 2, 3), epochs=2),
    EpochEnded(epoch=1, epochs=2, left=4, best=0.5),
    EpochEnded(epoch=2, epochs=2, left=3, best=0.75),
    PopulationEnded(members=(0, 1, 2, 3), completed=3, pruned=1, failed=0, best=0.75, seconds=1.5),
    Note(text="[red]file[/red] has changed", level="warning"),
    Note(text="going on", level="info"),
    PopulationStarted(members=(4, 5, 6, 7), epochs=2),
    PopulationEnded(members=(4, 5, 6, 7), completed=2, pruned=1, failed=1, best=None, seconds=90.0),
    StudyEnded(reason="finished", completed=5, pruned=2, failed=1, seconds=91.5),
]


class Clock:
    """Time that passes two seconds each time it is asked for."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 2.0
        return self.now


def console(terminal: bool = False, **environment: str) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=200,
        color_system=None,
        _environ={"TERM": "xterm", **environment},
    )


def shown(display: QuietProgress, events: Iterable[Event] = EVENTS) -> str:
    with display:
        for event in events:
            display(event)
    file = display.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_quiet_shows_warnings_only() -> None:
    assert shown(QuietProgress(console())) == "warning: [red]file[/red] has changed\n"


def test_plain_shows_a_line_a_population() -> None:
    assert shown(PlainProgress(console(), Clock())).splitlines() == [
        "digits [bold]x[/]: 8 trials, 4 at once on cpu in float32, 12,345 parameters a network",
        "population: 3 completed, 1 pruned, 0 failed in 1.5 s, best so far 0.7500; "
        "4/8 trials, 1 pruned, 0 failed, 2.0 trials/s, 2.0 s left",
        "warning: [red]file[/red] has changed",
        "going on",
        "population: 2 completed, 1 pruned, 1 failed in 1 min 30 s, best so far 0.7500; "
        "8/8 trials, 2 pruned, 1 failed, 2.0 trials/s, 0.0 s left",
    ]


@pytest.mark.parametrize(("minimized", "best"), [(False, [0.8, 0.8, 0.9]), (True, [0.7, 0.5, 0.5])])
def test_the_best_so_far_is_that_of_the_study(minimized: bool, best: list[float]) -> None:
    start = StudyStarted(
        **{**vars(STARTED), "finished": 4, "best": 0.8 if not minimized else 0.7, "minimized": minimized}
    )
    population = PopulationEnded(members=(4,), completed=1, pruned=0, failed=0, best=0.75, seconds=1.0)
    others = OthersEnded(completed=2, pruned=0, failed=0, best=0.5)
    last = PopulationEnded(members=(7,), completed=1, pruned=0, failed=0, best=0.9, seconds=1.0)
    lines = shown(PlainProgress(console(), Clock()), [start, population, others, population, last]).splitlines()
    assert [f"best so far {value:.4f}; " in line for value, line in zip(best, lines[1:], strict=True)] == [True] * 3


def test_a_study_that_goes_on_is_paced_by_this_launch() -> None:
    again = StudyStarted(**{**vars(STARTED), "trials": 100, "finished": 50, "pruned": 6, "failed": 4})
    ended = PopulationEnded(members=(0, 1, 2, 3), completed=4, pruned=0, failed=0, best=0.5, seconds=1.0)
    opening, line = shown(PlainProgress(console(), Clock()), [again, ended]).splitlines()
    assert "100 trials, 60 of them done before" in opening
    assert line.endswith("64/100 trials, 6 pruned, 4 failed, 2.0 trials/s, 18 s left")


def test_a_slow_study_is_paced_by_the_minute() -> None:
    events = [
        StudyStarted(**{**vars(STARTED), "trials": 4000}),
        PopulationEnded(members=(0, 1, 2, 3), completed=1, pruned=0, failed=0, best=0.5, seconds=1.0),
    ]
    clock = iter([0.0, 0.0, 60.0])
    text = shown(PlainProgress(console(), lambda: next(clock)), events)
    assert text.endswith("1/4000 trials, 0 pruned, 0 failed, 1.0 trials/min, 66 h 39 min left\n")


def test_live_shows_the_population_and_the_study() -> None:
    display = LiveProgress(console(terminal=True), Clock())
    with display:
        for event in EVENTS[:4]:
            display(event)
        display.bars.refresh()
        population, study = (task.fields["text"] for task in display.bars.tasks)
    assert population == "epoch 2 of 2, 3 of 4 members left, best so far 0.7500"
    assert study == "0/8 trials, 0 pruned, 0 failed, 0.5 trials/s, 10 s left"
    text = display.console.file.getvalue()  # type: ignore[attr-defined]
    assert "epoch 2 of 2, 3 of 4 members left" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_live_fits_a_terminal_of_eighty_columns() -> None:
    narrow = console(terminal=True)
    narrow.width = 80
    text = shown(LiveProgress(narrow, Clock()), EVENTS[:4])
    assert "0/8 trials, 0 pruned, 0 failed, 0.5 trials/s, 10 s left" in text
    assert "epoch 2 of 2, 3 of 4 members left, best so far 0.7500" in text
    assert "…" not in text


def test_live_lets_notes_scroll_by_unread_as_markup() -> None:
    text = shown(LiveProgress(console(terminal=True), Clock()))
    assert "warning: [red]file[/red] has changed" in text
    assert "digits [bold]x[/]: 8 trials" in text


def test_live_restores_the_terminal_after_an_error() -> None:
    display = LiveProgress(console(terminal=True))
    with pytest.raises(ZeroDivisionError), display:
        raise ZeroDivisionError
    assert display.console.file.getvalue().endswith("\x1b[?25h")  # type: ignore[attr-defined]


def test_json_is_one_object_an_event() -> None:
    stream = io.StringIO()
    assert shown(JsonProgress(console(), stream, threading.Event())) == ""
    objects = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert objects == [json.loads(json.dumps(event.to_json())) for event in EVENTS]  # a tuple becomes a list
    assert all(isinstance(each["event"], str) for each in objects)


def test_a_reader_that_goes_away_ends_the_search() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stop = threading.Event()
    stream = open(writing, "w")  # noqa: SIM115 - closing it fails too, and is not what is tested
    display = JsonProgress(console(), stream, stop)
    display(STARTED)
    assert stop.is_set()
    display(EVENTS[-1])  # and what follows is dropped
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_every_display_knows_how_the_study_ended() -> None:
    interrupted = StudyEnded(reason="interrupted", completed=1, pruned=0, failed=0, seconds=1.0)
    for display in (QuietProgress(console()), JsonProgress(console(), io.StringIO(), threading.Event())):
        assert display.interrupted  # no end has been seen yet
        shown(display)
        assert not display.interrupted
        display(interrupted)
        assert display.interrupted
        assert display.ended == interrupted


@pytest.mark.parametrize(
    ("console", "kind"),
    [
        (console(True), LiveProgress),
        (console(), PlainProgress),
        (console(True, TERM="dumb"), PlainProgress),
    ],
)
def test_the_display_suits_the_terminal(console: Console, kind: type[QuietProgress]) -> None:
    assert type(progress_on(console)) is kind
