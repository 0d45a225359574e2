"""A stored study: trials, curves, exports, confirmation, narrowing, test, queue control."""

from __future__ import annotations

import datetime
import json
import sys
from contextlib import closing
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from schemas import schema
from tiny import tree

import hpo
from hpo.search.events import EpochEnded, Event, PopulationStarted, WorkersSeen
from hpo.storage import open_storage, rename_study, study_names

RUNS = "sqlite:///runs.db"


def test_a_launch_returns_the_stored_study(found: hpo.StoredStudy) -> None:
    assert found.ended is not None
    assert (found.ended.reason, found.ended.completed, found.interrupted) == ("finished", 6, False)
    assert found.study == hpo.read(tree())
    assert found.status.counts["complete"] == 6
    assert "tiny" in repr(found)
    assert found.storage.endswith("found.db")


def test_the_best_come_first(found: hpo.StoredStudy) -> None:
    every = found.trials()
    assert [trial.number for trial in every] == list(range(6))
    best = found.top(3)
    assert [trial.value for trial in best] == sorted((trial.value or 0 for trial in every), reverse=True)[:3]
    assert found.best.number == best[0].number
    assert found.best.state == "complete"
    assert found.best.params.keys() == {"lr"}
    assert found.best.started is not None
    assert found.best.started.utcoffset() == datetime.timedelta(0)
    assert found.best_params == dict(found.best.params)
    assert found.best_value == found.best.value
    with pytest.raises(hpo.UsageError, match=r"^top: n must be at least 1 \(got -1\)$"):
        found.top(-1)
    assert found.top_lines(1)[0].startswith(f"Best-1 (trial {best[0].number}) | val acc: {best[0].value:.4f} | lr: ")


def test_trials_are_rows_of_a_dataframe(found: hpo.StoredStudy) -> None:
    table = found.trials_dataframe()
    assert [*table.columns] == [
        *("number", "value", "datetime_start", "datetime_complete", "duration", "params_lr", "seed", "epochs"),
        *("precision", "device", "reason", "state"),
    ]
    assert table["value"].max() == found.best_value
    assert set(table["state"]) == {"COMPLETE"}


def test_a_dataframe_needs_pandas(found: hpo.StoredStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(hpo.HpoError, match=r"^trials_dataframe: needs pandas; install it with `pip install pandas`$"):
        found.trials_dataframe()


def test_curves_are_arrays_of_trials_and_epochs(found: hpo.StoredStudy) -> None:
    curves = found.curves()
    assert sorted(curves) == ["train_accuracy", "train_loss", "val_accuracy", "val_loss"]
    for metric, values in curves.items():
        assert (values.shape, values.dtype) == ((6, 2), np.float64)
        for trial in found.trials():
            assert np.array_equal(values[trial.number], trial.curve[metric])
    assert [trial.value for trial in found.trials()] == curves["val_accuracy"][:, -1].tolist()


def test_a_curve_is_nan_after_the_end_of_its_trial() -> None:
    study = hpo.read(tree(name="pruned", training={"epochs": 3}, search={"pruner": "median", "trials": 12}))
    found = hpo.launch(study, storage=RUNS, device="cpu", progress="quiet")
    accuracy = found.curves()["val_accuracy"]
    for trial in found.trials():
        assert np.isfinite(accuracy[trial.number]).tolist() == [epoch < trial.epochs for epoch in range(3)]
    assert {trial.state for trial in found.trials()} == {"complete", "pruned"}


def test_a_study_is_exported_and_drawn(found: hpo.StoredStudy) -> None:
    exported = found.export()
    jsonschema.validate(exported, schema("best"))
    assert exported["trial"] == found.best.number
    assert {**json.loads(found.export_text()), "created": ""} == {**exported, "created": ""}
    assert found.export_text(every=True, form="csv").count("\n") == 7
    assert list(found.plot()) == ["curves", "landscape", "history", "importances"]
    assert len(found.plot(["curves"], n=2)["curves"].data) > 0
    assert found.write_figures("figures", ["history"]) == [Path("figures/tiny-history.html")]
    assert found.write_report() == Path("tiny-report.html")
    assert "tiny" in Path("tiny-report.html").read_text()
    assert list(found.plot("history")) == ["history"]
    with pytest.raises(hpo.UsageError, match=r"^unknown figure 'curvs' \(did you mean 'curves'\?\); known: "):
        found.plot("curvs")


def test_from_a_search_to_a_result(found: hpo.StoredStudy) -> None:
    found.copy(RUNS)
    found = hpo.load("tiny", storage=RUNS)
    assert (found.ended, found.interrupted, found.confirmation) == (None, False, None)
    confirmation = found.confirm(top=1, seeds=2, device="cpu", progress="quiet")
    assert str(confirmation).startswith(
        "tiny: mean val acc over 2 fresh seeds on the split of the search (fewer than 10 seeds), best first\n"
    )
    assert confirmation.to_json()["winner"]["mean"] == confirmation.found.winner.estimate.mean
    assert found.confirmation == confirmation
    comparison = hpo.compare("tiny", "tiny-confirm", storage=RUNS)
    assert len(comparison.rows) == len(comparison.to_json()["groups"]) == 4
    assert str(comparison).startswith("configuration")
    assert comparison.write_figure("compared.html").exists()
    verified = found.verify(1, device="cpu")
    assert verified.found["trials"][0]["trial"] == found.best.number
    Path("best.json").write_text(found.export_text())
    assert hpo.replay("best.json", device="cpu").found.runs[0].difference == pytest.approx(0, abs=1e-9)
    lines: list[str] = []
    tested = found.test(device="cpu", say=lines.append)
    assert lines
    assert tested.found.folder == Path("tiny-test")
    assert tested.found.result == tested.to_json()
    np.save("images.npy", np.zeros((3, 8, 8)))
    predictions = hpo.predict("tiny-test", "images.npy", device="cpu")
    assert (predictions.classes.shape, predictions.probabilities.shape) == ((3,), (3,))
    assert str(predictions).splitlines()[0] == "image,class,probability"


def test_the_next_study_is_proposed_and_searched(found: hpo.StoredStudy) -> None:
    found.copy(RUNS)
    found = hpo.load("tiny", storage=RUNS)
    proposal = found.narrow()
    assert hpo.read(proposal.write()) == proposal.study
    assert proposal.write() == Path("tiny-2.toml")
    lines: list[str] = []
    (second,) = found.rounds(1, device="cpu", progress="quiet", say=lines.append)
    assert (second.name, second.interrupted) == ("tiny-2", False)
    assert second.study == proposal.study
    assert lines[0].startswith("tiny-2: best val acc ")
    assert [study.name for study in hpo.studies(storage=RUNS)] == ["tiny", "tiny-2"]


def test_a_study_in_the_queue_is_paused_resumed_stopped_and_deleted() -> None:
    lines: list[str] = []
    other = tree(name="other")
    first, second = hpo.submit([tree(), other], storage=RUNS, on_stored=lambda study: lines.append(study.queue_line()))
    assert lines == ["tiny: in the queue, 6 trials left", "other: in the queue, 6 trials left"]
    assert first.pause().startswith("tiny: paused")
    assert hpo.status("tiny", storage=RUNS).studies[0].state == "paused"
    assert first.resume().startswith("tiny: open")
    assert first.stop().startswith("tiny: stopped")
    with pytest.raises(hpo.StudyClosedError, match="is stopped"):
        hpo.launch(tree(), storage=RUNS, device="cpu", progress="quiet")
    assert second.delete() == "other: deleted, with 0 trials"
    with pytest.raises(hpo.UnknownStudyError):
        second.top()
    assert [each.name for each in next(hpo.watch(storage=RUNS)).studies] == ["tiny"]
    with pytest.raises(hpo.HpoError, match="no finished trial yet"):
        first.best  # noqa: B018


def test_deleting_a_study_ends_its_launch() -> None:
    def on_event(event: Event) -> None:
        if isinstance(event, PopulationStarted):
            hpo.load("tiny", storage=RUNS).delete()

    found = hpo.launch(tree(), storage=RUNS, device="cpu", progress=on_event)
    assert found.interrupted
    assert found.summary_lines() == ["tiny: deleted by another process"]
    assert found.next_lines() == []


@pytest.mark.parametrize("workers", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_a_study_that_is_renamed_during_a_launch_is_searched_to_its_end(workers: int | None) -> None:
    def on_event(event: Event) -> None:
        with closing(open_storage(RUNS)) as storage:
            if isinstance(event, PopulationStarted | WorkersSeen) and study_names(storage) == ["tiny"]:
                rename_study(storage, 1, "renamed")

    found = hpo.launch(tree(), storage=RUNS, device="cpu", workers=workers, progress=on_event)
    assert (found.name, found.study.name, found.status.counts["complete"]) == ("renamed", "renamed", 6)
    assert found.summary_lines()[0].startswith("renamed: finished, 6 completed")
    assert found.next_lines()[0] == "next: hpo confirm renamed"
    again = hpo.launch(tree(name="renamed"), storage=RUNS, device="cpu", progress="quiet")
    assert len(again.trials()) == 6
    hpo.launch(tree(), storage=RUNS, device="cpu", progress="quiet")  # another study of the old name
    assert found.narrow().study.name == "renamed-2"
    assert found.narrow().study.resolved()["search"]["start_from"] == ["renamed"]
    exported = found.export()
    assert (exported["study"], exported["config"]["name"]) == ("renamed", "renamed-best")


def test_a_missing_storage_and_a_missing_study() -> None:
    with pytest.raises(hpo.StorageError, match="no such file"):
        hpo.load("tiny", storage=RUNS)
    open_storage(RUNS).close()
    with pytest.raises(hpo.UnknownStudyError, match="the storage has no study yet"):
        hpo.load("tiny", storage=RUNS)


def test_a_function_gets_the_events_and_enqueued_trials_come_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    events: list[Event] = []
    first = [{"lr": 0.25}, '{"lr": 0.5}']
    found = hpo.launch(tree(), storage=RUNS, device="cpu", enqueue=first, progress=events.append)
    assert [trial.params["lr"] for trial in found.trials()[:2]] == [0.25, 0.5]
    assert sum(isinstance(event, EpochEnded) for event in events) == 4
    assert capsys.readouterr() == ("", "")
    with pytest.raises(hpo.UsageError, match="progress: must be auto, quiet, json or a function"):
        hpo.launch(tree(), storage=RUNS, progress="loud")  # type: ignore[arg-type]
