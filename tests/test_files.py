"""Atomic writes: temporary files are hidden and removed, and failed writes leave the old file unchanged."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpo.errors import HpoError
from hpo.files import temporary_path, write_atomically

WRITER = "import pathlib, sys, hpo.files as w; w.write_atomically(sys.argv[1], pathlib.Path(sys.argv[2]))"
KILLED = """
import os, pathlib, signal
from hpo.files import temporary_path
with temporary_path(pathlib.Path(), folder=True) as folder, temporary_path(pathlib.Path()) as file:
    (folder / "weights").write_text("half")
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_files_of_killed_processes_are_removed_and_those_in_use_stay(tmp_path: Path) -> None:
    others = tmp_path / ".hpo-of-the-user"
    others.touch()
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    with (
        temporary_path(tmp_path) as mine,
        temporary_path(tmp_path, folder=True) as folder,
        temporary_path(tmp_path) as further,
    ):
        assert set(tmp_path.iterdir()) == {others, mine, folder, further}
    assert list(tmp_path.iterdir()) == [others]


def test_a_temporary_path_is_removed_unless_it_was_renamed(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), temporary_path(tmp_path, folder=True) as folder:
        folder.mkdir()
    assert list(tmp_path.iterdir()) == []
    with temporary_path(tmp_path) as file:
        file.rename(tmp_path / "whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "whole"]


def test_no_thread_removes_the_temporary_file_of_another(tmp_path: Path) -> None:
    def work(number: int) -> None:
        with temporary_path(tmp_path, folder=number % 2 == 0) as made:
            made.rename(tmp_path / str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    assert {path.name for path in tmp_path.iterdir()} == set(map(str, range(400)))


def test_a_written_file_is_whole_and_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    subprocess.run([sys.executable, "-c", WRITER, "new\n", "best.json"], check=True, cwd=tmp_path, umask=0o022)
    assert file.read_text() == "new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_replaced_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    file, link = tmp_path / "best.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    write_atomically("new\n", link)
    assert link.is_symlink()
    assert file.read_text() == "new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_pipe_is_written_in_place(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically("text\n", pipe)
        assert os.read(reader, 100) == b"text\n"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "log"])
def test_stdout_and_stderr_are_written_in_place(tmp_path: Path, target: str) -> None:
    """A shell may have sent stdout and stderr into a pipe, or into a file that holds more."""
    command = [sys.executable, "-c", WRITER, "text\n", target]
    if target != "log":
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert printed.stdout + printed.stderr == "text\n"
    with open(tmp_path / "log", "a") as log:
        log.write("before\n")
        log.flush()
        subprocess.run(command, stdout=log, stderr=log, check=True, cwd=tmp_path)
        log.write("after\n")
    assert (tmp_path / "log").read_text() == "before\ntext\nafter\n"


def test_an_unpaired_surrogate_is_escaped_as_in_json(tmp_path: Path) -> None:
    write_atomically('{"note": "é\ud800"}', tmp_path / "best.json")
    assert (tmp_path / "best.json").read_bytes() == '{"note": "é\\ud800"}'.encode()


@pytest.mark.parametrize("place", ["missing/best.json", "."])
def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    with pytest.raises(HpoError, match="cannot be written") as caught:
        write_atomically("new\n", tmp_path / place)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
