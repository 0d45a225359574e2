"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hpo import stdout
from hpo.errors import HpoError


@stdout.given_back()  # which /dev/stdout names
def write(content: str | bytes, path: Path) -> None:
    """Put this into a file: the whole of it, or on failure nothing, with what was there before untouched."""
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))  # a link keeps pointing where it does
    try:
        if target.exists() and not target.is_file():  # a pipe or a terminal takes it, and must not be replaced
            target.write_bytes(data)
        else:
            _replace(target, data)
    except OSError as error:
        raise HpoError(f"{path}: cannot be written ({error.strerror or error})") from error


def _replace(target: Path, data: bytes) -> None:
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def umask() -> int:
    """Return the mode bits that new files of this process do not get."""
    mask = os.umask(0)  # there is no way to read it without setting it
    os.umask(mask)
    return mask
