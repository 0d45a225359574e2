"""Sealed test set: an audit hook in a real process shows that a search opens no test file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from forks import run
from tiny import check_whole, study_of, trials_of, write_mnist

from hpo.storage import Storage

SCRIPT = """
import json, os, sys, threading

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)

from hpo.results.display.check import check_report
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.storage import open_storage
from hpo.studyfile import parse_study

study = parse_study(json.loads(sys.argv[1]), "studies/tiny.toml")
check_report(study, "cpu")
launch(study, open_storage(sys.argv[2]), LaunchOptions(device="cpu"), on_event=print, stop=threading.Event())
print(json.dumps([path for path in opened if path.startswith(os.environ["HPO_DATA_DIR"])]))
"""


@pytest.mark.parametrize("present", [True, False])
def test_a_search_needs_no_test_files_and_opens_none(present: bool, storage: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "mnist"
    write_mnist(folder)
    if present:
        for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            (folder / name).write_bytes(b"sealed")
    study = study_of(data={"dataset": "mnist", "train_size": 50}, training={"epochs": 1})
    process = run(
        [json.dumps(study.resolved()), storage.location.full_url],
        script=SCRIPT,
        env={**os.environ, "HPO_DATA_DIR": str(tmp_path / "data")},
    )
    assert process.returncode == 0, process.stderr
    opened = {Path(path).name for path in json.loads(process.stdout.splitlines()[-1])}
    assert opened == {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"}
    check_whole(trials_of(storage), 6)
