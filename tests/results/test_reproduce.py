"""Trials trained again, from the storage (`hpo verify`) and from an export alone (`hpo replay`)."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from stored_studies import trial
from tiny import search, study_of, trials_of, write_mnist

from hpo.errors import DataError, HpoError, InterruptionError, StudyFileError, UsageError
from hpo.results.certificate import VERIFIED, VerificationResult
from hpo.results.confirm.study import create_confirming_study
from hpo.results.export import best as exporting
from hpo.results.export.best import export
from hpo.results.export.text import export_text
from hpo.results.reproduce import verify as verification
from hpo.results.reproduce.replay import Replay, ReplayResult, replay
from hpo.results.reproduce.retrain import largest_differences
from hpo.results.reproduce.verify import verify
from hpo.search.events import StudyStarted
from hpo.search.study_records import CURVE, user_attrs_of
from hpo.storage import Storage, load_study
from hpo.studyfile import SearchSettings, Study, read_study

STUDY = study_of(network={"dropout": 0.3, "batch_norm": True}, training={"epochs": 3}, search={"trials": 7})
CLOSE = 1e-9
"""A trial alone and in company: float64, three epochs, and sums in another order at most."""


def verified(storage: Storage, count: int = 5, stop: threading.Event | None = None) -> dict[str, Any]:
    return verify(storage, "tiny", count, "cpu", stop or threading.Event(), pytest.fail)


def replayed(path: Path) -> Replay:
    return replay(path, "cpu", threading.Event(), pytest.fail)


@pytest.fixture
def searched(storage: Storage) -> Storage:
    return storage


def test_a_trial_alone_has_the_curve_that_it_had_in_its_population(searched: Storage) -> None:
    certificate = verified(searched)
    assert len(certificate["trials"]) == 5
    assert certificate["score"] <= CLOSE
    assert set(certificate["largest"]) == {"train_loss", "train_accuracy", "val_loss", "val_accuracy"}
    assert max(certificate["largest"].values()) <= CLOSE
    assert load_study(searched, "tiny").user_attrs[VERIFIED] == certificate
    assert export(searched, "tiny")["verified"] == certificate
    *_, last = VerificationResult(certificate).lines()
    assert last.startswith("tiny: 5 trials, each trained again alone on cpu in float64; the largest difference")


def test_the_certificate_says_which_precision_each_trial_was_trained_in(storage: Storage) -> None:
    both = {"choices": ["float32", "bfloat16"]}
    study = study_of(
        optimizer={"lr": 0.1},
        training={"epochs": 1, "precision": both},
        search={"trials": 2, "sampler": "grid", "population": 2},
    )
    begun = next(event for event in search(study, storage) if isinstance(event, StudyStarted))
    assert begun.precision == "float32 or bfloat16"
    certificate = verified(storage)
    assert certificate["precision"] == "float32, bfloat16"
    assert [each["precision"] for each in certificate["trials"]] == [t.params["precision"] for t in trials_of(storage)]
    first, second, last = VerificationResult(certificate).lines()
    assert first.startswith("trial 0, float32: val acc ")
    assert second.startswith("trial 1, bfloat16: val acc ")
    assert "trained again alone on cpu in float32, bfloat16; " in last
    assert max(certificate["largest"].values()) <= 1e-3  # the stored curves are those of the precisions that it names


def test_the_best_trial_is_always_among_them(searched: Storage) -> None:
    best = export(searched, "tiny")["trial"]
    for count in (1, 2, 7, 50):
        numbers = [each["trial"] for each in verified(searched, count)["trials"]]
        assert best in numbers
        assert len(set(numbers)) == min(count, 7)


@pytest.mark.parametrize("sampler", get_args(SearchSettings.model_fields["sampler"].annotation))
def test_what_any_sampler_found_is_replayed_and_launched(sampler: str, storage: Storage, tmp_path: Path) -> None:
    """Whatever a sampler needs to search: an export searches nothing."""
    steps = {"low": 0.01, "high": 0.1, "step": 0.01}
    optimizer = {"lr": steps, "weight_decay": steps}
    search(study_of(optimizer=optimizer, training={"epochs": 1}, search={"sampler": sampler, "trials": 3}), storage)
    path = tmp_path / "best.json"
    path.write_text(export_text(storage, "tiny"))
    (run,) = replayed(path).runs
    assert abs(run.difference) <= CLOSE
    again = read_study(path)
    assert isinstance(again, Study)
    search(again, storage)
    assert len(trials_of(storage, again.name)) == 1


def changed_curve(storage: Storage, number: int, change: Callable[[dict[str, list[float]]], object]) -> None:
    """Store another curve for a trial than it had."""
    trial = trials_of(storage)[number]
    curve = {metric: list(values) for metric, values in trial.system_attrs[CURVE].items()}
    change(curve)
    statement = "UPDATE trial_system_attributes SET value_json = ? WHERE trial_id = ? AND key = ?"
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(statement, (json.dumps(curve), trial._trial_id, CURVE))


def test_a_trial_that_hpo_did_not_train_has_no_seed_to_be_repeated_with(searched: Storage) -> None:
    space = {"lr": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)}
    foreign = optuna.trial.create_trial(value=0.99, params={"lr": 0.1}, distributions=dict(space))
    load_study(searched, "tiny").add_trial(foreign)
    assert [each["trial"] for each in verified(searched, 8)["trials"]] == list(range(7))
    with pytest.raises(HpoError, match="trial 7 was not trained by hpo"):
        export(searched, "tiny")


def test_a_curve_that_is_not_the_trials_is_seen(searched: Storage) -> None:
    changed_curve(searched, 3, lambda curve: curve["val_loss"].__setitem__(1, curve["val_loss"][1] + 0.25))
    certificate = verified(searched, 7)
    assert certificate["largest"]["val_loss"] == pytest.approx(0.25)
    worst = max(certificate["trials"], key=lambda each: each["largest"]["val_loss"])
    assert worst["trial"] == 3


def test_a_curve_of_another_length_is_compared_as_far_as_both_go_and_said(searched: Storage) -> None:
    changed_curve(searched, 3, lambda curve: [values.append(values[-1]) for values in curve.values()])
    said: list[str] = []
    certificate = verify(searched, "tiny", 7, "cpu", threading.Event(), said.append)
    (line,) = said
    assert line.startswith("trial 3 ends after 3 epochs, but is stored with 4 (training.patience)")
    assert max(certificate["largest"].values()) <= CLOSE


def test_a_score_that_is_a_word_is_read_back_as_a_number(searched: Storage, tmp_path: Path) -> None:
    path = tmp_path / "infinite.json"
    path.write_text(json.dumps({**export(searched, "tiny"), "value": "-Infinity"}))
    (run,) = replayed(path).runs
    assert (run.stored, run.difference) == (float("-inf"), float("inf"))


def test_another_seed_is_another_trial(searched: Storage, tmp_path: Path) -> None:
    exported = export(searched, "tiny")
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**exported, "seed": exported["seed"] + 1}))
    (run,) = replayed(path).runs
    assert run.largest["val_loss"] > 1e-3


def test_what_cannot_be_verified(storage: Storage) -> None:
    search(STUDY, storage, stop_at=lambda event: True)
    with pytest.raises(HpoError, match="study 'tiny': no finished trial yet, so there is nothing to verify; launch it"):
        verified(storage)
    search(STUDY, storage)
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptionError):
        verified(storage, stop=stop)
    assert VERIFIED not in load_study(storage, "tiny").user_attrs


def test_a_study_that_is_deleted_meanwhile_is_one_line(searched: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def certified(*anything: Any) -> dict[str, Any]:
        optuna.delete_study(study_name="tiny", storage=searched)
        return {}

    monkeypatch.setattr(verification, "_certificate", certified)
    with pytest.raises(HpoError, match="study 'tiny' was deleted by another process"):
        verified(searched, 1)


def begun_anew(storage: Storage) -> None:
    """Another study under the same name, and on SQLite under the same id."""
    optuna.delete_study(study_name="tiny", storage=storage)
    search(STUDY, storage)


def test_a_study_that_is_begun_anew_meanwhile_gets_no_certificate(
    searched: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_study(searched, "tiny")._study_id
    monkeypatch.setattr(verification, "_certificate", lambda *anything: [begun_anew(searched), {}][1])
    with pytest.raises(HpoError, match="study 'tiny' was deleted by another process"):
        verified(searched, 1)
    assert load_study(searched, "tiny")._study_id == before
    assert VERIFIED not in load_study(searched, "tiny").user_attrs


def test_a_study_that_is_begun_anew_meanwhile_is_not_exported(
    searched: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "user_attrs_of", lambda stored: [user_attrs_of(stored), begun_anew(searched)][0])
    with pytest.raises(HpoError, match="study 'tiny' was deleted and created anew while it was read: export it again"):
        export(searched, "tiny")


@pytest.mark.parametrize("form", ["json", "toml"])
def test_an_export_alone_repeats_its_trial(searched: Storage, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"best.{form}"
    path.write_text(export_text(searched, "tiny", form=form))
    found = replayed(path)
    (run,) = found.runs
    assert abs(run.difference) <= CLOSE
    assert max(run.largest.values()) <= CLOSE
    assert len(run.largest) == 4
    assert ReplayResult(found).lines()[0].startswith("val acc 0.")


def test_a_confirmed_export_repeats_the_run_of_each_seed(searched: Storage, tmp_path: Path) -> None:
    search(create_confirming_study(searched, "tiny", top=2, seeds=3), searched)
    path = tmp_path / "best.json"
    path.write_text(export_text(searched, "tiny", confirmed=True))
    runs = replayed(path).runs
    assert len(runs) == 3
    assert max(abs(run.difference) for run in runs) <= CLOSE
    assert sorted(run.stored for run in runs) == sorted(export(searched, "tiny", confirmed=True)["confirmed"]["scores"])


def test_an_export_of_the_first_version_is_repeated_without_a_curve(searched: Storage, tmp_path: Path) -> None:
    exported = export(searched, "tiny")
    for key in ("curve", "confirmed", "verified"):
        del exported[key]
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**exported, "schema": "hpo.best/1"}))
    (run,) = replayed(path).runs
    assert abs(run.difference) <= CLOSE
    assert run.largest == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: {**e, "schema": "hpo.best/4"}, r"was written by a newer hpo \(hpo.best/4\)"),
        (lambda e: e["config"], "is not an export: write one with `hpo export NAME -o best.json`"),
        (lambda e: [e], "is not an export"),
        (lambda e: {key: value for key, value in e.items() if key != "seed"}, "seed: missing"),
        (lambda e: {**e, "seed": "7"}, r"seed: must be a whole number \(got '7'\)"),
        (lambda e: {**e, "seed": 2**64}, "seed: must be at most"),
        (lambda e: {**e, "value": [0.5]}, "value: must be a number"),
        (lambda e: {**e, "precision": "float16"}, r"unknown precision 'float16' .*known: float32"),
        (lambda e: {**e, "data": 3}, "data: must be a table"),
        (lambda e: {**e, "curve": {"val_loss": ["x"]}}, "curve.val_loss.0: must be a number"),
        (lambda e: {**e, "curve": {"val_loss": [0.5]}}, "curve.val_loss: must have a value an epoch, 3 in all"),
        (lambda e: {**e, "confirmed": 3}, "confirmed: must be a table"),
        (lambda e: {**e, "confirmed": {"seeds": [], "scores": []}}, "confirmed.seeds: must not be empty"),
        (lambda e: {**e, "confirmed": {"seeds": [1], "scores": []}}, "must have a score for each of the seeds"),
        (
            lambda e: {**e, "config": {**e["config"], "optimizer": {"lr": {"low": 0.1, "high": 1}}}},
            "config: still searches lr",
        ),
        (lambda e: {**e, "config": {**e["config"], "name": 3}}, "name: must be a string"),
    ],
)
def test_a_file_that_is_no_export(
    searched: Storage, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(change(export(searched, "tiny"))))
    with pytest.raises(UsageError, match=message):
        replayed(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="no such file"):
        replayed(tmp_path / "missing.json")


def test_other_images_are_another_trial(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    write_mnist(folder)
    monkeypatch.setenv("HPO_DATA_DIR", str(folder))
    search(study_of(data={"dataset": "mnist", "train_size": 60}, training={"epochs": 1}), storage)
    path = tmp_path / "best.json"
    path.write_text(export_text(storage, "tiny"))
    assert abs(replayed(path).runs[0].difference) <= CLOSE
    exported = json.loads(path.read_text())
    exported["data"]["sha256"] = "0" * 64
    path.write_text(json.dumps(exported))
    with pytest.raises(HpoError, match="the data of mnist here are not those of the exported trial"):
        replayed(path)
    shutil.rmtree(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError):
        replayed(path)


def test_a_trial_that_fails_now_is_one_line(storage: Storage) -> None:
    study = study_of(optimizer={"lr": {"choices": [1e200]}}, search={"trials": 1})
    search(study, storage)
    stored = load_study(storage, "tiny")
    params = {"lr": 1e200}
    space = {"lr": optuna.distributions.CategoricalDistribution([1e200])}
    stored.add_trial(trial(0.9, params=params, distributions=dict(space)))
    with pytest.raises(HpoError, match="trial 1 is stored as complete, but fails now: diverged"):
        verified(storage)


def test_the_largest_difference_is_that_of_any_epoch() -> None:
    stored, again = {"a": [1.0, 2.0, 3.0], "b": [1.0]}, {"a": [1.0, 2.5, 2.9], "c": [1.0]}
    assert largest_differences(stored, again) == {"a": 0.5}
