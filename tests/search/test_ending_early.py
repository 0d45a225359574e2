"""Early stopping by training.patience: trials complete with shorter learning curves, alone or with a pruner."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState
from test_checkpoints import check_checkpoints
from tiny import after_epochs, check_same_trials, check_whole, curves, search, states, study_of, trials_of

from hpo.results.compare.runs import groups
from hpo.results.compare.table import summarize
from hpo.results.export.best import export
from hpo.results.export.text import export_text
from hpo.results.reproduce.replay import replay
from hpo.results.reproduce.verify import verify
from hpo.search.events import EpochEnded, PopulationEnded
from hpo.storage import Storage, open_storage
from hpo.studyfile import Study

NewStorage = Callable[[], Storage]
EPOCHS = 8
RATES = {"low": 0.5, "high": 20.0, "log": True}


def impatient(lr: Any = RATES, training: dict[str, Any] | None = None, **changes: Any) -> Study:
    """Return a study with fluctuating losses and trials of different patience."""
    return study_of(
        network={"batch_norm": True, "dropout": 0.2},
        optimizer={"lr": lr, "schedule": "cosine", "clip": 1.0},
        training={
            "epochs": EPOCHS,
            "patience": {"choices": [1, 2, 20]},
            "label_smoothing": 0.1,
            "shift": {"choices": [0, 1]},
            "flip": 0.5,
            **(training or {}),
        },
        search={"trials": 12, "population": 6, "metric": "val_loss", **changes},
    )


def early_stopping_epoch(values: list[float], patience: int) -> int:
    """Return the epoch at which early stopping with this patience ends a learning curve."""
    for epoch in range(1, len(values) + 1):
        if epoch - 1 - values.index(min(values[:epoch])) >= patience:
            return epoch
    return EPOCHS


@pytest.fixture(scope="module")
def uninterrupted_trials(tmp_path_factory: pytest.TempPathFactory) -> list[FrozenTrial]:
    storage = open_storage(f"sqlite:///{tmp_path_factory.mktemp('patience')}/hpo.db")
    search(impatient(), storage)
    trials = trials_of(storage)
    storage.close()
    return trials


@pytest.mark.parametrize("score", ["last", "best"])
def test_trial_without_improvement_completes_early_with_its_score(score: str, storage: Storage) -> None:
    events = search(impatient(score=score), storage)
    trials = trials_of(storage)
    check_whole(trials, 12)
    assert set(states(trials)) == {TrialState.COMPLETE}
    lengths = []
    for trial, curve in zip(trials, curves(trials), strict=True):
        losses = curve["val_loss"]
        assert len(losses) == early_stopping_epoch(losses, trial.params["training.patience"])
        assert {len(values) for values in curve.values()} == {len(losses)}
        assert trial.intermediate_values == dict(enumerate(losses, start=1))
        assert trial.value == (min(losses) if score == "best" else losses[-1])
        lengths.append(len(losses))
    assert min(lengths) < EPOCHS == max(lengths)
    ended = [event for event in events if isinstance(event, PopulationEnded)]
    assert sum(event.completed for event in ended) == 12
    assert min(event.best for event in ended if event.best is not None) == min(trial.value or 0.0 for trial in trials)
    first = [event for event in events if isinstance(event, EpochEnded)][:EPOCHS]
    assert [event.left for event in first] == sorted((event.left for event in first), reverse=True)


@pytest.mark.parametrize("epochs", [2, 9])
def test_stopped_search_resumes_to_the_same_trials(
    epochs: int, uninterrupted_trials: list[FrozenTrial], storage: Storage
) -> None:
    search(impatient(), storage, stop_at=after_epochs(epochs))
    assert any(not trial.state.is_finished() for trial in trials_of(storage))
    search(impatient(population=3), storage, extend=True)
    check_same_trials(trials_of(storage), uninterrupted_trials)


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_trial_ends_by_pruner_or_patience_whichever_is_first(pruner: str, storage: Storage) -> None:
    search(impatient(pruner=pruner, trials=24), storage)
    trials = trials_of(storage)
    check_whole(trials, 24)
    for trial, curve in zip(trials, curves(trials), strict=True):
        losses = curve["val_loss"]
        end = early_stopping_epoch(losses, trial.params["training.patience"])
        assert len(losses) == end if trial.state == TrialState.COMPLETE else len(losses) < EPOCHS
        assert trial.value == losses[-1]
    assert TrialState.PRUNED in states(trials)
    assert any(len(t.intermediate_values) < EPOCHS for t in trials if t.state == TrialState.COMPLETE)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_checkpoints_of_early_stopped_trials_are_stored(keep: str, storage: Storage) -> None:
    study = impatient(training={"keep": keep, "keep_trials": 8, "patience": 1})
    search(study, storage)
    check_checkpoints(study, storage)
    best = sorted(trials_of(storage), key=lambda trial: trial.value or 0.0)[:8]
    assert len({len(trial.intermediate_values) for trial in best}) > 1


def test_retrained_trial_ends_at_the_same_epoch(storage: Storage, tmp_path: Path) -> None:
    search(impatient(), storage)
    certificate = verify(storage, "tiny", 12, "cpu", threading.Event(), pytest.fail)
    assert len(certificate["trials"]) == 12
    assert max(certificate["largest"].values()) <= 1e-9
    exported = export(storage, "tiny")
    assert exported["epochs"] == len(exported["curve"]["val_loss"])
    path = tmp_path / "best.json"
    path.write_text(export_text(storage, "tiny"))
    (run,) = replay(path, "cpu", threading.Event(), pytest.fail).runs
    assert max(run.largest.values()) <= 1e-9


def test_compare_extends_shorter_learning_curves(storage: Storage) -> None:
    study = impatient(lr=8.0, training={"patience": 1, "shift": 0}, trials=6, repeats=6)
    search(study, storage)
    (group,) = groups(storage, ["tiny"])
    lengths = [len(run.curve["val_loss"]) for run in group.runs]
    assert len(set(lengths)) > 1
    curves = group.curves("val_loss")
    assert curves.shape == (6, max(lengths))
    for run, curve, length in zip(group.runs, curves, lengths, strict=True):
        assert curve[:length].tolist() == run.curve["val_loss"].tolist()
        assert set(curve[length:]) <= {curve[length - 1]}
    found = summarize(group, "val_loss")
    assert found is not None
    assert found.final["val_loss"].mean == pytest.approx(sum(run.curve["val_loss"][-1] for run in group.runs) / 6)
