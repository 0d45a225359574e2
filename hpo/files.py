"""Atomic file writes: a file or folder is written whole or not at all. Streams are written in place.

A file or folder in the making has a hidden name beside its target, `.hpo-XXXXXXXX.part`, and its process locks it. An
unlocked one was left by a killed process; the next write in that folder removes it. Where the file system has no locks,
it stays. Text is UTF-8; half a surrogate pair, which UTF-8 cannot encode, is written as JSON escapes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hpo import stdout
from hpo.errors import HpoError

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


@stdout.given_back()  # which /dev/stdout names
def write(content: str | bytes, path: Path) -> None:
    """Put this into a file, or on failure nothing, with what was there before untouched; or into a stream."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        stream = _stream(path)
        if stream is None:
            _replace(Path(os.path.realpath(path)), data)  # a link keeps pointing where it does
        else:
            with open(stream, "wb", closefd=isinstance(stream, Path)) as file:
                file.write(data)
    except OSError as error:
        raise HpoError(f"{path}: cannot be written ({error.strerror or error})") from error


def _stream(path: Path) -> Path | int | None:
    """Return the path of a stream, or the descriptor of one that is this process's own; None for a file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    for own in (sys.__stdout__, sys.__stderr__):
        if own is not None and not own.closed and os.path.samestat(found, os.fstat(own.fileno())):
            own.flush()
            return own.fileno()
    return None if stat.S_ISREG(found.st_mode) else path


def _replace(target: Path, data: bytes) -> None:
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~UMASK
    with unfinished(target.parent) as part:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
        part.replace(target)
