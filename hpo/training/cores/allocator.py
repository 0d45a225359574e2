"""Settings of the C library's memory allocator for training on a CPU. Linux with glibc only; elsewhere nothing is done.

A step allocates and frees the same tensors again and again. By default glibc returns freed memory to the operating
system, which then zeroes and maps each page anew in the next step. A stack of 16 spent about a tenth of its time on
that, and different amounts in different processes (docs/explanation/log.md).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""

LARGEST = 2**31 - 1
"""The largest value of a parameter."""

LARGEST_REUSED_BYTES = 2**25
"""The largest block that is reused; glibc accepts no larger number."""


@contextmanager
def reused_memory() -> Iterator[None]:
    """Let the process reuse the memory of freed tensors; at the end, return it to the operating system."""
    if (library := _glibc()) is None:
        yield
        return
    library.mallopt(MMAP_THRESHOLD, LARGEST_REUSED_BYTES)
    library.mallopt(TRIM_THRESHOLD, LARGEST)
    try:
        yield
    finally:
        return_freed_memory()


def return_freed_memory() -> None:
    """Return the memory of freed tensors to the operating system."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> Any:
    """Return the C library if it is glibc, else None."""
    try:
        library = ctypes.CDLL(None)
        return library if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # Windows
        return None
