"""What each display shows of the same events."""

from __future__ import annotations

import io
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import replace

import pytest
from rich.console import Console

from hpo.results.display.progress import JsonProgress, LiveProgress, PlainProgress, QuietProgress, progress_on
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


HALVING = StudyStarted(**{**vars(STARTED), "expected_epochs": 4.0})
"""Of 8 trials 4 reach epoch 1 together, are frozen, and 1 of them goes on to epoch 3; each epoch takes 2 seconds."""
HALVING_EVENTS: list[Event] = [
    HALVING,
    PopulationStarted(members=(0, 1, 2, 3), epochs=1),
    EpochEnded(epoch=1, epochs=1, left=3, best=0.5),
    FrozenTrials(counts=((1, 3),)),
    PopulationEnded(
        members=(0, 1, 2, 3), completed=0, pruned=0, failed=1, best=None, seconds=1.5, frozen=3, frozen_at=1
    ),
    TrialsNotPromoted(members=(1, 2)),
    FrozenTrials(counts=((1, 1),)),
    FrozenTrials(counts=()),
    PopulationStarted(members=(3,), epochs=3),
    EpochEnded(epoch=2, epochs=3, left=1, best=0.5),
    EpochEnded(epoch=3, epochs=3, left=1, best=0.5),
    FrozenTrials(counts=((3, 1),)),
    PopulationEnded(members=(3,), completed=0, pruned=0, failed=0, best=None, seconds=3.0, frozen=1, frozen_at=3),
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


def test_plain_shows_frozen_trials_and_the_pace_of_epochs() -> None:
    assert shown(PlainProgress(console(), Clock()), HALVING_EVENTS).splitlines()[1:] == [
        "population: 3 frozen at epoch 1, 1 failed in 1.5 s; "
        "1/8 trials, 0 pruned, 1 failed, 3 frozen at epoch 1, 0.5 trials/s, 14 s left",
        "population: 1 frozen at epoch 3 in 3.0 s; "
        "3/8 trials, 2 pruned, 1 failed, 1 frozen at epoch 3, 0.4 trials/s, 17 s left",
    ]


def test_the_time_left_is_not_shown_once_more_epochs_than_expected_are_trained() -> None:
    started = StudyStarted(**{**vars(HALVING), "trials": 4, "expected_epochs": 1.0})
    line = shown(PlainProgress(console(), Clock()), [started, *HALVING_EVENTS[1:]]).splitlines()[-1]
    assert line.endswith("3/4 trials, 2 pruned, 1 failed, 1 frozen at epoch 3, 1.5 trials/s")


def test_trials_that_others_end_count_in_the_pace_of_halving() -> None:
    others = OthersEnded(completed=1, pruned=2, failed=0)
    display = PlainProgress(console(), Clock())
    shown(display, [HALVING, WorkersSeen(workers=(), epochs=9), others])
    assert display.tally.line() == "3/8 trials, 2 pruned, 0 failed, 0.8 trials/s, 6.7 s left"


def test_live_shows_frozen_trials_on_a_line_of_their_own() -> None:
    display = LiveProgress(console(terminal=True), Clock())
    shown(display, HALVING_EVENTS)
    population, study, frozen = display.bars.tasks
    assert population.fields["text"] == "epoch 3 of 3, 1 of 1 members left, best so far 0.5000"
    assert study.fields["text"] == "3/8 trials, 2 pruned, 1 failed, 0.1 trials/s, 1 min 01 s left"
    assert study.completed == 1.5  # 6 epochs of 4 that are expected
    assert (frozen.fields["text"], frozen.completed, frozen.total) == ("1 at epoch 3", 1, 8)
    assert frozen.visible
    display(FrozenTrials(counts=()))
    assert not frozen.visible


def test_live_shows_the_frozen_trials_of_a_crew() -> None:
    display = LiveProgress(console(terminal=True), Clock())
    seen = WorkersSeen(
        workers=(WorkerSeen("vm:1", "cpu", 2, 4, frozen=5), WorkerSeen("vm:2", "cpu", 0, 0, 3)), epochs=9
    )
    shown(display, [HALVING, FrozenTrials(counts=((1, 8),)), seen])
    assert [task.fields["text"] for task in display.bars.tasks if task.visible] == [
        "0/8 trials, 0 pruned, 0 failed",
        "8 at epoch 1",
        "epoch 4 of 9, 2 members, 5 frozen on cpu",
        "3 frozen on cpu",
    ]


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


def test_a_population_of_several_shapes_names_its_stacks() -> None:
    one = PopulationEnded(members=(0, 1, 2, 3), completed=4, pruned=0, failed=0, best=0.5, seconds=1.0)
    for shapes, stacks, text in ((3, 2, " (3 shapes in 2 stacks),"), (2, 1, " (2 shapes in 1 stack),"), (1, 2, ",")):
        line = shown(PlainProgress(console(), Clock()), [STARTED, replace(one, shapes=shapes, stacks=stacks)])
        assert f"4 completed, 0 pruned, 0 failed in 1.0 s{text} best so far" in line
