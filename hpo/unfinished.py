"""What is not whole yet: a file or folder with a hidden name beside what it will be, `.hpo-XXXXXXXX.part`.

Its process holds a lock on it. So one that nobody has locked is what a killed process has left, and whoever next makes
one in that folder removes it; where a file system has no locks, it stays. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX, SUFFIX = ".hpo-", ".part"
UMASK = os.umask(0)
"""Mode bits that new files of this process do not get; read before there are threads, as to read them sets them."""
os.umask(UMASK)


@contextlib.contextmanager
def unfinished(parent: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give an empty file, or folder, that only this user may read; it is removed at the end unless it was renamed.

    Raises OSError where none can be made.
    """
    for left in parent.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # somebody works on it, or it is another user's
            _remove(left, _lock(left, fcntl.LOCK_NB))
    path, lock = _made(parent, folder)
    try:
        yield path
    finally:
        _remove(path, lock)


def _made(parent: Path, folder: bool) -> tuple[Path, int]:
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(SUFFIX, PREFIX, parent))
        else:
            handle, name = tempfile.mkstemp(SUFFIX, PREFIX, parent)
            os.close(handle)
            path = Path(name)
        with contextlib.suppress(FileNotFoundError):  # between the two lines, another process took it for left
            lock = _lock(path)
            if path.exists():
                return path, lock
            os.close(lock)


def _lock(path: Path, how: int = 0) -> int:
    """Return the descriptor that holds the lock; raise OSError where another one does, or there are none here."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except OSError:
        if how:  # then it is not for this process to remove
            os.close(descriptor)
            raise
    return descriptor


def _remove(path: Path, lock: int) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)
