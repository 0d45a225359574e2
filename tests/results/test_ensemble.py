"""Ensembles from selection to predictions: members, scores, records, exports, and errors of one line."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from rich.console import Console
from schemas import schema
from sklearn.metrics import f1_score, root_mean_squared_error
from stored_studies import OWN
from tiny import LR, StopAfter, sealed_digits, search, study_of, tree, trials_of

import hpo
from hpo.data import load_split
from hpo.errors import HpoError, InterruptionError, UsageError
from hpo.results.confirm.confirmed_ensemble import ENSEMBLE_RUNS
from hpo.results.confirm.result import Confirmation, find_confirmation
from hpo.results.confirm.text import ConfirmationResult
from hpo.results.display.progress import QuietProgress
from hpo.results.ensemble import select
from hpo.results.ensemble.record import ENSEMBLE, Ensemble, ensemble_lines
from hpo.results.ensemble.select import select_ensemble
from hpo.results.ensemble.text import EnsembleResult
from hpo.results.export.ensemble import export_ensemble
from hpo.results.export.text import export_text
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.model_card import CARD_FILE
from hpo.results.final_test.predict import Predictions, TargetPredictions, predictions
from hpo.results.final_test.result import SealedTestResult, evaluation_lines
from hpo.results.report import report
from hpo.search.options import LaunchOptions
from hpo.search.space import config_of
from hpo.service.confirming import confirm
from hpo.storage import Storage, open_storage, study_names, summary
from hpo.storage.artifacts import artifact_folder
from hpo.storage.test_evaluations import evaluations_of
from hpo.studyfile import Study, parse_any_study, parse_study
from hpo.training.networks.builtin import build
from hpo.training.networks.weights_file import read_weights
from hpo.training.tasks.averaging import MeanPrediction
from hpo.training.tasks.task import Task, classification
from hpo.training.trainer import Outcome

KEPT = {"keep": "last", "keep_trials": 4, "epochs": 4}
STUDY = study_of(
    network={"hidden": {"choices": [[8], [6, 6]]}},
    optimizer={"lr": {**LR, "low": 0.05}},
    training=KEPT,
    search={"trials": 8, "population": 8},
)


@pytest.fixture(scope="module")
def searched_folder(blank_db: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the searched study and its weights: each test has a copy."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copy(blank_db, folder / "hpo.db")
    with closing(open_storage(f"sqlite:///{folder / 'hpo.db'}")) as storage:
        search(STUDY, storage)
    return folder


@pytest.fixture
def searched(searched_folder: Path, tmp_path: Path) -> Iterator[Storage]:
    shutil.copytree(searched_folder, tmp_path, dirs_exist_ok=True)
    with closing(open_storage(f"sqlite:///{tmp_path / 'hpo.db'}")) as opened:
        yield opened


def evaluated(storage: Storage, folder: Path, **wanted: Any) -> hpo.Tested:
    options = EvaluationOptions(device="cpu", ensemble=True, folder=folder, **wanted)
    tested = evaluate_test_set(storage, "tiny", options, threading.Event(), lambda text: None)
    jsonschema.validate(tested.result, schema("ensemble_test"))
    assert json.loads((folder / "result.json").read_text()) == tested.result
    return tested


def confirmed(storage: Storage, stop: threading.Event | None = None, **wanted: Any) -> Confirmation:
    return confirm(
        storage,
        "tiny",
        top=1,
        ensemble=True,
        options=LaunchOptions(device="cpu"),
        display=lambda: QuietProgress(Console(stderr=True)),
        say=lambda found: None,
        stop=stop or threading.Event(),
        **{"seeds": 2, **wanted},
    )


def outputs_of(found: Ensemble, storage: Storage, paths: dict[int, Path], inputs: Any) -> torch.Tensor:
    """The probabilities of plain modules with the weights of these files, averaged with the picks as weights."""
    total: Any = 0
    for member in found.members:
        config = config_of(STUDY, trials_of(storage)[member.trial].params)
        module = build(config.network, (1, 8, 8), 10, seed=0).double()
        module.load_state_dict(read_weights(paths[member.trial])[0])
        with torch.no_grad():
            each = torch.softmax(module.eval()(torch.from_numpy(inputs).double()), 1)
        total = total + member.picks / found.picks * each
    return torch.as_tensor(total)


def kept_files(storage: Storage) -> dict[int, Path]:
    files = {path: read_weights(path)[1] for path in artifact_folder(storage.location).iterdir()}
    return {int(about["trial"]): path for path, about in files.items() if about.get("schema") == "hpo.weights/1"}


def test_the_ensemble_is_the_mean_of_the_kept_networks(searched: Storage) -> None:
    found = select_ensemble(searched, "tiny", 5, "cpu")
    validation, paths = load_split(STUDY).validation, kept_files(searched)
    assert found.candidates == len(paths) == 4
    assert {each.trial for each in found.members} <= paths.keys()
    assert 1 < found.picks <= 5
    mean = outputs_of(found, searched, paths, validation.inputs)
    assert found.score == pytest.approx((mean.argmax(1).numpy() == validation.targets).mean())
    assert found.score >= found.best.score == max(each.score for each in found.members)
    assert found.best.score == max(trial.value or 0 for trial in trials_of(searched))
    assert found.validation == len(validation.targets)
    assert {each.epochs for each in found.members} == {4}
    assert found.halves is not None
    assert found.halves.halves == 10
    assert {**select_ensemble(searched, "tiny", 5, "cpu").to_json(), "at": ""} == {**found.to_json(), "at": ""}

    lines = EnsembleResult(found).lines()
    assert lines[0].startswith(f"tiny: {found.title}: val acc {found.score:.4f}, {found.picks} picks from 4 trials")
    assert f"{found.score:.4f} is optimistic: the ensemble was selected on these 30 examples" in lines
    assert lines[-1].endswith("hpo confirm tiny --ensemble")
    found_tree = EnsembleResult(found).to_json()
    assert sum(each["weight"] for each in found_tree["members"]) == pytest.approx(1)
    (line,) = ensemble_lines(searched, "tiny")
    assert line == f"{found.title} | val acc: {found.score:.4f} (optimistic: selected on the validation split)"
    assert line in report(searched, "tiny")


def test_one_pick_is_the_best_trial_alone(searched: Storage) -> None:
    found = select_ensemble(searched, "tiny", 1, "cpu")
    assert (len(found.members), found.score) == (1, found.best.score)
    assert f"no ensemble is better than trial {found.best.trial} alone" in EnsembleResult(found).lines()[0]
    assert found.title == f"ensemble of trial {found.best.trial}"


def test_an_ensemble_is_tested_once_and_predicts(searched: Storage, tmp_path: Path) -> None:
    found = select_ensemble(searched, "tiny", 5, "cpu")
    tested = evaluated(searched, tmp_path / "out")
    paths = {each.trial: tmp_path / "out" / f"weights-{each.trial}.safetensors" for each in found.members}
    mean, labels = outputs_of(found, searched, paths, sealed_digits().inputs), sealed_digits().targets
    assert tested.result["test"]["accuracy"] == pytest.approx((mean.argmax(1).numpy() == labels).mean())
    assert tested.result["test"]["loss"] == pytest.approx(-mean[range(len(labels)), labels].log().mean().item())
    assert tested.result["test"]["trivial"]["accuracy"] < 0.2
    assert {each["weights"]["images"] for each in tested.result["members"]} == {150}  # validation split included
    assert [each["picks"] for each in tested.result["members"]] == [each.picks for each in found.members]
    why = f"{found.title}, selected among 4 trials with stored weights"
    assert SealedTestResult(tested).lines()[1] == f"{why}; each trained on 150 examples, epoch 4"

    np.save(tmp_path / "images.npy", sealed_digits().inputs)
    predicted = predictions(tmp_path / "out", tmp_path / "images.npy", "cpu")
    assert isinstance(predicted, Predictions)
    assert predicted.classes.tolist() == mean.argmax(1).tolist()
    assert np.allclose(predicted.probabilities, mean.max(1).values)

    (record,) = evaluations_of(summary(searched, "tiny").user_attrs)
    assert record["trial"] is None
    assert record["ensemble"] == [[each.trial, each.picks] for each in found.members]
    assert f", {found.title}: accuracy " in evaluation_lines([record])[0]
    assert f", {found.title}: accuracy " in report(searched, "tiny")
    for ensemble in (True, False):  # neither the ensemble nor a trial gets another first evaluation
        options = EvaluationOptions(device="cpu", ensemble=ensemble, folder=tmp_path / "no")
        with pytest.raises(HpoError, match=rf"on its test set once \(last with {found.title} at .*--again"):
            evaluate_test_set(searched, "tiny", options, threading.Event(), lambda text: None)
    assert evaluated(searched, tmp_path / "again", again=True).result["look"] == 2


def test_the_weights_of_the_search_are_tested_as_they_are(searched: Storage, tmp_path: Path) -> None:
    found = select_ensemble(searched, "tiny", 5, "cpu")
    result = evaluated(searched, tmp_path / "out", from_checkpoint=True).result
    mean, labels = outputs_of(found, searched, kept_files(searched), sealed_digits().inputs), sealed_digits().targets
    assert result["test"]["accuracy"] == pytest.approx((mean.argmax(1).numpy() == labels).mean())
    assert all(each["weights"]["from_checkpoint"] for each in result["members"])


@pytest.mark.parametrize("splits", [None, 2])
def test_an_ensemble_is_confirmed_with_the_configurations(splits: int | None, searched: Storage) -> None:
    ensemble = select_ensemble(searched, "tiny", 3, "cpu")
    found = confirmed(searched, splits=splits)
    assert found.ensemble is not None
    runs = found.ensemble.runs
    assert runs.scores.keys() == found.winner.scores.keys()
    assert len(runs.scores) == 2
    assert runs.candidate.score == ensemble.score
    assert found.winner.candidate.trial is not None  # the ensemble is never the winner
    pairs = found.ensemble.over_winner.pairs
    assert pairs.n == 2
    assert pairs.difference.mean == pytest.approx(runs.estimate.mean - found.winner.estimate.mean)
    text, written = str(ConfirmationResult(found)), ConfirmationResult(found).to_json()
    assert "the ensemble " in text
    assert [line for line in text.splitlines() if line.startswith("ensemble ")]
    assert written["ensemble"]["mean"] == runs.estimate.mean
    before = summary(searched, "tiny-confirm").user_attrs[ENSEMBLE_RUNS]
    confirmed(searched, splits=splits)  # nothing is trained again
    assert summary(searched, "tiny-confirm").user_attrs[ENSEMBLE_RUNS] == before
    exported = export_ensemble(searched, "tiny")
    jsonschema.validate(exported, schema("ensemble"))
    assert exported["confirmed"]["mean"] == runs.estimate.mean
    written_report = report(searched, "tiny")
    assert "hpo ensemble tiny --size 3" in written_report
    assert re.search("hpo confirm tiny .* --ensemble\n", written_report)


def test_another_ensemble_is_confirmed_anew(searched: Storage) -> None:
    select_ensemble(searched, "tiny", 3, "cpu")
    confirmed(searched)
    one = select_ensemble(searched, "tiny", 1, "cpu")
    assert export_ensemble(searched, "tiny")["confirmed"] is None
    again = confirmed(searched).ensemble
    assert again is not None
    assert again.ensemble.has_same_members(one)


def test_a_run_is_the_mean_of_members_under_seeds_of_their_own(
    searched: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpo.results.confirm import ensemble_runs

    seen: list[Any] = []
    real = ensemble_runs.train_anew

    def recorded(study: Any, planned: Any, precision: str, trainings: Any, *args: Any) -> Any:
        seen.append((planned, trainings, outcomes := real(study, planned, precision, trainings, *args)))
        return outcomes

    monkeypatch.setattr(ensemble_runs, "train_anew", recorded)
    ensemble = select_ensemble(searched, "tiny", 3, "cpu")
    found = confirmed(searched)
    assert found.ensemble is not None
    ((planned, trainings, outcomes),) = seen
    assert len({each.seed for each in trainings}) == len(trainings) == 2 * len(ensemble.members)
    validation = planned.split.validation
    for index, score in enumerate(found.ensemble.runs.scores.values()):
        mean = MeanPrediction(classification(10))
        for number, member in enumerate(ensemble.members):
            training = trainings[index * len(ensemble.members) + number]
            module = build(training.config.network, (1, 8, 8), 10, seed=0).double()
            module.load_state_dict(outcomes[training.number].state)
            with torch.no_grad():
                mean = mean.add(module.eval()(torch.from_numpy(validation.inputs).double()), member.picks)
        assert score == pytest.approx((mean.outputs().argmax(1).numpy() == validation.targets).mean())


def test_an_ensemble_whose_members_fail_has_no_row(searched: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpo.results.confirm import ensemble_runs

    def failed(study: Any, planned: Any, precision: str, trainings: Any, *args: Any) -> Any:
        return {each.number: Outcome(failed="diverged") for each in trainings}

    monkeypatch.setattr(ensemble_runs, "train_anew", failed)
    select_ensemble(searched, "tiny", 3, "cpu")
    with pytest.raises(HpoError, match=r"'tiny-confirm': in every run of the ensemble of .*, a member has failed"):
        confirmed(searched)
    found = find_confirmation(searched, "tiny")
    assert found is not None
    assert found.ensemble is None


def test_an_interrupted_confirmation_continues(searched: Storage) -> None:
    select_ensemble(searched, "tiny", 3, "cpu")
    confirm(
        searched,
        "tiny",
        top=1,
        seeds=2,
        options=LaunchOptions(device="cpu"),
        display=lambda: QuietProgress(Console(stderr=True)),
        say=lambda found: None,
        stop=threading.Event(),
    )
    with pytest.raises(InterruptionError, match="tiny-confirm: interrupted; confirm the ensemble again to go on"):
        confirmed(searched, StopAfter(2))
    assert confirmed(searched).ensemble is not None


def test_an_export_has_the_members_as_trials(searched: Storage) -> None:
    found = select_ensemble(searched, "tiny", 5, "cpu")
    exported = export_ensemble(searched, "tiny")
    jsonschema.validate(exported, schema("ensemble"))
    for member, each in zip(found.members, exported["members"], strict=True):
        jsonschema.validate(each["trial"], schema("best"))
        assert (each["trial"]["trial"], each["picks"]) == (member.trial, member.picks)
    assert exported["confirmed"] is None
    assert json.loads(export_text(searched, "tiny", ensemble=True)).keys() == exported.keys()
    assert "hpo.ensemble/1" in export_text(searched, "tiny", ensemble=True, form="toml")


def test_options_that_exclude_each_other(searched: Storage, tmp_path: Path) -> None:
    select_ensemble(searched, "tiny", 2, "cpu")
    for option, wanted in (("--trial", {"trial": 0}), ("--subnetworks", {"subnetworks": 2})):
        with pytest.raises(UsageError, match=f"{option} excludes --ensemble"):
            evaluated(searched, tmp_path / "out", **wanted)
    with pytest.raises(UsageError, match="--all excludes --ensemble"):
        export_text(searched, "tiny", ensemble=True, every=True)
    with pytest.raises(UsageError, match="--format csv is for several trials, but --ensemble exports one"):
        export_text(searched, "tiny", ensemble=True, form="csv")


def test_a_study_without_an_ensemble_names_the_command(searched: Storage, tmp_path: Path) -> None:
    said = "study 'tiny' has no ensemble: select one with `hpo ensemble tiny`"
    with pytest.raises(HpoError, match=said):
        evaluated(searched, tmp_path / "out")
    with pytest.raises(HpoError, match=said):
        confirmed(searched)
    with pytest.raises(HpoError, match=said):
        export_ensemble(searched, "tiny")
    assert ensemble_lines(searched, "tiny") == []
    assert study_names(searched) == ["tiny"]


def test_weights_that_are_missing_or_damaged_are_errors(searched: Storage) -> None:
    path = next(iter(kept_files(searched).values()))
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    with pytest.raises(HpoError, match="its weights cannot be read: damaged or truncated"):
        select_ensemble(searched, "tiny", 2, "cpu")
    path.unlink()
    with pytest.raises(HpoError, match=r"does not exist here; .* or select the ensemble on the machine that has it"):
        select_ensemble(searched, "tiny", 2, "cpu")
    assert ENSEMBLE not in summary(searched, "tiny").user_attrs


FEW: list[tuple[Study, str]] = [
    (study_of(), 'no trial has stored weights: .* training.keep = "last" .*training.keep_trials'),
    (study_of(training={"keep": "last", "keep_trials": 1}), "1 completed trial has stored weights, .* needs 2: "),
    (study_of(data={"dataset": "digits", "folds": 2}), "no single set of weights, because of data.folds"),
]


@pytest.mark.parametrize(("study", "said"), FEW, ids=["none", "one", "folds"])
def test_too_few_weights_name_the_key(study: Study, said: str, storage: Storage) -> None:
    search(study, storage)
    with pytest.raises(HpoError, match=said) as caught:
        select_ensemble(storage, "tiny", 2, "cpu")
    assert "\n" not in str(caught.value)


def test_an_objective_study_has_no_networks(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("objective.py").write_text("def objective(trial):\n    return trial.suggest_float('x', 0, 1)\n")
    study = parse_any_study({**OWN, "name": "tiny", "search": {"trials": 2}}, "tiny.toml", tmp_path)
    search(study, storage)  # type: ignore[arg-type]
    with pytest.raises(HpoError, match=r"has an objective function, .*; this command needs a network study"):
        select_ensemble(storage, "tiny", 2, "cpu")


@pytest.mark.parametrize(
    ("kind", "metric"), [("regression", "val_rmse"), ("multilabel", "val_f1")], ids=["numbers", "labels"]
)
def test_ensembles_of_other_tasks(kind: str, metric: str, storage: Storage, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(120, 4)).astype(np.float32)
    numbers = 5000 + 300 * (x @ np.array([1.0, -2.0, 0.5, 0.0])) + random.normal(size=120)
    y = numbers if kind == "regression" else np.stack([x[:, 0] > 0, x[:, 1] > 0.8], 1).astype(np.int64)
    np.savez(tmp_path / "data.npz", x=x[:90], y=y[:90], x_test=x[90:], y_test=y[90:])
    written = tree(
        data={"dataset": "npz:data.npz"},
        task={"kind": kind, **({"loss": "gaussian_nll"} if kind == "regression" else {})},
        optimizer={"kind": "adam", "lr": {"low": 0.01, "high": 0.1, "log": True}},
        training={**KEPT, "batch_size": 20},
        search={"trials": 4, "metric": metric, "pruner": "none"},
    )
    del written["data"]["train_size"]
    search(parse_study(written, "tiny.toml", tmp_path), storage)
    found = select_ensemble(storage, "tiny", 4, "cpu")
    assert found.metric == metric
    result = evaluated(storage, tmp_path / "out").result
    np.save(tmp_path / "new.npy", x[90:])
    values = predictions(tmp_path / "out", tmp_path / "new.npy", "cpu")
    assert isinstance(values, TargetPredictions)
    if kind == "regression":
        expected = root_mean_squared_error(y[90:], values.values[:, 0])
    else:
        expected = f1_score(y[90:], values.values > 0.5, average="macro", zero_division=0)
    assert result["test"]["metric"]["value"] == pytest.approx(expected, rel=1e-5)
    if kind == "regression":
        assert "the ensemble's score when it was selected" in str(ConfirmationResult(confirmed(storage)))


def test_a_card_with_other_picks_or_files_is_refused(searched: Storage, tmp_path: Path) -> None:
    select_ensemble(searched, "tiny", 3, "cpu")
    evaluated(searched, tmp_path / "out", from_checkpoint=True)
    np.save(tmp_path / "images.npy", sealed_digits().inputs[:3])
    card = json.loads((tmp_path / "out" / CARD_FILE).read_text())
    assert card["schema"] == "hpo.ensemble_card/1"
    for change, said in (
        ({"picks": 0}, "is damaged"),
        ({"weights": {"file": "../x", "sha256": "0" * 64}}, "is damaged"),
        ({"weights": {**card["members"][0]["weights"], "sha256": "0" * 64}}, "its SHA-256 differs"),
    ):
        members = [{**card["members"][0], **change}, *card["members"][1:]]
        (tmp_path / "out" / CARD_FILE).write_text(json.dumps({**card, "members": members}))
        with pytest.raises(HpoError, match=said):
            predictions(tmp_path / "out", tmp_path / "images.npy", "cpu")
    (tmp_path / "out" / CARD_FILE).write_text(json.dumps({**card, "members": []}))
    with pytest.raises(HpoError, match="is damaged"):
        predictions(tmp_path / "out", tmp_path / "images.npy", "cpu")


def test_a_metric_that_is_undefined_on_halves_has_no_estimate(
    searched: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "HALVINGS", 0)
    found = select_ensemble(searched, "tiny", 2, "cpu")
    assert found.halves is None
    assert not any("half" in line for line in EnsembleResult(found).lines())
    jsonschema.validate(export_ensemble(searched, "tiny"), schema("ensemble"))


def test_the_variance_of_a_regression_is_part_of_the_mean() -> None:
    outputs = torch.zeros(2, 5, 2, dtype=torch.float64)
    outputs[1, :, 0] = 2.0
    found = MeanPrediction(Task("regression", 2, "gaussian_nll")).add(outputs[0]).add(outputs[1]).outputs()
    assert found[:, 0].tolist() == [1.0] * 5
    assert found[:, 1].exp().tolist() == pytest.approx([2.0] * 5)  # 1 within and 1 between the networks
