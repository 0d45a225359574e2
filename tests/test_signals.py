"""Signals that ask for a stop: wherever they interrupt the main thread, and however often."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from deadlines import deadline

from hpo.signals import Request


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """An event that SIGUSR1 asks for."""
    event = threading.Event()
    request = Request(event)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: request())
    yield event
    signal.signal(signal.SIGUSR1, before)


def test_it_interrupts_who_holds_the_events_own_lock(stop: threading.Event) -> None:
    with stop._cond:  # type: ignore[attr-defined]  # as `wait` and `set` hold it for a moment
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert not stop.is_set()
    assert stop.wait(deadline())


def test_only_the_first_is_a_request() -> None:
    stop = threading.Event()
    request = Request(stop)
    assert request()
    assert stop.wait(deadline())
    assert not request()


def test_what_others_have_stopped_is_not_asked_to_stop() -> None:
    stop = threading.Event()
    stop.set()
    assert not Request(stop)()
