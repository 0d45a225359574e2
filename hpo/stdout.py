"""Stdout, kept for what hpo itself says there: whatever else comes to stdout goes to stderr meanwhile.

The user's own code may print while it is imported and while it runs, and so may a C library or a child process of it.
None of that shall stand between the lines of a program's output, so the file descriptor itself is another one.

    with kept():
        print("from anywhere")      # on stderr, as what a child process prints
        own().write("from hpo")     # on stdout

This module knows nothing of the rest of hpo.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

STDOUT, STDERR = 1, 2  # file descriptors


@dataclass(frozen=True)
class _Kept:
    """What hpo writes to, and a descriptor of the stdout that the process has."""

    stream: TextIO
    descriptor: int


_LOCK = threading.Lock()
_now: _Kept | None = None


def own() -> TextIO:
    """Return stdout for what hpo says itself; who writes flushes."""
    return sys.stdout if _now is None else _now.stream


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Send to stderr what is written to stdout in the block, but to `own`; within another such block, do nothing."""
    global _now
    before = sys.stdout
    with _LOCK:
        nested = _now is not None
        if not nested:
            before.flush()
            descriptor = _open(STDOUT)
            _now = _Kept(_stream(before, descriptor), descriptor)
            _turn_to(STDERR)
            sys.stdout = sys.stderr
    if nested:
        yield
        return
    try:
        yield
    finally:
        held, _now = _now, None
        assert held is not None, "it was set above"
        before.flush()  # what was written to the stream of before by who had kept it
        ctypes.CDLL(None).fflush(None)  # and what C libraries have not written yet
        os.dup2(held.descriptor, STDOUT)
        sys.stdout = before
        _close(held, before)


@contextlib.contextmanager
def given_back() -> Iterator[None]:
    """Let the block open stdout by a path such as /dev/stdout, also where it is kept."""
    if _now is None:
        yield
        return
    os.dup2(_now.descriptor, STDOUT)
    try:
        yield
    finally:
        _turn_to(STDERR)


def leave() -> None:
    """Send to stderr whatever this process still prints: hpo has said all that it says."""
    sys.stdout.flush()
    _turn_to(STDERR)
    sys.stdout = sys.stderr


def _turn_to(number: int) -> None:
    """Let stdout's descriptor mean what another one does."""
    other = _open(number)
    os.dup2(other, STDOUT)
    os.close(other)


def _open(number: int) -> int:
    """Return another descriptor of the same; of /dev/null where the process began without it."""
    try:
        return os.dup(number)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)


def _stream(before: TextIO, descriptor: int) -> TextIO:
    """Return what writes as `before` did: itself, unless it writes to stdout's descriptor."""
    try:
        if before.fileno() != STDOUT:
            return before
    except (OSError, ValueError):  # it has none, such as a notebook's
        return before
    buffering = 1 if before.isatty() else -1  # 1: by lines
    return open(descriptor, "w", buffering, before.encoding, before.errors, closefd=False)


def _close(held: _Kept, before: TextIO) -> None:
    try:
        held.stream.flush()
    finally:
        if held.stream is not before:
            with contextlib.suppress(OSError):  # the flush has said it
                held.stream.close()
        os.close(held.descriptor)
