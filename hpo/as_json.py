"""JSON as hpo writes it, with one way to write the numbers that JSON has none for.

They are the texts "NaN", "Infinity" and "-Infinity", in TOML and in tables of CSV as well, so that a record says the
same in every form; null says that there is no value. docs/reference/formats.md promises that, and the schemas hold it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from hpo.text import escaped

WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def worded(value: Any) -> Any:
    """Return a tree of dictionaries, lists and values as it is written: with words for what is not finite."""
    if isinstance(value, Mapping):
        return {key: worded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [worded(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def number(written: Any) -> Any:
    """Return what stands where a number has to be as the number that it says; anything else as it is."""
    return WORDS.get(written, written) if isinstance(written, str) else written


def json_text(tree: Any, indent: int | None = None) -> str:
    """Return a tree as JSON, without an end of line. What is not printable in its texts is escaped."""
    # Outside its texts JSON has no such character but the line feed, and none of those is in a text.
    text = json.dumps(worded(tree), indent=indent, ensure_ascii=False, allow_nan=False)
    return escaped(text, lambda char: json.dumps(char)[1:-1])


def json_line(tree: Any) -> str:
    """Return a tree as one line of JSON in ASCII, which a stream of any encoding takes."""
    return json.dumps(worded(tree), allow_nan=False)
