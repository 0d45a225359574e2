"""Names made of a study's name: of files, for a study may be called almost anything, and of studies that follow it.

Two studies never share a file, and the file lies in the folder that it is written to.
"""

from __future__ import annotations

import hashlib

PLAIN = "-_.+=@"
MOST_CHARACTERS = 200  # that a study file allows
LONGEST = 120  # bytes, so that any file system takes it with what follows
HASH = 12


def file_stem(name: str) -> str:
    """Return the name with what a file's name had better not hold as %XX; a long one ends in a hash of it."""
    stem = "".join(_safe(character) for character in name)
    if stem[:1] in ("-", "."):  # which would be an option, or hidden
        stem = f"%{ord(stem[0]):02X}{stem[1:]}"
    if len(stem.encode()) <= LONGEST:
        return stem
    short = stem.encode()[: LONGEST - HASH - 1].decode(errors="ignore")
    return f"{short}%{hashlib.sha256(name.encode()).hexdigest()[:HASH]}"


def followed(name: str, suffix: str) -> str:
    """Return the name of a study that comes of the one of this name; a long name leaves room for the suffix."""
    return name[: MOST_CHARACTERS - len(suffix)].rstrip() + suffix


def _safe(character: str) -> str:
    if character.isalnum() or character in PLAIN:
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode())
