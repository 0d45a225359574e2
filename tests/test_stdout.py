"""Stdout that is kept for what hpo says: in a process of its own, whose descriptors are real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, ctypes, os, subprocess, sys
from hpo import stdout

def everybody(said):
    print(said, "python")
    os.write(1, f"{said} descriptor\\n".encode())
    subprocess.run(["echo", said, "child"], check=True)
    ctypes.CDLL(None).puts(f"{said} library".encode())  # which C writes when its buffer is flushed
    print(said, "stream of before", file=sys.__stdout__)

atexit.register(print, "at the end")
with stdout.kept():
    everybody("kept")
    print("hpo", file=stdout.own(), flush=True)
    with stdout.kept():
        everybody("nested")
    everybody("kept still")
    with stdout.given_back(), open("/dev/stdout", "w") as named:
        named.write("by its path\\n")
    everybody("kept again")
print("hpo again", file=stdout.own())
stdout.leave()
"""


def test_only_what_hpo_says_comes_to_stdout(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ended.stdout.splitlines() == ["hpo", "by its path", "hpo again"]
    ways = ("python", "descriptor", "child", "library", "stream of before")
    when = ("kept", "nested", "kept still", "kept again")
    said = [*(f"{each} {way}" for each in when for way in ways), "at the end"]
    assert sorted(ended.stderr.splitlines()) == sorted(said)


@pytest.mark.parametrize("closed", [1, 2])
def test_a_process_may_begin_without_its_streams(closed: int) -> None:
    script = "import sys; from hpo.cli import main; sys.exit(main())"
    words = f"{sys.executable} -c '{script}' narrow digits --workers 2 {closed}>&-"  # which is refused at once
    ended = subprocess.run(["sh", "-c", words], capture_output=True, text=True)
    said = {1: "hpo: --workers: goes with --rounds; without it nothing is trained\n", 2: ""}
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", said[closed])


def test_a_reader_that_has_gone_is_said_once_to_the_writer() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "from hpo import stdout\nwith stdout.kept():\n    print('x', file=stdout.own())\n"
    with open(writing, "wb") as nobody:
        ended = subprocess.run([sys.executable, "-c", script], stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "BrokenPipeError: [Errno 32] Broken pipe"
    assert "Exception ignored" not in ended.stderr
