"""Storage URLs: parse, check and mask them.

A `Location` has passed every check that needs no database connection: the kind is known, a database file's folder
exists, and an existing file can be written. Passwords are never shown. This module opens no connection.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from hpo.errors import StorageError, nearest
from hpo.text import printable

DEFAULT_URL = "sqlite:///hpo.db"
STORAGE_VARIABLE = "HPO_STORAGE"
LONGEST_SHOWN = 200
# Schemes of URLs, and their SQLAlchemy drivers.
DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


@dataclass(frozen=True)
class Location:
    """A checked storage URL. `shown` is the user's text without password, for messages; `file` is None for a server."""

    url: URL = field(repr=False)
    shown: str
    file: Path | None

    @property
    def full_url(self) -> str:
        """The URL with its password, for SQLAlchemy: never show it in a message."""
        return self.url.render_as_string(hide_password=False)


def mask(url: str) -> str:
    """Return the URL without passwords, on one line. The text need not be a valid URL."""
    url = printable(url)
    # Greedy up to the last @, because a password can contain @ and /.
    url = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url)
    url = re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", url)
    return url if len(url) <= LONGEST_SHOWN else url[:LONGEST_SHOWN] + "..."


def storage_option(url: str | None) -> str:
    """Return `--storage URL` for a command, without passwords; "" for the default storage."""
    return f"--storage {shlex.quote(mask(url))}" if url else ""


def locate(url: str | None) -> Location:
    """Return the checked location of a URL; None means HPO_STORAGE, else `sqlite:///hpo.db`."""
    text = url if url is not None else os.environ.get(STORAGE_VARIABLE) or DEFAULT_URL
    shown = mask(text)
    try:
        parsed = make_url(text)
    except (ArgumentError, ValueError):
        # Without the cause, which can contain the URL with its password.
        raise StorageError(
            f"{shown}: not a storage URL; write sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        ) from None
    driver = DRIVERS.get(parsed.drivername)
    if driver is None:
        kind = mask(parsed.drivername)
        hint = nearest(kind, ["sqlite", "postgresql"])
        raise StorageError(f"{shown}: unknown kind of storage '{kind}'{hint}; known: sqlite, postgresql")
    parsed = parsed.set(drivername=driver)
    if driver != "sqlite":
        return Location(parsed, shown, None)
    file = _file(parsed, shown)
    # Absolute, so that new connections open the same file after a change of the working directory.
    return Location(parsed.set(database=str(file)), shown, file)


def _file(url: URL, shown: str) -> Path:
    if url.host or url.username or url.port:
        raise StorageError(
            f"{shown}: a file has no host; write sqlite:///FILE, or sqlite:////FILE from the root folder"
        )
    if url.query:
        raise StorageError(f"{shown}: sqlite URLs take no parameters; remove those after '?'")
    if not url.database or url.database == ":memory:":
        raise StorageError(
            f"{shown}: a storage in memory is lost when the process ends; name a file, as in {DEFAULT_URL}"
        )
    try:
        return _checked(Path(os.path.abspath(url.database)), shown)
    except ValueError as error:  # a null byte
        raise StorageError(f"{shown}: not a file name; name a file, as in {DEFAULT_URL}") from error
    except OSError as error:
        raise StorageError(f"{shown}: {(error.strerror or 'cannot be read').lower()}; name another file") from error


def _checked(file: Path, shown: str) -> Path:
    if not file.parent.is_dir():
        raise StorageError(f"{shown}: the folder {mask(str(file.parent))} does not exist; create it first")
    # SQLite writes a journal next to the file, so the folder must be writable as well.
    if not _writable(file.parent):
        raise StorageError(f"{shown}: the folder {mask(str(file.parent))} is read-only; name a file elsewhere")
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return file
    if stat.S_ISDIR(mode):
        raise StorageError(f"{shown}: is a directory; name a file in it")
    if not stat.S_ISREG(mode):
        raise StorageError(f"{shown}: is not an ordinary file; name another one")
    if not _writable(file):
        raise StorageError(f"{shown}: the file is read-only; make it writable, or copy it and name the copy")
    # SQLite checks the content: opening and closing the file here would release all locks of this process on it.
    return file


def _writable(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
