"""Stdout reserved for hpo's output: tested in a child process with real descriptors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, ctypes, os, subprocess, sys
from hpo import stdout

def print_all_ways(when):
    print(when, "python")
    os.write(1, f"{when} descriptor\\n".encode())
    subprocess.run(["echo", when, "child"], check=True)
    ctypes.CDLL(None).puts(f"{when} library".encode())  # written when C flushes its buffer
    print(when, "stored stream", file=sys.__stdout__)

atexit.register(print, "at the end")
with stdout.reserved():
    print_all_ways("reserved")
    print("hpo", file=stdout.stream(), flush=True)
    with stdout.reserved():
        print_all_ways("nested")
    print_all_ways("still reserved")
    with stdout.restored(), open("/dev/stdout", "w") as named:
        named.write("by its path\\n")
    print_all_ways("reserved again")
print("hpo again", file=stdout.stream())
stdout.redirect_to_stderr()
"""


def test_only_the_output_of_hpo_goes_to_stdout(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert ended.stdout.splitlines() == ["hpo", "by its path", "hpo again"]
    ways = ("python", "descriptor", "child", "library", "stored stream")
    when = ("reserved", "nested", "still reserved", "reserved again")
    said = [*(f"{each} {way}" for each in when for way in ways), "at the end"]
    assert sorted(ended.stderr.splitlines()) == sorted(said)


@pytest.mark.parametrize("closed", [1, 2])
def test_a_process_may_start_without_its_streams(closed: int) -> None:
    script = "import sys; from hpo.cli import main; sys.exit(main())"
    words = f"{sys.executable} -c '{script}' narrow digits --workers 2 {closed}>&-"  # which is refused at once
    ended = subprocess.run(["sh", "-c", words], capture_output=True, text=True)
    said = {1: "hpo: --workers: needs --rounds; without --rounds nothing is trained\n", 2: ""}
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", said[closed])


def test_a_closed_pipe_is_reported_once() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = "from hpo import stdout\nwith stdout.reserved():\n    print('x', file=stdout.stream())\n"
    with open(writing, "wb") as nobody:
        ended = subprocess.run([sys.executable, "-c", script], stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "BrokenPipeError: [Errno 32] Broken pipe"
    assert "Exception ignored" not in ended.stderr
