"""Weights & Biases (offline) and Trackio: what `hpo export --to` writes, read back from their files."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from forks import run
from tiny import tree

import hpo

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trackers' own packages

BLOCK, HEADER = 1 << 15, 7
"""Sizes in bytes of a .wandb file, which is a log of LevelDB: blocks of records with checksum, size, type."""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> hpo.StoredStudy:
    """Return a study of two trials, one of them kept."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    study = tree(name="small", training={"keep": "last", "keep_trials": 1}, search={"trials": 2})
    return hpo.launch(study, storage="sqlite:///hpo.db", device="cpu", progress="quiet")


def export(tracker: str) -> None:
    """Export in a process of its own: these packages leave threads and processes behind."""
    done = run(["export", "small", "--storage", "sqlite:///hpo.db", "--to", tracker])
    assert (done.returncode, done.stdout, done.stderr) == (0, f"small: 2 trials in {tracker}\n", "")


def records(file: Path) -> Iterator[Any]:
    """Yield the records of a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, part = file.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        part += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (1, 4):  # a whole record, or its last part
            yield Record.FromString(part)
            part = b""


def items(group: Any) -> dict[str, Any]:
    return {each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in group}


def test_wandb_has_the_trials_once(small: hpo.StoredStudy, tmp_path: Path) -> None:
    export("wandb")
    trials = small.trials()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    models: dict[int, list[str]] = {}
    curves: dict[int, dict[str, list[float]]] = {0: {}, 1: {}}
    for folder in folders:
        (file,) = folder.glob("run-*.wandb")
        found = list(records(file))
        (run,) = [each.run for each in found if each.HasField("run")][:1]
        number = int(run.run_id.rpartition("-")[2])
        models[number] = models.get(number, []) + [each.artifact.name for each in found if each.HasField("artifact")]
        for each in found:
            if each.HasField("history"):
                row = items(each.history.item)
                for name, value in row.items():
                    if not name.startswith("_"):
                        curves[number].setdefault(name, []).append(value)
        trial, config = trials[number], items(run.config.update)
        assert (run.project, run.run_group, run.display_name) == ("small", "small", f"trial {number}")
        assert list(run.tags) == [trial.state]
        assert config["lr"] == trial.params["lr"]
        assert config["seed"] == trial.seed
    for trial in trials:
        assert {name: tuple(values) for name, values in curves[trial.number].items()} == {
            name: tuple(values) for name, values in trial.curve.items()
        }
    assert models[small.best.number] == [f"small-trial-{small.best.number}"]
    export("wandb")
    assert sorted((tmp_path / "wandb").glob("offline-run-*")) == folders


def test_trackio_has_the_trials_once(small: hpo.StoredStudy, tmp_path: Path) -> None:
    export("trackio")
    before = rows(tmp_path)
    for trial in small.trials():
        logged, config = before[f"trial {trial.number}"]
        for name, values in trial.curve.items():
            assert [row[name] for row in logged] == values.tolist()
        assert config["lr"] == trial.params["lr"]
        assert config["hpo.state"] == trial.state
        assert logged[-1]["score"] == trial.value
    export("trackio")
    assert rows(tmp_path) == before


def rows(folder: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Return the logged metrics, by step, and the config of each run in Trackio's file."""
    with closing(sqlite3.connect(folder / "trackio" / "small.db")) as database:
        logged = database.execute("select run_name, metrics from metrics order by run_name, step").fetchall()
        configs = dict(database.execute("select run_name, config from configs").fetchall())
    assert len(configs) == 2
    found: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        name: ([], json.loads(text)) for name, text in configs.items()
    }
    for name, metrics in logged:
        found[name][0].append(json.loads(metrics))
    return found
