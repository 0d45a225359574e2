"""`--extend` with more epochs: completed trials continue from their training states, or keep their results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from lock_step import LockStep
from optuna.trial import TrialState
from postgresql_server import Server
from tiny import after_epochs, search, states, study_of, trials_of

from hpo.errors import StudyBusyError, UsageError
from hpo.results.confirm.study import create_confirming_study
from hpo.results.export.best import export
from hpo.results.export.text import export_text
from hpo.results.reproduce.replay import replay
from hpo.results.reproduce.verify import verify
from hpo.results.selection import select
from hpo.search.events import Event, Note
from hpo.search.launch import submit
from hpo.search.loop import Search
from hpo.search.options import LaunchOptions
from hpo.search.study_records import CURVE
from hpo.storage import Storage, best_trials, identity, load_study, open_storage
from hpo.storage.artifacts import artifact_folder, state_file_id
from hpo.studyfile import Study
from hpo.training.early_stopping import has_stopped_improving

Trained = list[tuple[int, int]]


def study_with(epochs: int, name: str = "tiny", keep_trials: int = 3, **changes: dict[str, Any]) -> Study:
    training, keys = changes.pop("training", {}), changes.pop("search", {})
    return study_of(
        name=name,
        network={"dropout": 0.2, "batch_norm": True},
        training={"epochs": epochs, "keep": "last", "keep_trials": keep_trials, **training},
        search={"trials": 6, "metric": "val_loss", **keys},
        **{"optimizer": {"kind": "adam", "lr": {"low": 1e-3, "high": 0.1, "log": True}}, **changes},
    )


def notes(events: Collection[Event]) -> list[str]:
    texts = [event.text for event in events if isinstance(event, Note)]
    return [text for text in texts if not text.startswith("pruner: ")]


Curves = dict[int, dict[str, list[float]]]


def curves_of(storage: Storage, name: str = "tiny") -> Curves:
    complete = [trial for trial in trials_of(storage, name) if trial.state == TrialState.COMPLETE]
    return {trial.number: trial.system_attrs[CURVE] for trial in complete}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Curves:
    """Return the curves of a study of 12 trials and 9 epochs, trained without interruption."""
    with closing(open_storage(f"sqlite:///{tmp_path_factory.mktemp('whole')}/hpo.db")) as storage:
        search(study_with(9, search={"trials": 12}), storage)
        return curves_of(storage)


def check_curves(found: Curves, whole: Curves, *epochs: int) -> None:
    """Check that the trials were trained for one of these numbers of epochs, with curves that `whole` begins with."""
    for number, curve in found.items():
        for metric, values in curve.items():
            assert len(values) in epochs
            assert values == pytest.approx(whole[number][metric][: len(values)], rel=1e-9, abs=1e-12)


def state_file(storage: Storage, number: int) -> Path:
    own_id = identity(load_study(storage, "tiny").user_attrs, "tiny")
    return artifact_folder(storage.location) / state_file_id(own_id, number)


def with_states(storage: Storage) -> set[int]:
    return {trial.number for trial in trials_of(storage) if state_file(storage, trial.number).exists()}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Return a list of the trained epochs, each with its trial's number."""
    epochs, real = Trained(), Search.report

    def report(self: Search, epoch: int, scores: Mapping[int, float]) -> set[int]:
        epochs.extend((number, epoch) for number in scores)
        return real(self, epoch, scores)

    monkeypatch.setattr(Search, "report", report)
    return epochs


def test_the_best_trials_continue_and_the_others_stay(storage: Storage, trained: Trained, whole: Curves) -> None:
    search(study_with(3), storage)
    before, first = curves_of(storage), {trial.number for trial in best_trials(storage, "tiny", 3)}
    assert with_states(storage) == first
    events = search(study_with(6), storage, extend=True)
    assert notes(events) == ["3 completed trials continue from epoch 3; 3 without a training state stay at 3 epochs"]
    assert sorted(trained) == sorted((n, e) for n in range(6) for e in range(1, 7 if n in first else 4))
    trials = trials_of(storage)
    assert states(trials) == [TrialState.COMPLETE] * 6
    for trial in trials:
        losses = trial.system_attrs[CURVE]["val_loss"]
        assert trial.value == losses[-1]
        assert trial.intermediate_values == dict(enumerate(losses, 1))
        assert trial.datetime_start is not None
        assert trial.datetime_complete is not None
    found = curves_of(storage)
    check_curves({number: found[number] for number in first}, whole, 6)
    assert {number: found[number] for number in found.keys() - first} == {
        number: before[number] for number in before.keys() - first
    }
    best = {trial.number for trial in best_trials(storage, "tiny", 3)}
    assert with_states(storage) == {number for number in best if len(found[number]["val_loss"]) == 6}
    (change,) = load_study(storage, "tiny").user_attrs["hpo:changes"]
    assert change["changed"] == ["training.epochs: 3 -> 6"]


def test_trials_continue_after_every_extension(storage: Storage, trained: Trained, whole: Curves) -> None:
    for epochs, trials in ((2, 4), (3, 6), (5, 6)):
        search(study_with(epochs, keep_trials=6, search={"trials": trials}), storage, extend=True)
    assert sorted(trained) == sorted((number, epoch) for number in range(6) for epoch in range(1, 6))
    check_curves(curves_of(storage), whole, 5)


def test_unfinished_trials_continue_to_the_new_last_epoch(storage: Storage, trained: Trained, whole: Curves) -> None:
    search(study_with(4, training={"checkpoint": 1, "keep": "none"}), storage, stop_at=after_epochs(2))
    assert TrialState.COMPLETE not in states(trials_of(storage))
    events = search(study_with(6, training={"checkpoint": 1, "keep": "none"}), storage, extend=True)
    assert notes(events) == []
    assert sorted(trained) == sorted((number, epoch) for number in range(6) for epoch in range(1, 7))
    check_curves(curves_of(storage), whole, 6)


@pytest.mark.parametrize(("seed", "epochs"), [(2, 4), (5, 3)])
def test_trials_that_ended_early_stay_ended(seed: int, epochs: int, storage: Storage, trained: Trained) -> None:
    """Patience that ends a trial at the last epoch would end it there with any number of epochs."""
    given: dict[str, Any] = {
        "optimizer": {"kind": "adam", "lr": {"low": 0.05, "high": 3.0, "log": True}},
        "training": {"patience": 2},
        "search": {"seed": seed},
    }
    search(study_with(4, keep_trials=6, **given), storage)
    before = curves_of(storage)
    early = {n for n, curve in before.items() if has_stopped_improving(2, curve["val_loss"], minimized=True)}
    assert {len(before[number]["val_loss"]) for number in early} == {epochs}
    trained.clear()
    events = search(study_with(8, keep_trials=6, **given), storage, extend=True)
    text = f"{6 - len(early)} completed trials continue from epoch 4; {len(early)} ended early (training.patience)"
    assert notes(events) == [text]
    found = curves_of(storage)
    assert {number: found[number] for number in early} == {number: before[number] for number in early}
    assert {epoch for _, epoch in trained} == {5, 6, 7, 8}
    search(study_with(8, name="whole", **given), storage)
    expected = curves_of(storage, "whole")
    assert [len(found[number]["val_loss"]) for number in range(6)] == [len(expected[n]["val_loss"]) for n in range(6)]
    check_curves(found, expected, *range(9))


def test_a_damaged_state_leaves_its_trial_as_it_is(storage: Storage) -> None:
    search(study_with(3), storage)
    number = best_trials(storage, "tiny", 1)[0].number
    file, before = state_file(storage, number), curves_of(storage)
    file.write_bytes(file.read_bytes()[:-9])
    events = search(study_with(4), storage, extend=True)
    assert notes(events) == ["2 completed trials continue from epoch 3; 4 without a training state stay at 3 epochs"]
    assert curves_of(storage)[number] == before[number]


def test_without_states_all_completed_trials_stay(storage: Storage, trained: Trained) -> None:
    search(study_with(2, training={"keep": "none"}), storage)
    trials = trials_of(storage)
    longer = study_with(4, training={"keep": "none"}, search={"trials": 7})
    assert notes(search(longer, storage, extend=True)) == [
        "6 completed trials without a training state stay at 2 epochs"
    ]
    assert trials_of(storage)[:6] == trials
    assert len(curves_of(storage)[6]["val_loss"]) == 4


def test_the_best_epoch_of_a_continued_trial_is_set_again(storage: Storage) -> None:
    best: dict[str, Any] = {"search": {"score": "best"}}
    search(study_with(2, **best), storage)
    submit(study_with(5, **best), storage, LaunchOptions(extend=True))
    waiting = [trial for trial in trials_of(storage) if trial.state == TrialState.WAITING]
    assert len(waiting) == 3
    for trial in waiting:
        assert trial.values is None
        assert trial.intermediate_values == {}
        assert trial.datetime_complete is None
        assert "score_epoch" not in trial.user_attrs
        assert CURVE not in trial.system_attrs
    search(study_with(5, **best), storage)
    for trial in trials_of(storage):
        losses = trial.system_attrs[CURVE]["val_loss"]
        assert trial.value == min(losses) == losses[trial.user_attrs["score_epoch"] - 1]


def test_a_submission_says_which_trials_continue(storage: Storage) -> None:
    search(study_with(2), storage)
    said: list[str] = []
    submit(study_with(3), storage, LaunchOptions(extend=True), say=said.append)
    assert said == ["3 completed trials continue from epoch 2; 3 without a training state stay at 2 epochs"]


def test_a_limit_that_is_reached_is_refused(storage: Storage) -> None:
    search(study_with(2, keep_trials=1, search={"seed": 1}), storage)
    before = trials_of(storage)
    for key, limit in (("timeout", 0.001), ("patience", 1)):
        problem = f"training.epochs: search.{key} = {limit} has been reached, so completed trials"
        with pytest.raises(UsageError, match=problem):
            search(study_with(3, keep_trials=1, search={key: limit, "seed": 1}), storage, extend=True)
        assert trials_of(storage) == before


def test_a_live_worker_refuses_the_extension(lock_step: Callable[[Study, Storage], LockStep], storage: Storage) -> None:
    search(study_with(2), storage)
    submit(study_with(2, search={"trials": 8}), storage, LaunchOptions(extend=True))
    running = lock_step(study_with(2, search={"trials": 8}), storage)
    running.wait_for("epoch_ended")
    before = curves_of(storage)
    with pytest.raises(StudyBusyError, match="is being searched by process"):
        search(study_with(3, search={"trials": 8}), storage, extend=True)
    assert curves_of(storage) == before
    running.kill()


def test_results_of_trials_with_fewer_epochs_than_the_study(storage: Storage, tmp_path: Path) -> None:
    """Verify, export, replay and the selected configuration have the epochs that each trial was trained for."""
    search(study_with(2), storage)
    first = {trial.number for trial in best_trials(storage, "tiny", 3)}
    search(study_with(4), storage, extend=True)
    certificate = verify(storage, "tiny", 6, "cpu", threading.Event(), pytest.fail)
    assert len(certificate["trials"]) == 6
    assert max(certificate["largest"].values()) <= 1e-9
    for number in (min(first), min(set(range(6)) - first)):
        epochs = 4 if number in first else 2
        exported = export(storage, "tiny", trial=number)
        assert exported["epochs"] == exported["config"]["training"]["epochs"] == epochs
        (tmp_path / "trial.json").write_text(export_text(storage, "tiny", trial=number))
        (run,) = replay(tmp_path / "trial.json", "cpu", threading.Event(), pytest.fail).runs
        assert abs(run.difference) <= 1e-9
        assert max(run.largest.values()) <= 1e-9
        selected = select(storage, "tiny", number)
        assert selected.epochs == selected.config.training.epochs == epochs


def test_a_confirmation_trains_the_epochs_of_the_study(storage: Storage, tmp_path: Path) -> None:
    """The winner is exported, replayed and selected with the epochs of its confirmation."""
    study = study_with(2, training={"keep": "none"})
    search(study, storage)
    search(study_with(3, training={"keep": "none"}), storage, extend=True)
    confirming = create_confirming_study(storage, "tiny", 2, 2)
    search(confirming, storage)
    assert {len(curve["val_loss"]) for curve in curves_of(storage, confirming.name).values()} == {3}
    assert select(storage, "tiny").epochs == 3
    exported = export(storage, "tiny", confirmed=True)
    assert (exported["epochs"], exported["config"]["training"]["epochs"]) == (2, 3)
    (tmp_path / "winner.json").write_text(export_text(storage, "tiny", confirmed=True))
    runs = replay(tmp_path / "winner.json", "cpu", threading.Event(), pytest.fail).runs
    assert [abs(run.difference) <= 1e-9 for run in runs] == [True, True]


def test_trials_continue_on_a_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Curves
) -> None:
    monkeypatch.setenv("HPO_ARTIFACTS", str(tmp_path / "artifacts"))
    with server.database() as name:
        storage = open_storage(server.url(name))
        search(study_with(2, keep_trials=6), storage)
        events = search(study_with(4, keep_trials=6), storage, extend=True)
        assert notes(events) == ["6 completed trials continue from epoch 2"]
        check_curves(curves_of(storage), whole, 4)
        storage.close()


@pytest.mark.parametrize("before", [3, 4])
def test_continued_trials_train_to_the_new_rungs_of_halving(
    before: int, storage: Storage, trained: Trained, whole: Curves
) -> None:
    """The new rungs are 4 and 8. Trials that had completed at epoch 4 are not judged there again."""
    keys: dict[str, Any] = {"search": {"pruner": "halving", "rung": 1, "factor": 2, "trials": 12, "population": 4}}
    search(study_with(before, keep_trials=6, **keys), storage)
    complete = set(curves_of(storage))
    assert with_states(storage) == complete
    assert len(complete) > 1
    pruned = [trial for trial in trials_of(storage) if trial.state == TrialState.PRUNED]
    trained.clear()
    search(study_with(9, keep_trials=6, **keys), storage, extend=True)
    trials = trials_of(storage)
    assert all(trial.state.is_finished() for trial in trials)
    assert [trials[trial.number] for trial in pruned] == pruned
    assert {number for number, _ in trained} == complete
    assert len(trained) == len(set(trained))
    assert {epoch for _, epoch in trained} == set(range(before + 1, 10))
    for number in complete:
        assert ("hpo:rung:4" in trials[number].system_attrs) == (before == 3)
        assert len(trials[number].system_attrs[CURVE]["val_loss"]) in ((4, 8, 9) if before == 3 else (8, 9))
    check_curves(curves_of(storage), whole, 9)
    assert curves_of(storage)
