"""Safe text output: printable lines, JSON, TOML and commands.

    printable        one line; control characters and the like are shown as Python escapes
    printable_lines  the same for text of several lines
    json_text        a tree as JSON; json_line puts it on one line of ASCII
    join_and         `a, b and c`; first_few is `a, b and 3 more`
    utc_text         a time as ISO 8601
    escape_toml      TOML text with non-printable characters escaped
    number_ranges    `0-3, 7`; columns aligns the rows of a table
    hpo_command      a command of hpo, quoted for a shell

No text of a file or storage can act on the terminal. NaN and infinities, which JSON lacks, are the strings "NaN",
"Infinity" and "-Infinity" in JSON, TOML and CSV alike; null means no value (docs/formats.md). This module uses nothing
else of hpo.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_UNUSUAL = re.compile(r"[^\x20-\x7e\n]")  # only these characters may need to be escaped


def printable(text: str) -> str:
    """Return text as one printable line."""
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """Return text with each line made printable."""
    return "\n".join(map(printable, text.split("\n")))


def encode_non_finite(value: Any) -> Any:
    """Return a tree of dictionaries, lists and values with strings in place of NaN and infinities."""
    if isinstance(value, Mapping):
        return {key: encode_non_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encode_non_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decode_non_finite(value: Any) -> Any:
    """Return the number for "NaN", "Infinity" and "-Infinity"; any other value unchanged."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def json_text(tree: Any, indent: int | None = None) -> str:
    """Return a tree as JSON without a final line feed; non-printable characters are escaped."""
    # Outside its strings the only such character of JSON is the line feed, which no string contains.
    text = json.dumps(encode_non_finite(tree), indent=indent, ensure_ascii=False, allow_nan=False)
    return _escape(text, lambda char: json.dumps(char)[1:-1])


def json_line(tree: Any) -> str:
    """Return a tree as one line of ASCII JSON, valid in every encoding."""
    return json.dumps(encode_non_finite(tree), allow_nan=False)


def join_and(items: Sequence[str]) -> str:
    """Return `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def first_few(items: Sequence[object], most: int) -> str:
    """Return the first `most` items, and the number of the others: `a, b and 3 more`."""
    listed = ", ".join(map(str, items[:most]))
    return listed if len(items) <= most else f"{listed} and {len(items) - most} more"


def utc_text(time: datetime, timespec: str = "seconds") -> str:
    """Return a time in UTC as ISO 8601 text, `2026-01-31T12:00:00Z`."""
    return time.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def escape_toml(text: str) -> str:
    """Return TOML text of basic strings with non-printable characters escaped."""
    return _escape(text, lambda char: f"\\U{ord(char):08x}")


def number_ranges(numbers: Iterable[int]) -> str:
    """Return `0-3, 7` for 0, 1, 2, 3 and 7."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(sorted(numbers)), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the heading first, as left-aligned columns two spaces apart, every cell printable."""
    from rich.cells import cell_len

    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def hpo_command(verb: str, name: str, options: str = "") -> str:
    """Return `hpo VERB NAME OPTIONS`, quoted for a shell; `--` precedes a name that starts with a dash."""
    words = [shlex.quote(name), options] if not name.startswith("-") else [options, "--", shlex.quote(name)]
    return " ".join(word for word in ["hpo", verb, *words] if word)


def _escape(text: str, escape: Callable[[str], str]) -> str:
    """Return text with non-printable characters except line feeds escaped."""
    return _UNUSUAL.sub(lambda match: match[0] if match[0].isprintable() else escape(match[0]), text)


def duration(seconds: float) -> str:
    """Return `1.5 s`, `2 min 05 s` or `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
