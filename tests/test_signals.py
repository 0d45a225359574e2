"""Stop requests from signals, wherever they interrupt the main thread and however often."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
from deadlines import deadline

from hpo.signals import StopRequest


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    """An event that SIGUSR1 sets."""
    event = threading.Event()
    request = StopRequest(event)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: request())
    yield event
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_may_interrupt_the_owner_of_the_lock(stop: threading.Event) -> None:
    with stop._cond:  # type: ignore[attr-defined]  # the lock of `wait` and `set`
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        assert not stop.is_set()
    assert stop.wait(deadline())


def test_only_the_first_call_is_a_request() -> None:
    stop = threading.Event()
    request = StopRequest(stop)
    assert request()
    assert stop.wait(deadline())
    assert not request()


def test_an_event_that_is_set_already_needs_no_request() -> None:
    stop = threading.Event()
    stop.set()
    assert not StopRequest(stop)()
