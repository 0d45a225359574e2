"""Garbage collection in the process of a command: none during its start-up, and none at its exit.

torch, scikit-learn and the other packages create 600,000 objects that live until the process ends. Collections during
their import, and one of all objects at exit, would traverse these objects again and again. This module uses nothing
else of hpo.
"""

from __future__ import annotations

import atexit
import gc

STARTUP_OBJECTS = 700_000
"""New objects after which the start-up of any command has ended."""

COLLECTION_THRESHOLD = 10_000
"""New objects after which the garbage collector runs, instead of Python's 700."""


def delay() -> None:
    """Run the garbage collector less often than Python does, and not at exit."""
    gc.set_threshold(COLLECTION_THRESHOLD)
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def begin_startup() -> None:
    """Run no collection until `end_startup`, or until `STARTUP_OBJECTS` objects exist."""
    gc.set_threshold(STARTUP_OBJECTS)
    gc.callbacks.append(_at_first_collection)


def end_startup() -> None:
    """End the start-up, if it has not ended: exempt all its objects from later collections. Only the first call acts.

    To be called before long work that creates large garbage.
    """
    if _at_first_collection in gc.callbacks:
        gc.callbacks.remove(_at_first_collection)
        gc.freeze()
        gc.set_threshold(COLLECTION_THRESHOLD)


def _at_first_collection(phase: str, info: dict[str, int]) -> None:
    """End the start-up of a command that does not call `end_startup`."""
    gc.callbacks.remove(_at_first_collection)
    gc.set_threshold(COLLECTION_THRESHOLD)
