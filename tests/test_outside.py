"""What comes from elsewhere: read within bounds, whatever it holds, and refused in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpo.outside import DEEPEST, content, json_tree, opened, toml_tree


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": {"a": 2, "a": 3}}', "is not JSON: the key 'a' stands twice in one object"),
        ("[NaN]", "is not JSON: NaN is no number"),
        ("[-Infinity]", "is not JSON: -Infinity is no number"),
        ("1e999", "is not JSON: 1e999 is no number"),
        ("9" * 5000, "is not JSON: Exceeds the limit"),
        ("[1,", r"is not JSON: .* \(at line 1, column 4\)"),
        ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "is nested too deeply"),
        ("[" * 100_000, "is nested too deeply"),
    ],
)
def test_a_json_text_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        json_tree(text)


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_a_toml_text_that_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        toml_tree(text)


def test_what_is_sound_is_read() -> None:
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert json_tree(f'{{"a": [1.5, null, true, "x"], "b": {deep[1:-1]}}}')["a"] == [1.5, None, True, "x"]
    assert toml_tree("[a.b]\nc.d = 1  # www.an.address.with.dots\n") == {"a": {"b": {"c": {"d": 1}}}}


def test_only_regular_files_of_a_bearable_size_are_opened(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.write_bytes(b"abc")
    os.mkfifo(pipe)
    assert content(file, 3) == b"abc"
    for path, said in [
        (pipe, "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path / "a\0b", "no file can have such a name"),
        (tmp_path / ("a" * 300), "File name too long"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
    ]:
        with pytest.raises(OSError, match=said):
            opened(path)
    with pytest.raises(OSError, match="is larger than 2 bytes"):
        content(file, 2)
