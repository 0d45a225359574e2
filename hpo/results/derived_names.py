"""Names made from a study's name: file names, and names of studies derived from it.

Two studies never get the same file name, and a file name never leaves its folder.
"""

from __future__ import annotations

import hashlib

SAFE = "-_.+=@"
LONGEST_NAME = 200  # characters that a study file allows
LONGEST_STEM = 120  # bytes, so that every file system accepts the stem with an extension
HASH = 12


def file_stem(name: str) -> str:
    """Return the name with unsafe characters as %XX; a long name ends in a hash of it."""
    stem = "".join(_safe(character) for character in name)
    if stem[:1] in ("-", "."):  # an option, or a hidden file
        stem = f"%{ord(stem[0]):02X}{stem[1:]}"
    if len(stem.encode()) <= LONGEST_STEM:
        return stem
    short = stem.encode()[: LONGEST_STEM - HASH - 1].decode(errors="ignore")
    return f"{short}%{hashlib.sha256(name.encode()).hexdigest()[:HASH]}"


def with_suffix(name: str, suffix: str) -> str:
    """Return the name with the suffix; a long name is cut to leave room for it."""
    return name[: LONGEST_NAME - len(suffix)].rstrip() + suffix


def _safe(character: str) -> str:
    if character.isalnum() or character in SAFE:
        return character
    return "".join(f"%{byte:02X}" for byte in character.encode())
