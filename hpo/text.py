"""Text that is shown: whatever a file or a storage put into it, nothing in it acts on a terminal.

    printable   one line: control characters, overrides of the writing direction and the like as Python writes them
    lines       the same of several lines
    as_toml     TOML, with such characters escaped as it has it; JSON is that of hpo/as_json.py

Knows nothing of the rest of hpo.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_TO_LOOK_AT = re.compile(r"[^\x20-\x7e\n]")  # of much text, the few that may have to be escaped


def printable(text: str) -> str:
    """Return text on one line, whatever it held."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def lines(text: str) -> str:
    """Return the text with every line of it printable."""
    return "\n".join(map(printable, text.split("\n")))


def escaped(text: str, escape: Callable[[str], str]) -> str:
    """Return the text with what is not printable in it, but for line feeds, escaped."""
    return _TO_LOOK_AT.sub(lambda found: found[0] if found[0].isprintable() else escape(found[0]), text)


def as_toml(text: str) -> str:
    """Return a TOML text of basic strings with what is not printable in them escaped: it says the same."""
    return escaped(text, lambda char: f"\\U{ord(char):08x}")
