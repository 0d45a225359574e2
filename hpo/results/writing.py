"""Files that are written whole or not at all, and streams, which take what is written and are never replaced.

A stream is a pipe, a terminal or another device, and whatever this process's stdout and stderr go to: a shell may have
sent them into a file that holds more. Text is UTF-8; half of a surrogate pair, which UTF-8 has none for, is written as
JSON escapes it.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from hpo import stdout
from hpo.errors import HpoError
from hpo.unfinished import UMASK, unfinished


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
