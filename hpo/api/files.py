"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path


def write(text: str, path: str | Path) -> Path:
    """Write a text to a file, the whole of it or on failure nothing; return the path. Raises HpoError."""
    from hpo.files import write_atomically

    write_atomically(text, Path(path))
    return Path(path)
