"""What is written to a tracker: every trial once, also after failures, and by one process at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import tree
from tracked_trials import tracked

import hpo
from hpo.errors import HpoError, UsageError
from hpo.storage import Storage, open_storage
from hpo.tracking import targets
from hpo.tracking.content import Model, StudyContent, TrackedStudy, TrackedTrial
from hpo.tracking.sync import Sync
from hpo.tracking.targets import Target, parse_targets


class Recorder:
    """A tracker that records the calls; `fails` are the trials whose next call raises."""

    follows_running = True

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails: set[int] = set()
        self.digests: dict[int, str] = {}

    def open(self, study: TrackedStudy) -> Mapping[int, str]:
        self.calls.append(("open",))
        return self.digests

    def write(self, trial: TrackedTrial) -> None:
        self._call("write", trial)

    def extend(self, trial: TrackedTrial, before: TrackedTrial) -> None:
        self._call("extend", trial)

    def write_model(self, model: Model) -> None:
        self.calls.append(("model", model.number))

    def close(self) -> None:
        self.calls.append(("close",))

    def _call(self, name: str, trial: TrackedTrial) -> None:
        if trial.number in self.fails:
            self.fails.remove(trial.number)
            raise OSError("down")
        self.calls.append((name, trial.number, trial.state, len(trial.curves.get("val_loss", ()))))

    def new(self) -> list[tuple[Any, ...]]:
        """Return the calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


class RecorderTarget(Target):
    """A target whose tracker is a recorder."""

    recorder: Recorder

    def open(self) -> Any:
        return self.recorder


def target_of(recorder: Recorder) -> Target:
    target = RecorderTarget("mlflow", "somewhere", "mlflow:somewhere")
    object.__setattr__(target, "recorder", recorder)
    return target


@pytest.fixture
def storage(study: hpo.StoredStudy, tmp_path: Path) -> Storage:
    return open_storage(f"sqlite:///{tmp_path}/hpo.db")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def sync(storage: Storage, recorder: Recorder) -> Sync:
    return Sync(storage, StudyContent(storage, "tiny"), target_of(recorder))


def put(sync: Sync, *trials: TrackedTrial) -> None:
    sync.add(trials)
    assert sync.write()


def test_what_is_new_of_a_running_trial_is_appended(sync: Sync, recorder: Recorder) -> None:
    put(sync, tracked(0, "running", [0.1]), tracked(1, "waiting"))
    put(sync, tracked(0, "running", [0.1]))
    put(sync, tracked(0, "running", [0.1, 0.2]))
    put(sync, tracked(0, "complete", [0.1, 0.2, 0.3]))
    put(sync, tracked(0, "complete", [0.1, 0.2, 0.3]))
    assert recorder.new() == [
        ("open",),
        ("write", 0, "running", 1),
        ("extend", 0, "running", 2),
        ("extend", 0, "complete", 3),
    ]


def test_a_requeued_trial_waits_with_its_curve_and_is_rewritten_when_it_starts_anew(
    sync: Sync, recorder: Recorder
) -> None:
    put(sync, tracked(0, "running", [0.1, 0.2]))
    put(sync, tracked(0, "waiting"))
    put(sync, tracked(0, "running", [0.5]))
    assert recorder.new()[1:] == [
        ("write", 0, "running", 2),
        ("extend", 0, "waiting", 2),
        ("write", 0, "running", 1),
    ]


def test_after_a_failure_the_runs_are_looked_up_again_and_nothing_is_lost(sync: Sync, recorder: Recorder) -> None:
    put(sync, tracked(0, "running", [0.1]))
    recorder.fails = {1}
    sync.add([tracked(0, "running", [0.1, 0.2]), tracked(1, "complete", [0.3]), tracked(2, "complete", [0.4])])
    with pytest.raises(OSError, match="down"):
        sync.write()
    recorder.new()
    put(sync, tracked(0, "running", [0.1, 0.2, 0.3]))
    assert recorder.new() == [
        ("open",),
        ("write", 0, "running", 3),
        ("write", 1, "complete", 1),
        ("write", 2, "complete", 1),
    ]


def test_ended_trials_that_are_there_are_left_alone_and_changed_ones_are_rewritten(
    sync: Sync, recorder: Recorder
) -> None:
    same, changed = tracked(0, "complete", [0.1]), tracked(1, "complete", [0.1, 0.2])
    recorder.digests = {0: same.digest, 1: tracked(1, "complete", [0.1]).digest}
    put(sync, same, changed)
    assert recorder.new() == [("open",), ("write", 1, "complete", 2)]


def test_one_process_at_a_time_writes(sync: Sync, recorder: Recorder, storage: Storage) -> None:
    second = Sync(storage, StudyContent(storage, "tiny"), target_of(other := Recorder()))
    put(sync, tracked(0, "complete", [0.1]))
    second.add([tracked(0, "complete", [0.1])])
    assert not second.write()
    assert other.new() == []
    sync.close()
    assert second.write()
    assert other.new() == [("open",), ("write", 0, "complete", 1)]
    assert not sync.write()


def test_news_are_the_trials_that_have_changed(storage: Storage) -> None:
    content = StudyContent(storage, "tiny")
    assert [trial.number for trial in content.news()] == list(range(16))
    assert content.news() == []


def test_wrong_trackers_are_refused_before_anything_is_stored(
    study: hpo.StoredStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UsageError, match=r"--track: unknown tracker 'mlfow' \(did you mean 'mlflow'\?\); known: mlflow, tensor"
    ):
        parse_targets(["mlfow"], "--track")
    with pytest.raises(UsageError, match="--track: wandb: is given twice"):
        parse_targets(["wandb", "wandb:"], "--track")
    with pytest.raises(UsageError, match=r"--to: hpo.db is not a folder"):
        study.export_to("tensorboard:hpo.db")
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    with pytest.raises(
        HpoError, match=r"--track: mlflow is not installed; install it with `pip install 'hpo\[mlflow\]'`"
    ):
        hpo.launch(tree(name="new"), storage="sqlite:///new.db", track="mlflow")
    assert [each.name for each in hpo.studies(storage="sqlite:///new.db")] == []


def test_the_place_is_that_of_the_environment_or_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_targets(["mlflow"], "--track")[0].place == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    assert parse_targets(["mlflow"], "--track")[0].place == "http://elsewhere:1"
    (hidden,) = parse_targets(["mlflow:http://me:secret@elsewhere:1"], "--track")
    assert "secret" not in f"{hidden} {hidden.shown}"
