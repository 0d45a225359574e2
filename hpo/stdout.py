"""Stdout reserved for hpo's own output; all other output to stdout goes to stderr.

The user's code, a C library or a child process may print at any time, and none of that may mix with a command's
output. Therefore the file descriptor itself is redirected.

    with reserved():
        print("from anywhere")         # to stderr, like the output of child processes
        stream().write("from hpo")     # to stdout

This module uses nothing else of hpo.
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
class _Reserved:
    """The stream for hpo's output, and a duplicate of the original stdout descriptor."""

    stream: TextIO
    descriptor: int


_LOCK = threading.Lock()
_reserved: _Reserved | None = None


def stream() -> TextIO:
    """Return stdout for hpo's own output; the caller flushes it."""
    return sys.stdout if _reserved is None else _reserved.stream


@contextlib.contextmanager
def reserved() -> Iterator[None]:
    """Redirect all output to stdout except that to `stream()` to stderr; do nothing within another such block."""
    global _reserved
    original = sys.stdout
    with _LOCK:
        nested = _reserved is not None
        if not nested:
            original.flush()
            descriptor = _duplicate(STDOUT)
            _reserved = _Reserved(_stream_for(original, descriptor), descriptor)
            _redirect_stdout(STDERR)
            sys.stdout = sys.stderr
    if nested:
        yield
        return
    try:
        yield
    finally:
        ended, _reserved = _reserved, None
        assert ended is not None, "it was set above"
        original.flush()  # output of code that had stored the original stream
        ctypes.CDLL(None).fflush(None)  # buffered output of C libraries
        os.dup2(ended.descriptor, STDOUT)
        sys.stdout = original
        _close(ended, original)


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Restore the original descriptor within a reserved block, so that /dev/stdout can be opened."""
    if _reserved is None:
        yield
        return
    os.dup2(_reserved.descriptor, STDOUT)
    try:
        yield
    finally:
        _redirect_stdout(STDERR)


def redirect_to_stderr() -> None:
    """Redirect all further output of this process to stderr, once hpo's own output is complete."""
    sys.stdout.flush()
    _redirect_stdout(STDERR)
    sys.stdout = sys.stderr


def _redirect_stdout(number: int) -> None:
    """Make stdout's descriptor a duplicate of another one."""
    other = _duplicate(number)
    os.dup2(other, STDOUT)
    os.close(other)


def _duplicate(number: int) -> int:
    """Return a duplicate of a descriptor; one of /dev/null where the process was started without it."""
    try:
        return os.dup(number)
    except OSError:
        return os.open(os.devnull, os.O_RDWR)


def _stream_for(original: TextIO, descriptor: int) -> TextIO:
    """Return a stream to `descriptor` like the original; the original itself unless it writes to stdout."""
    try:
        if original.fileno() != STDOUT:
            return original
    except (OSError, ValueError):  # no descriptor, as in a notebook
        return original
    buffering = 1 if original.isatty() else -1  # 1: line by line
    return open(descriptor, "w", buffering, original.encoding, original.errors, closefd=False)


def _close(ended: _Reserved, original: TextIO) -> None:
    try:
        ended.stream.flush()
    finally:
        if ended.stream is not original:
            with contextlib.suppress(OSError):  # `flush` has raised it already
                ended.stream.close()
        os.close(ended.descriptor)
