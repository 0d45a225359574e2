"""Stdout of commands whose user code prints: it has the command's own output only."""

from __future__ import annotations

import csv
import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpo.cli import main

PRINTED = "printed by the user's code"
MODULE = f"""
import os
import subprocess

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

subprocess.run(["echo", "{PRINTED}"], check=True)


class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        print("{PRINTED}")
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))

    def forward(self, x):
        os.write(1, b"{PRINTED}\\n")
        return self.layers(x if x.sum() > -1 else -x)


def load(test=False):
    print("{PRINTED}")
    x, y = load_digits(return_X_y=True)
    return (x[300:320] / 16, y[300:320]) if test else (x[:200] / 16, y[:200])
"""


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


COMMANDS: list[tuple[list[str], Callable[[str], Any]]] = [
    (["launch", "own.toml", "--json"], lines),
    (["verify", "tiny", "--trials", "1", "--json"], lines),
    (["test", "tiny", "--json"], lines),
    (["replay", "best.json", "--json"], lines),
    (["predict", "tiny-test", "images.npy"], rows),
    (["check", "own.toml"], lambda text: text.startswith("own.toml: valid\n")),
    (["export", "tiny", "--all"], lines),
    (["export", "tiny", "--format", "toml"], tomllib.loads),
    (["export", "tiny", "--all", "--format", "csv"], rows),
    (["submit", "own.toml", "--name", "next"], lambda text: text.startswith("next: ")),
]


def test_stdout_has_the_output_of_the_command_only(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Run in this process, which imports the user code once; capture its file descriptors."""
    (folder / "own.py").write_text(MODULE)
    network = '[network]\nmodule = "own.py:Net"'
    before, _, after = (folder / "tiny.toml").read_text().partition("[network]")
    study = before + network + after[after.index("\n\n") :]
    (folder / "own.toml").write_text(study.replace('"digits"\ntrain_size = 200', '"own.py:load"').replace("= 6", "= 2"))
    np.save("images.npy", np.zeros((3, 1, 1, 64), np.float32))
    printed = set()
    for words, read in COMMANDS:
        if words[0] == "replay":
            assert main(["export", "tiny", "-o", "best.json"]) == 0
        assert main(words) == 0, capfd.readouterr()
        out, err = capfd.readouterr()
        assert PRINTED not in out, words
        assert read(out), words
        printed |= {words[0]} if PRINTED in err else set()
    assert printed == {"launch", "verify", "test", "replay", "predict", "check", "submit"}
