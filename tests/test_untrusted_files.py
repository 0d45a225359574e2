"""Untrusted files: bounded reads, and refusals that say what is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpo.untrusted_files import DEEPEST, open_regular_file, parse_json, parse_toml, read_limited


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"a": 2, "a": 3}}', "is not JSON: duplicate key 'a' in one object"),
        ("[NaN]", "is not JSON: NaN is not a number in JSON"),
        ("[-Infinity]", "is not JSON: -Infinity is not a number in JSON"),
        ("1e999", "is not JSON: 1e999 is not a number in JSON"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        ("[1,", r"is not JSON: .* \(at line 1, column 4\)"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_invalid_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\na = 2", "is not TOML: "),
        ("a = " + "9" * 5000, "is not TOML: Exceeds the limit"),
        ("a = " + "[" * 5000, "is nested too deeply"),
        (".".join(["a"] * 100_000) + " = 1", "is nested too deeply"),
        (f"[{' . '.join(['a'] * 100_000)}]", "is nested too deeply"),
        (".".join(["'a b'", '"c"'] * 50_000) + " = 1", "is nested too deeply"),
        ("a" * 200_000, "is not TOML: "),
    ],
)
def test_invalid_toml_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_toml(text)


def test_valid_texts_are_parsed() -> None:
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert parse_json(f'{{"a": [1.5, null, true, "x"], "b": {deep[1:-1]}}}')["a"] == [1.5, None, True, "x"]
    assert parse_toml("[a.b]\nc.d = 1  # www.an.address.with.dots\n") == {"a": {"b": {"c": {"d": 1}}}}


def test_only_regular_files_of_limited_size_are_read(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"abc")
    os.mkfifo(pipe)
    assert read_limited(file, 3) == b"abc"
    for path, message in [
        (pipe, "is not a regular file"),
        (Path("/dev/zero"), "is not a regular file"),
        (tmp_path / "a\0b", "is not a valid file name"),
        (tmp_path / ("a" * 300), "File name too long"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ]:
        with pytest.raises(OSError, match=message):
            open_regular_file(path)
    with pytest.raises(OSError, match="is larger than 2 bytes"):
        read_limited(file, 2)
