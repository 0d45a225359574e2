"""Atomic file writes, and the folders of this user.

A file or folder is written whole or not at all. While it is being written it has a hidden name beside its target,
`.hpo-XXXXXXXX.part`, and its process locks it. An unlocked one is the rest of a killed process: the next write in that
folder removes it, except on file systems without locks. Streams are written in place.

Text is UTF-8; an unpaired surrogate, which UTF-8 cannot encode, is written as in JSON: `\\ud800`.
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
from typing import Literal

from hpo import stdout
from hpo.errors import HpoError

PREFIX, SUFFIX = ".hpo-", ".part"
UMASK = os.umask(0)
"""The umask of this process; read at import, before there are threads, because reading it means setting it."""
os.umask(UMASK)


def user_folder(kind: Literal["cache", "data"], variable: str, error: type[HpoError]) -> Path:
    """Return hpo's cache or data folder of this user, which need not exist.

    Raises `error` for a user without a home folder; its message names `variable`, which can name another folder.
    """
    import platformdirs

    try:
        return Path(platformdirs.user_cache_dir("hpo") if kind == "cache" else platformdirs.user_data_dir("hpo"))
    except RuntimeError as cause:
        raise error(f"this user has no home folder; set HOME, or name a folder in {variable}") from cause


@contextlib.contextmanager
def temporary_path(parent: Path, *, folder: bool = False) -> Iterator[Path]:
    """Create an empty file or folder that only this user may read; remove it at the end unless it was renamed.

    Raises OSError where none can be created.
    """
    for leftover in parent.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # in use, or another user's
            _remove(leftover, _lock(leftover, fcntl.LOCK_NB))
    path, lock = _create(parent, folder)
    try:
        yield path
    finally:
        _remove(path, lock)


def _create(parent: Path, folder: bool) -> tuple[Path, int]:
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(SUFFIX, PREFIX, parent))
        else:
            handle, name = tempfile.mkstemp(SUFFIX, PREFIX, parent)
            os.close(handle)
            path = Path(name)
        with contextlib.suppress(FileNotFoundError):  # another process removed it before it was locked
            lock = _lock(path)
            if path.exists():
                return path, lock
            os.close(lock)


def _lock(path: Path, mode: int = 0) -> int:
    """Return the descriptor that owns the lock. With LOCK_NB, raise OSError where the file cannot be locked."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | mode)
    except OSError:
        if mode:  # the caller must not remove the file
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


@stdout.restored()  # for /dev/stdout
def write_atomically(content: str | bytes, path: Path) -> None:
    """Write a file, or on failure leave the old one unchanged; write to a stream in place. Raises HpoError."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    try:
        stream = _stream(path)
        if stream is None:
            _replace(Path(os.path.realpath(path)), data)  # a link stays a link
        else:
            with open(stream, "wb", closefd=isinstance(stream, Path)) as file:
                file.write(data)
    except OSError as error:
        raise HpoError(f"{path}: cannot be written ({error.strerror or error})") from error


def _stream(path: Path) -> Path | int | None:
    """Return the path of a stream, or the descriptor for stdout and stderr; None for a file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    for standard in (sys.__stdout__, sys.__stderr__):
        if standard is not None and not standard.closed and os.path.samestat(status, os.fstat(standard.fileno())):
            standard.flush()
            return standard.fileno()
    return None if stat.S_ISREG(status.st_mode) else path


def _replace(target: Path, data: bytes) -> None:
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~UMASK
    with temporary_path(target.parent) as part:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(mode)
        part.replace(target)
