"""Sealed test set: no command but `hpo test` opens its files.

Every command runs in a process that records each file it opens. A command that is not listed here fails the test.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import numpy as np
from PIL import Image
from tiny import write_mnist
from typer.main import get_command

from hpo.cli import app

RUN = """
import io, json, os, re, signal, sys, threading, urllib.request

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

import zipfile

class RecordedZip(zipfile.ZipFile):
    # The arrays of a numpy.savez file are members, opened one by one.
    def open(self, name, *args, **kwargs):
        opened.append(f"{self.filename or self.fp.name}:{getattr(name, 'filename', name)}")
        return super().open(name, *args, **kwargs)

zipfile.ZipFile = RecordedZip

from hpo.cli import main

class Visitor(io.StringIO):
    # Visits the dashboard whose address is printed, and then stops it.
    def write(self, text):
        if found := re.match("http://[^ ]+", text):
            threading.Thread(target=visit, args=[found[0]]).start()
        return len(text)

def visit(url):
    for path in ("dashboard", "api/studies", "api/studies/1"):
        urllib.request.urlopen(f"{url.rstrip('/')}/{path}").read()
    os.kill(os.getpid(), signal.SIGTERM)

results, sys.stdout = sys.stdout, Visitor()
for words in json.loads(sys.argv[1]):
    opened.clear()
    try:
        status = main(words)
    except SystemExit as ended:
        status = ended.code
    sealed = [path for path in opened if "t10k" in path or "_test.npy" in path or "/test/" in path]
    print(json.dumps([words, status, sealed]), file=results, flush=True)
"""

STUDY = """\
name = "tiny"
data = { dataset = "mnist", train_size = 60 }
network = { kind = "mlp", hidden = [8] }
optimizer = { lr = { low = 1e-3, high = 0.5, log = true } }
training = { epochs = 2, batch_size = 40, precision = "float32", keep = "best", keep_trials = 9 }
search = { trials = 6, sampler = "random", population = 4 }
"""

USER_DATA = """\
launch {name}.toml --device cpu --quiet
test {name} --device cpu
"""
"""A search and a test for each kind of user data."""

COMMANDS = """\
version
doctor
data list
data fetch digits
init --data mnist -o starter.toml
check tiny.toml
submit tiny.toml
status tiny --json
pause tiny
resume tiny
stop tiny
resume tiny
work --until-idle --device cpu
launch tiny.toml --name other --device cpu --quiet
delete other --yes
studies
top tiny
compare tiny
plot tiny -o figures
plot tiny --figure activations -o figures
confirm tiny --top 1 --seeds 2 --device cpu --quiet
ensemble tiny --device cpu
verify tiny --trials 1 --device cpu
export tiny -o best.json
export tiny --all
replay best.json --device cpu
narrow tiny -o next.toml
narrow tiny --rounds 1 --device cpu --quiet
report tiny -o report.html
copy tiny --to sqlite:///copy.db
dashboard --port 0
test tiny --device cpu
test tiny --device cpu --again --from-checkpoint --trial 0
predict tiny-test images.npy --device cpu
report tiny -o report.html
export tiny --confirmed
"""

ANY_STATUS = {"doctor", "dashboard"}
"""Commands whose exit status depends on the machine, or on the signal that stops them."""


def known_commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield every command of the command line as its words."""
    inner = getattr(command or get_command(app), "commands", None)
    if inner is None:
        yield words
        return
    for name, each in inner.items():
        yield from known_commands(each, (*words, name))


def sealed_files_opened(folder: Path, commands: list[list[str]]) -> list[tuple[list[str], set[str]]]:
    """Run the commands in one process; return the sealed files, or members of a file, that each opened."""
    environment = {**os.environ, "HPO_DATA_DIR": str(folder / "data")}
    done = forks.run([json.dumps(commands)], script=RUN, cwd=folder, env=environment)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [words for words, _, _ in found] == commands, done.stderr
    failed = [words for words, status, _ in found if status != 0 and words[0] not in ANY_STATUS]
    assert not failed, done.stderr
    return [(words, set(opened)) for words, _, opened in found]


def test_only_hpo_test_opens_test_files(folder: Path) -> None:
    (folder / "tiny.toml").write_text(STUDY)
    write_mnist(folder / "data" / "mnist")
    write_mnist(folder / "data" / "sealed", seed=1, count=20)
    for name in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        (folder / "data" / "sealed" / f"train-{name}").rename(folder / "data" / "mnist" / f"t10k-{name}")
    np.save(folder / "images.npy", np.zeros((3, 28, 28), np.uint8))
    commands = [shlex.split(line) for line in COMMANDS.splitlines()]
    found = sealed_files_opened(folder, commands)
    run = {words for words in known_commands() if any(words == tuple(each[: len(words)]) for each in commands)}
    assert run == set(known_commands())
    sealed = {str(folder / "data" / "mnist" / f"t10k-{name}") for name in ("images-idx3-ubyte", "labels-idx1-ubyte")}
    for words, opened in found:
        assert opened == (sealed if words[0] == "test" else set()), words


def test_only_hpo_test_opens_the_test_set_of_user_data(folder: Path) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (60, 4, 3), dtype=np.uint8), np.arange(60) % 2
    np.savez(folder / "images.npz", x=x[:50], y=y[:50], x_test=x[50:], y_test=y[50:])
    for index, (image, label) in enumerate(zip(x, y, strict=True)):
        target = folder / "pictures" / ("test" if index >= 50 else "train") / str(label)
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{index}.png")
    data = {"arrays": "npz:images.npz", "pictures": "folder:pictures"}
    for name, dataset in data.items():
        written = STUDY.replace("tiny", name).replace('"mnist", train_size = 60', f'"{dataset}"')
        (folder / f"{name}.toml").write_text(written.replace("trials = 6", "trials = 2").replace("[8]", "[2]"))
    commands = [shlex.split(line) for name in data for line in USER_DATA.format(name=name).splitlines()]
    sealed = {
        "arrays": {f"{folder / 'images.npz'}:{name}_test.npy" for name in "xy"},
        "pictures": {str(path) for path in (folder / "pictures" / "test").glob("*/*.png")},
    }
    for words, opened in sealed_files_opened(folder, commands):
        assert opened == (sealed[words[1]] if words[0] == "test" else set()), words
