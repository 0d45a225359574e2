"""Ctrl-C in a program: the first one stops a search gracefully, the second at once."""

from __future__ import annotations

import signal
import threading

import pytest
from tiny import tree

import hpo
from hpo.api.interruption import stop_event
from hpo.search.events import EpochEnded, Event

RUNS = "sqlite:///runs.db"


def press(event: Event) -> None:
    if isinstance(event, EpochEnded):
        signal.raise_signal(signal.SIGINT)


def press_twice(event: Event) -> None:
    press(event)
    press(event)


def test_ctrl_c_stops_a_search_and_the_same_call_continues() -> None:
    found = hpo.launch(tree(), storage=RUNS, device="cpu", progress=press)
    assert found.interrupted
    assert found.ended is not None
    assert found.ended.reason == "interrupted"
    assert found.status.counts["running"] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not hpo.launch(tree(), storage=RUNS, device="cpu", progress="quiet").interrupted
    assert len(hpo.load("tiny", storage=RUNS).trials()) == 6


def test_a_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt):
        hpo.launch(tree(), storage=RUNS, device="cpu", progress=press_twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert hpo.load("tiny", storage=RUNS).status.counts["running"] == 0


def test_a_stop_without_a_result_raises() -> None:
    found = hpo.launch(tree(), storage=RUNS, device="cpu", progress="quiet")
    with pytest.raises(hpo.InterruptionError, match="tiny-confirm: interrupted; confirm 'tiny' again to go on"):
        found.confirm(top=1, seeds=2, device="cpu", progress=press)
    stop = threading.Event()
    stop.set()
    with pytest.raises(hpo.InterruptionError):
        found.verify(1, device="cpu", stop=stop)
    (second,) = found.rounds(2, device="cpu", progress="quiet", stop=stop)
    assert second.interrupted


@pytest.mark.parametrize("own_event", [True, False])
def test_the_callers_event_or_handler_stays_in_use(own_event: bool) -> None:
    stop = threading.Event() if own_event else None
    handler = signal.default_int_handler if own_event else lambda number, frame: None
    before = signal.signal(signal.SIGINT, handler)
    try:
        with stop_event(stop) as event:
            assert signal.getsignal(signal.SIGINT) is handler
            assert event is stop or not own_event
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_handles_no_signals() -> None:
    entered: list[threading.Event] = []

    def enter() -> None:
        with stop_event(None) as event:
            entered.append(event)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(entered) == 1
