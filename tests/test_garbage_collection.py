"""Tests of the garbage collection in the process of a command."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import study_of

from hpo import garbage_collection
from hpo.garbage_collection import COLLECTION_THRESHOLD, STARTUP_OBJECTS, begin_startup, delay, end_startup
from hpo.search.events import EpochEnded, Event, StudyStarted
from hpo.search.launch import launch
from hpo.storage import open_storage

AFTER = """
import gc, sys
from hpo import garbage_collection
from hpo.cli import main
sys.argv = ["hpo", "--help"]
main()
assert gc.get_threshold()[0] == garbage_collection.STARTUP_OBJECTS, gc.get_threshold()
"""


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    end_startup()
    gc.set_threshold(*before)


def test_nothing_is_collected_during_the_start_up_and_its_objects_never() -> None:
    delay()
    begin_startup()
    collections = gc.get_stats()[0]["collections"]
    new = [[] for _ in range(2 * COLLECTION_THRESHOLD)]
    assert gc.get_stats()[0]["collections"] == collections
    end_startup()
    assert gc.get_threshold()[0] == COLLECTION_THRESHOLD
    frozen = gc.get_freeze_count()
    assert frozen >= len(new)
    end_startup()  # a second call exempts nothing more; objects that nobody needs any more are freed
    assert gc.get_freeze_count() <= frozen


def test_a_search_ends_the_start_up_before_its_first_trial(tmp_path: Path) -> None:
    begin_startup()
    thresholds: dict[type, int] = {}

    def record(event: Event) -> None:
        thresholds.setdefault(type(event), gc.get_threshold()[0])

    storage = open_storage(f"sqlite:///{tmp_path / 'x.db'}")
    launch(study_of(search={"trials": 1}), storage, on_event=record, stop=threading.Event())
    storage.close()
    assert thresholds[StudyStarted] == STARTUP_OBJECTS
    assert thresholds[EpochEnded] == COLLECTION_THRESHOLD


def test_a_command_that_does_not_end_its_start_up_collects_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage_collection, "STARTUP_OBJECTS", 2 * COLLECTION_THRESHOLD)
    begin_startup()
    frozen, collections = gc.get_freeze_count(), gc.get_stats()[0]["collections"]
    new = [[] for _ in range(5 * COLLECTION_THRESHOLD)]
    assert len(new) > gc.get_stats()[0]["collections"] > collections
    assert gc.get_threshold()[0] == COLLECTION_THRESHOLD
    assert gc.get_freeze_count() <= frozen  # nothing more is exempt


def test_the_process_of_a_command_delays_its_collections() -> None:
    subprocess.run([sys.executable, "-c", AFTER], check=True, capture_output=True, timeout=60)
