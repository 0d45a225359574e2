"""Killed, interrupted and paused searches: trials continue from their checkpoints, with unchanged learning curves.

In float64 a curve is that of an uninterrupted search to a relative error of 1e-9. A population's epoch is announced
after its checkpoints are written, so no announced epoch is trained again.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from deadlines import deadline
from forks import Fork
from optuna.trial import FrozenTrial, TrialState
from postgresql_server import Server
from tiny import after_epochs, search, states, study_of, trials_of

from hpo.search.checkpoints import training_checkpoints
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.events import Event, Note, StudyEnded
from hpo.search.populations.population_run import CURVE
from hpo.service.queue_control import delete, pause, resume
from hpo.storage import Storage, identity, load_study, open_storage, running_trials
from hpo.storage.artifacts import artifact_folder, state_file_id
from hpo.studyfile import Study

KILLS = 4  # 20 in the slow tests
EPOCHS = 10
TRIALS = 12
PRECISION = 1e-9
halving = pytest.param("halving", marks=pytest.mark.slow)
"""Also in test_halving_search.py, without files for stops only."""

LAUNCH = """
import json, sys, threading
from hpo.search.launch import launch
from hpo.search.options import LaunchOptions
from hpo.storage import open_storage
from hpo.studyfile import parse_study

def report(event):
    print(json.dumps(event.to_json()), flush=True)

study = parse_study(json.loads(sys.argv[1]), "studies/tiny.toml")
launch(study, open_storage(sys.argv[2]), LaunchOptions(device="cpu"), on_event=report, stop=threading.Event())
"""


def study_with(pruner: str, checkpoint: str | int = 1, **training: Any) -> Study:
    """Return a study whose curves depend on moments, step counts, buffers, random numbers and batches."""
    return study_of(
        network={"hidden": {"choices": [[8], [6, 6]]}, "batch_norm": True, "dropout": {"low": 0.0, "high": 0.4}},
        optimizer={"kind": "adam"},
        training={"epochs": EPOCHS, "batch_size": 30, "checkpoint": checkpoint, **training},
        search={"trials": TRIALS, "pruner": pruner},
    )


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Sequence[FrozenTrial]:
    """Return the trials of the study after a search without interruption and without pruning."""
    with closing(open_storage(f"sqlite:///{tmp_path_factory.mktemp('whole')}/hpo.db")) as storage:
        search(study_with("none"), storage)
        return trials_of(storage)


def announced(events: Iterable[dict[str, Any]]) -> Counter[tuple[int, int]]:
    """Return how often each epoch of each trial has been announced, by number and epoch."""
    counts: Counter[tuple[int, int]] = Counter()
    members: list[int] = []
    for event in events:
        if event["event"] == "population_started":
            members = event["members"]
        elif event["event"] == "epoch_ended":
            counts.update((number, event["epoch"]) for number in members)
    return counts


class Launch:
    """A launch in a child process, and the events that it has printed."""

    def __init__(self, study: Study, storage: Storage) -> None:
        self.events: list[dict[str, Any]] = []
        args = [json.dumps(study.resolved()), storage.location.full_url]
        self._process = Fork(args, script=LAUNCH, stdout=PIPE)

    def epochs(self, count: int) -> bool:
        """Read events until `count` epochs have ended; return False if the launch ended before."""
        assert self._process.stdout is not None
        while count and (line := self._process.stdout.readline()):
            self.events.append(json.loads(line))
            count -= self.events[-1]["event"] == "epoch_ended"
        return not count

    def end(self, sent: signal.Signals | None = None) -> int:
        """Send a signal to the process, read its last events, and return its exit status."""
        if sent is not None:
            self._process.send_signal(sent)
        output, _ = self._process.communicate(deadline())
        whole_lines = output.rpartition("\n")[0].splitlines()  # a killed process can leave an incomplete line
        self.events += [json.loads(line) for line in whole_lines]
        with self._process:
            return self._process.wait()


def check_continued(storage: Storage, whole: Sequence[FrozenTrial], *, pruned: bool) -> None:
    """Check that each trial has ended with the curve of an uninterrupted search, and has left no file."""
    trials = trials_of(storage)
    assert [trial.number for trial in trials] == list(range(len(whole)))
    for trial, other in zip(trials, whole, strict=True):
        assert trial.state in {TrialState.COMPLETE, *([TrialState.PRUNED] if pruned else [])}
        curve, expected = trial.system_attrs[CURVE], other.system_attrs[CURVE]
        assert trial.params == other.params
        assert curve.keys() == expected.keys()
        epochs = len(curve["val_accuracy"])
        assert epochs == EPOCHS or trial.state == TrialState.PRUNED
        for metric, values in curve.items():
            assert values == pytest.approx(expected[metric][:epochs], rel=PRECISION), f"trial {trial.number}, {metric}"
        assert trial.intermediate_values == dict(enumerate(curve["val_accuracy"], 1))
    assert any(trial.state == TrialState.COMPLETE for trial in trials)
    assert running_trials(storage) == []
    assert files(storage) == []


def files(storage: Storage) -> list[str]:
    folder = artifact_folder(storage.location)
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.fixture
def server_storage(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path / "artifacts"))
    with server.database() as name, closing(open_storage(server.url(name))) as storage:
        yield storage


@pytest.mark.parametrize("pruner", ["none", "halving"])
@pytest.mark.parametrize("kind", ["storage", pytest.param("server_storage", marks=pytest.mark.slow)])
def test_a_search_killed_at_random_moments_trains_no_announced_epoch_again(
    pruner: str,
    kind: str,
    times: int,
    request: pytest.FixtureRequest,
    whole: Sequence[FrozenTrial],
    pytestconfig: pytest.Config,
) -> None:
    seed: int = pytestconfig.getoption("randomly_seed", default=0)
    print(f"--randomly-seed={seed} draws these kills again")
    draw, study, launches = random.Random(seed), study_with(pruner), list[Launch]()
    storage: Storage = request.getfixturevalue(kind)
    kills = 0
    while kills < KILLS * times:
        launches.append(Launch(study, storage))
        if launches[-1].epochs(draw.choice([0, 1, 2])):  # few, so that the study outlives all kills
            time.sleep(draw.uniform(0, 0.02))
        kills += launches[-1].end(signal.SIGKILL) == -signal.SIGKILL
    launches.append(Launch(study, storage))
    assert launches[-1].end() == 0
    check_continued(storage, whole, pruned=pruner == "halving")
    assert set(announced(event for each in launches for event in each.events).values()) == {1}


def as_json(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    return (event.to_json() for event in events)


@pytest.fixture
def on_stops_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `checkpoint = "auto"` write files only where a search stops."""
    monkeypatch.setattr(training_checkpoints, "FIRST_WRITE_S", math.inf)


def check_interrupted(storage: Storage, events: Iterable[Event]) -> None:
    """Check that the unfinished trials wait, and that those which have been trained have a file."""
    unfinished = [trial for trial in trials_of(storage) if not trial.state.is_finished()]
    assert set(states(unfinished)) == {TrialState.WAITING}
    trained = {number for number, _ in announced(as_json(events))}
    numbers = {trial.number for trial in unfinished}
    assert {number for number in numbers if path_of(storage, "tiny", number).exists()} == numbers & trained
    assert len(files(storage)) == len(numbers & trained)


def path_of(storage: Storage, name: str, number: int) -> Path:
    own = identity(load_study(storage, name).user_attrs, name)
    return artifact_folder(storage.location) / state_file_id(own, number)


def after(epochs: int, action: Callable[[], object]) -> Callable[[Event], bool]:
    """Return a listener that calls `action` after a number of epochs, and stops no search."""
    reached = after_epochs(epochs)
    return lambda event: bool(reached(event) and action()) and False


@pytest.mark.parametrize("pruner", ["none", halving])
def test_an_interrupted_search_continues_from_the_last_epoch(
    pruner: str, storage: Storage, on_stops_only: None, whole: Sequence[FrozenTrial]
) -> None:
    study = study_with(pruner, "auto")
    events: list[Event] = []
    for epochs in (1, 4, 9):
        events += search(study, storage, stop_at=after_epochs(epochs))
        check_interrupted(storage, events)
    events += search(study, storage)
    check_continued(storage, whole, pruned=pruner == "halving")
    assert set(announced(as_json(events)).values()) == {1}


@pytest.mark.parametrize("pruner", ["none", halving])
def test_a_paused_search_continues_from_the_last_epoch(
    pruner: str, storage: Storage, on_stops_only: None, whole: Sequence[FrozenTrial]
) -> None:
    """A worker notices a pause when it stores the next epoch: that epoch is trained, but announced without it."""
    study = study_with(pruner, "auto")
    events: list[Event] = []
    for epochs in (2, 5):
        events += search(study, storage, stop_at=after(epochs, lambda: pause(storage, "tiny")))
        assert isinstance(events[-1], StudyEnded)
        assert events[-1].reason == "paused"
        check_interrupted(storage, events)
        resume(storage, "tiny")
    events += search(study, storage)
    check_continued(storage, whole, pruned=pruner == "halving")
    counts = announced(as_json(events))
    assert set(counts.values()) == {1}, counts


@pytest.mark.parametrize("pruner", ["none", halving])
def test_trials_with_damaged_and_foreign_files_start_again(
    pruner: str, storage: Storage, on_stops_only: None, whole: Sequence[FrozenTrial]
) -> None:
    study = study_with(pruner, "auto")
    for each in (study, study.renamed("other")):
        search(each, storage, stop_at=after_epochs(EPOCHS + 2))
    trained = [n for n in range(TRIALS) if all(path_of(storage, name, n).exists() for name in ("tiny", "other"))]
    damaged, foreign, *_ = trained
    content = path_of(storage, "tiny", damaged).read_bytes()
    path_of(storage, "tiny", damaged).write_bytes(content[:-1])
    path_of(storage, "tiny", foreign).write_bytes(path_of(storage, "other", foreign).read_bytes())
    events = search(study, storage)
    notes = [event.text for event in events if isinstance(event, Note) and "training checkpoint" in event.text]
    assert len(notes) == 2
    assert notes[0].startswith(f"trial {damaged}: its training checkpoint ")
    assert "is damaged or truncated" in notes[0]
    assert notes[1].startswith(f"trial {foreign}: its training checkpoint ")
    assert "is a file of another study" in notes[1]
    assert all(note.endswith("the trial starts again at epoch 1") for note in notes)
    again = announced(as_json(events))
    assert [number for number in trained if (number, 1) in again] == [damaged, foreign]
    delete(storage, "other")
    check_continued(storage, whole, pruned=pruner == "halving")


def test_files_that_a_killed_worker_left_of_ended_trials_are_removed_at_the_end(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_with("none")
    with monkeypatch.context() as patch:
        patch.setattr(TrainingCheckpoints, "remove", lambda self, numbers: None)
        search(study, storage, stop_at=after_epochs(EPOCHS + 2))
    assert TrialState.COMPLETE in states(trials_of(storage))
    assert files(storage) != []
    search(study, storage)
    assert files(storage) == []
