"""Files are written whole or not at all, and what was there before stays what it is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hpo.errors import HpoError
from hpo.files import write


def test_a_written_file_is_whole_and_readable_by_others(tmp_path: Path) -> None:
    file = tmp_path / "best.json"
    code = "from pathlib import Path; from hpo.files import write; write('new\\n', Path('best.json'))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, umask=0o022)
    assert file.read_text() == "new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [file]


def test_a_replaced_file_keeps_its_mode_and_its_links(tmp_path: Path) -> None:
    file, link = tmp_path / "best.json", tmp_path / "link.json"
    file.write_text("old")
    file.chmod(0o600)
    link.symlink_to(file)
    write("new\n", link)
    assert link.is_symlink()
    assert file.read_text() == "new\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write("text\n", pipe)
        assert os.read(reader, 100) == b"text\n"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


WRITER = "import pathlib, sys, hpo.files as w; w.write(sys.argv[1], pathlib.Path(sys.argv[2]))"


@pytest.mark.parametrize("own", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "log"])
def test_what_the_process_prints_to_is_written_to_and_not_replaced(tmp_path: Path, own: str) -> None:
    """A shell may have sent stdout and stderr into a pipe, or into a file that holds more."""
    command = [sys.executable, "-c", WRITER, "text\n", own]
    if own != "log":
        printed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert printed.stdout + printed.stderr == "text\n"
    with open(tmp_path / "log", "a") as log:
        log.write("before\n")
        log.flush()
        subprocess.run(command, stdout=log, stderr=log, check=True, cwd=tmp_path)
        log.write("after\n")
    assert (tmp_path / "log").read_text() == "before\ntext\nafter\n"


def test_half_a_pair_of_surrogates_is_escaped_as_json_has_it(tmp_path: Path) -> None:
    write('{"note": "é\ud800"}', tmp_path / "best.json")
    assert (tmp_path / "best.json").read_bytes() == '{"note": "é\\ud800"}'.encode()


@pytest.mark.parametrize("place", ["missing/best.json", "."])
def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, place: str) -> None:
    with pytest.raises(HpoError, match="cannot be written") as caught:
        write("new\n", tmp_path / place)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
