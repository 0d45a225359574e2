"""Tests that follow README and docs: every command, session, script and study file of a page, in order.

Each page has its own folder with the repository's `studies/` and small stand-ins for the data sets, except the digits.
A marker in the page states what the test does differently (`pages.py`). `hpo` commands run in this process, which saves
loading torch each time; commands that need a shell run in one. A block that is not run must not contain commands.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from data_files import write_cifar, write_idx
from deadlines import deadline
from forks import Fork
from pages import PAGES, ROOT, Block, Marker, commands, parts, sessions

from hpo.cli import main
from hpo.errors import HpoError
from hpo.studyfile import parse_study, read_study

DEMO = tomllib.loads((ROOT / "studies/digits.toml").read_text())
RUN = ("sh", "console", "python", "toml", "yaml")
NOT_RUN = ("", "text", "json")
LOOKS_LIKE_A_COMMAND = re.compile(r"^(\$ |(hpo|python3?|pip|make|docker) \w)", re.MULTILINE)
SHELL = re.compile(r"[|&;<>()$*?~`]")
COMMENT = re.compile(r"\s#.*")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
NUMBER = re.compile(r"[+-]?\d[\d,]*(\.\d+)?(e[+-]?\d+)?")
ANY_LINES = r"(?:.*\n)*?"
LONG = [
    "docs/tutorial/table-regression.md",
    *(
        f"docs/how-to/{page}.md"
        for page in [
            "comparing",
            "ensembles",
            "metrics-and-losses",
            "notebook",
            "objective-function",
            "other-tools",
            "python",
            "searching",
            "user-data",
            "user-network",
        ]
    ),
]
"""Slow pages; README and the first tutorial are followed in the quick tests."""


class Reader:
    """A reader who follows one page in a folder and obeys its markers."""

    def __init__(self, page: str, text: str, folder: Path) -> None:
        self.page = page
        self.text = text
        self.folder = folder
        self.small = ""
        self.as_processes = False
        self.skips_all = False
        self.hints: list[str] = []
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def follow(self) -> None:
        for part in parts(self.text):
            try:
                if isinstance(part, Marker):
                    self.apply_marker(part.text)
                else:
                    self.run_block(part)
                    self.hints.clear()
            except Exception as error:
                error.add_note(f"in {self.page}, line {part.line}")
                raise
        assert not self.hints, f"{self.page}: nothing follows {self.hints}"

    def apply_marker(self, marker: str) -> None:
        word, _, rest = marker.partition(" ")
        if marker.startswith("not run from here, "):
            self.skips_all = True
        elif marker.startswith("not run, ") or marker in ("numbers vary", "output varies"):
            self.hints.append(marker)
        elif word == "small" and rest:
            self.small = " ".join(f"--set {shlex.quote(change)}" for change in shlex.split(rest))
        elif word == "first" and rest:
            self.run_command(rest)
        elif marker == "as processes":
            self.as_processes = True
            self.folder = self.folder / "empty"
            self.folder.mkdir()
            os.chdir(self.folder)
        else:
            raise ValueError(f"unknown marker: {marker}")

    def run_block(self, block: Block) -> None:
        if block.language.startswith("{"):  # a directive of Sphinx
            return
        if block.language in NOT_RUN:
            assert not LOOKS_LIKE_A_COMMAND.search(block.body), "a command in a block without a language"
            return
        assert block.language in RUN, f"a block in {block.language}: no test for this language"
        if self.skips_all or any(hint.startswith("not run, ") for hint in self.hints):
            return
        if block.file is not None:
            (self.folder / block.file).write_text(block.body)
        getattr(self, f"run_{block.language}")(block)

    def run_sh(self, block: Block) -> None:
        if block.file is not None:
            return
        for command in commands(block.body):
            self.run_command(command)

    def run_console(self, block: Block) -> None:
        for command, shown in sessions(block.body):
            printed = self.run_command(command, fails=bool(re.search("^hpo: ", shown, re.MULTILINE)))
            if "output varies" not in self.hints:
                compare(printed, shown, exactly="numbers vary" not in self.hints)

    def run_python(self, block: Block) -> None:
        code = compile("\n" * block.line + block.body, self.page, "exec")
        if block.file is None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                exec(code, self.names)

    def run_toml(self, block: Block) -> None:
        """Parse a study file; a block without a study's name has some tables, and the demo's study has the others."""
        if block.file is not None:
            read_study(block.file)
            return
        shown = tomllib.loads(block.body)
        parse_study(shown if "name" in shown else {**DEMO, **shown}, self.page)

    def run_yaml(self, block: Block) -> None:
        assert list(yaml.safe_load_all(block.body))

    def run_command(self, command: str, *, fails: bool = False) -> str:
        """Run one command; return its output, stdout and stderr together."""
        command = re.sub(r"\bhpo (launch|submit)\b", rf"hpo \1 {self.small}", command) if self.small else command
        plain = command.startswith("hpo ") and not SHELL.search(COMMENT.sub("", QUOTED.sub("", command)))
        run = by_shell if not plain else as_process if self.as_processes else in_process
        status, printed = run(command)
        assert (status != 0) == fails, f"{command}: status {status}\n{printed}"
        return printed


def in_process(command: str) -> tuple[int, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main(shlex.split(command, comments=True)[1:])
    return status, printed.getvalue()


def as_process(command: str) -> tuple[int, str]:
    with tempfile.TemporaryFile("w+") as output:
        with Fork(shlex.split(command, comments=True)[1:], stdout=output, stderr=output) as process:
            status = process.wait(deadline(300))
        output.seek(0)
        return status, output.read()


def by_shell(command: str) -> tuple[int, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=deadline(300),
    )
    return ended.returncode, ended.stdout


def compare(printed: str, shown: str, *, exactly: bool) -> None:
    """Compare output with the page, where a line `...` stands for any lines."""
    if not exactly:
        printed, shown = without_numbers(printed), without_numbers(shown)
    lines = (ANY_LINES if line == "..." else re.escape(line) + r"\n" for line in shown.splitlines())
    assert re.fullmatch("".join(lines), printed), f"shown:\n{shown}\nprinted:\n{printed}"


def without_numbers(text: str) -> str:
    return "".join(re.sub(" +", " ", NUMBER.sub("#", line)).strip() + "\n" for line in text.splitlines())


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of data sets with a few random images each."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("mnist", "fashion-mnist")):
        write_idx(folder / name, 600, seed=seed, test=60)
    write_cifar(folder / "cifar10", (100, 100), test=40)
    return folder


@pytest.fixture
def folder(tmp_path: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which a page is followed."""
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("HPO_STORAGE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HPO_DATA_DIR", str(stand_ins))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", [pytest.param(page, marks=[pytest.mark.slow] * (page in LONG)) for page in PAGES])
def test_a_page_can_be_followed(page: str, folder: Path) -> None:
    Reader(page, PAGES[page], folder).follow()


@pytest.mark.parametrize(
    "text",
    [
        "```sh\nhpo top nothing\n```",
        "```sh\nls | grep nothing\n```",
        "```sh\n# a comment\ncd studies \\\n   nothing\n```",
        "```console\n$ hpo version\nhpo 1000\n```",
        "```console\n$ hpo top nothing\nhpo: something else\n```",
        "```console\n$ echo hpo: an error\nhpo: an error\n```",
        "<!-- test: numbers vary -->\n```console\n$ echo 1 apple\n2 pears\n```",
        "```python\nassert False\n```",
        "```python\n# whole.py\nthis is no Python\n```",
        "```toml\n[optimizer]\nlr = -1\n```",
        '```toml\n# whole.toml\nname = "x"\n```',
        "```yaml\na: [1\n```",
        "```\n$ hpo version\n```",
        "```\nhpo version\n```",
        "```basic\n10 END\n```",
        "<!-- test: not run -->\n```sh\nfalse\n```",
        "<!-- test: first false -->",
        "<!-- test: not run, or is there no block? -->",
    ],
)
def test_a_page_that_is_wrong_fails(text: str, folder: Path) -> None:
    with pytest.raises((AssertionError, SyntaxError, HpoError, ValueError, yaml.YAMLError)):
        Reader("a page", f"{text}\n", folder).follow()


@pytest.mark.parametrize(
    "text",
    [
        "```console\n$ echo 1 && \\\n> echo 2\n1\n2\n$ echo 3\n3\n```",
        "```console\n$ seq 9\n1\n...\n9\n```",
        "<!-- test: numbers vary -->\n```console\n$ echo '1,000   apples in 2.5e-3 s'\n7 apples in 1 s\n```",
        "<!-- test: output varies -->\n```console\n$ echo 1 apple\n2 pears\n```",
        "```python\n# mine.py\nN = 7\n```\n\n```python\nfrom mine import N\n```\n```python\nassert N == 7\n```",
        "```sh\n# note.sh\nfalse\n```\n```console\n$ cat note.sh\n# note.sh\nfalse\n```",
        "1. First\n\n   ```sh\n   true\n   ```",
        "<!-- test: not run, needs a reader -->\n```sh\nfalse\n```\n```sh\ntrue\n```",
        "<!-- test: not run from here, all of it is false -->\n```sh\nfalse\n```\n```sh\nfalse\n```",
        '<!-- test: as processes -->\n```sh\ntest -z "$(ls)"\n```',
        "```{toctree}\nnothing\n```\n```json\n{ ... }\n```",
    ],
)
def test_a_page_that_is_right_passes(text: str, folder: Path) -> None:
    Reader("a page", f"{text}\n", folder).follow()
