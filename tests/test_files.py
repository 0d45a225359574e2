"""What is not whole yet has a hidden name, and goes: at the end, or when somebody comes by after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hpo.files import unfinished

KILLED = """
import os, pathlib, signal
from hpo.files import unfinished
with unfinished(pathlib.Path(), folder=True) as folder, unfinished(pathlib.Path()) as file:
    (folder / "weights").write_text("half")
    file.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    others = tmp_path / ".hpo-of-the-user"
    others.touch()
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 3
    with unfinished(tmp_path) as mine, unfinished(tmp_path, folder=True) as folder, unfinished(tmp_path) as further:
        assert set(tmp_path.iterdir()) == {others, mine, folder, further}
    assert list(tmp_path.iterdir()) == [others]


def test_it_is_removed_where_the_work_fails_and_stays_where_it_was_renamed(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), unfinished(tmp_path, folder=True) as folder:
        folder.mkdir()
    assert list(tmp_path.iterdir()) == []
    with unfinished(tmp_path) as file:
        file.rename(tmp_path / "whole")
    assert list(tmp_path.iterdir()) == [tmp_path / "whole"]


def test_nobody_takes_what_another_works_on_for_left(tmp_path: Path) -> None:
    def work(number: int) -> None:
        with unfinished(tmp_path, folder=number % 2 == 0) as made:
            made.rename(tmp_path / str(number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(400)))
    assert {path.name for path in tmp_path.iterdir()} == set(map(str, range(400)))
