"""The test evaluation: its result and record, and errors that are found before the test set is evaluated."""

from __future__ import annotations

import json
import re
import struct
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from schemas import schema
from tiny import LR, sealed_digits, search, study_of, trials_of, write_mnist

import hpo
from hpo.data import Examples, SealedExamples, load_split
from hpo.data.row_splits import hold_out
from hpo.errors import HpoError, InterruptionError, StorageError
from hpo.files import write_atomically
from hpo.results.copy import copy_line
from hpo.results.final_test import evaluate, scores, subject
from hpo.results.final_test.evaluate import EvaluationOptions, evaluate_test_set
from hpo.results.final_test.model_folder import WEIGHTS_FILE, new_folder
from hpo.results.final_test.result import SealedTestResult, evaluation_lines
from hpo.results.report import report
from hpo.search.events import EpochEnded
from hpo.search.populations.population_run import CURVE
from hpo.storage import Storage, best_trials, load_study
from hpo.storage.artifacts import artifact_folder
from hpo.storage.test_evaluations import TESTS, complete_evaluation
from hpo.studyfile import Study
from hpo.training.device_data import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.networks.weights_file import read_weights
from hpo.training.population import train
from hpo.training.seeds import derive_seed
from hpo.training.stack import Member
from hpo.training.tasks.task import classification

DROPS = {"dropout": {"low": 0.1, "high": 0.4}}
STUDY = study_of(network=DROPS, optimizer={"lr": {**LR, "low": 0.05}})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def searched(storage: Storage) -> Study:
    return STUDY


def lines_of(result: dict[str, Any], folder: Path = Path()) -> list[str]:
    return SealedTestResult(hpo.Tested(result, folder)).lines()


def evaluated(storage: Storage, **wanted: Any) -> dict[str, Any]:
    """Evaluate the study on its test set, and check the files of the result."""
    result, folder = evaluate_test_set(
        storage, "tiny", EvaluationOptions(device="cpu", **wanted), threading.Event(), lambda text: None
    )
    jsonschema.validate(result, schema("test"))
    assert json.loads((folder / "result.json").read_text()) == result
    assert {path.name for path in folder.iterdir()} == {"result.json", "card.json", "confusion.html", WEIGHTS_FILE}
    assert "<script" in (folder / "confusion.html").read_text()
    assert lines_of(result, folder)[-1] == f"folder: {folder}"
    return result


def evaluations_in(storage: Storage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load_study(storage, "tiny").user_attrs.get(TESTS, [])
    return found


def whole(study: Study) -> DeviceSplit:
    """All images outside the test set that the study keeps, in the order of the split's shuffle."""
    split = load_split(study)
    images = np.concatenate([split.validation.inputs, split.train.inputs])
    labels = np.concatenate([split.validation.targets, split.train.targets])
    few = Examples(split.validation.inputs, split.validation.targets)
    tensors = (torch.from_numpy(each) for each in (images, labels, few.inputs, few.targets))
    return DeviceSplit(*tensors, task=classification(10), seed=study.data.split_seed)


def probabilities(study: Study, number: int, storage: Storage, path: Path) -> torch.Tensor:
    """Probabilities of a plain module with the weights of that file for the test set."""
    config = study.config(trials_of(storage)[number].params)
    module = build(config.network, (1, 8, 8), 10, seed=0).double()
    module.load_state_dict(read_weights(path)[0])
    with torch.no_grad():
        return torch.softmax(module.eval()(torch.from_numpy(sealed_digits().inputs).double()), 1)


def test_the_best_trial_is_trained_on_all_images_and_tested_once(storage: Storage, searched: Study) -> None:
    result = evaluated(storage)
    best = best_trials(storage, "tiny", 1)[0]
    labels = sealed_digits().targets
    found = probabilities(searched, best.number, storage, Path("tiny-test") / WEIGHTS_FILE)
    answers, test = found.argmax(1).numpy(), result["test"]
    assert (result["trial"], result["score"], result["look"], result["looks"]) == (best.number, best.value, 1, 1)
    assert test["accuracy"] == (answers == labels).mean()
    assert test["interval"]["low"] < test["accuracy"] < test["interval"]["high"]
    assert test["loss"] == pytest.approx(-found[range(len(labels)), labels].log().mean().item())
    for index, row in enumerate(test["confusion"]):
        assert row == [int(((labels == index) & (answers == answer)).sum()) for answer in range(10)]
        assert test["classes"][index]["accuracy"] == row[index] / sum(row)
    # The weights are those that the ordinary training makes of all images.
    assert result["weights"]["images"] == 150
    split, config = whole(searched), searched.config(best.params)
    assert len(split.train) == 150
    seed = derive_seed("test", searched.search.seed, best.number)
    assert result["weights"]["seed"] == seed != best.user_attrs["seed"]
    for epoch in train([Member(0, config, seed)], split, "float64"):
        state = epoch.states([0])[0]
    ours, _ = read_weights(Path("tiny-test") / WEIGHTS_FILE)
    assert all(torch.allclose(ours[name], value) for name, value in state.items())
    (kept,) = evaluations_in(storage)
    assert kept["result"]["accuracy"] == test["accuracy"]
    assert kept["result"]["confusion"] == test["confusion"]
    assert kept["result"]["sha256"] == sealed_digits().content_sha256


def test_all_kept_images_are_those_that_the_shuffle_begins_with(storage: Storage) -> None:
    """`whole` above is right: validation first, then training, as one run of the shuffle."""
    study = study_of(data={"stratify": False})
    labels = np.arange(2000, dtype=np.uint8) % 10
    split = hold_out(study.data, labels, tuple("0123456789"))
    order = np.random.Generator(np.random.PCG64(study.data.split_seed)).permutation(2000)
    assert np.concatenate([split.validation, split.training]).tolist() == order[:150].tolist()


def test_a_second_evaluation_needs_again_and_states_its_number(
    storage: Storage, searched: Study, tmp_path: Path
) -> None:
    first = evaluated(storage)
    refused = rf"'tiny' has been evaluated on its test set once .*accuracy {first['test']['accuracy']:.4f}\).* --again"
    with pytest.raises(HpoError, match=refused):
        evaluated(storage)
    other = 0 if first["trial"] else 1
    second = evaluated(storage, again=True, trial=other)
    assert (second["look"], second["looks"], second["trial"]) == (2, 2, other)
    assert any(line.startswith("evaluation 2 on this test set") for line in lines_of(second))
    third = evaluated(storage, again=True)
    assert {**third, "look": 1, "looks": 1, "created": ""} == {**first, "created": ""}  # the same network
    assert [each["trial"] for each in evaluations_in(storage)] == [first["trial"], other, first["trial"]]
    assert {path.name for path in tmp_path.glob("tiny-test*")} == {"tiny-test", "tiny-test-2", "tiny-test-3"}
    page = report(storage, "tiny")
    assert f"trial {other}: accuracy {second['test']['accuracy']:.4f}" in page
    assert "evaluation 3, " in page
    # Neither an extension nor a copy forgets.
    search(study_of(network=DROPS, optimizer={"lr": {**LR, "low": 0.05}}, search={"trials": 8}), storage, extend=True)
    assert len(evaluations_in(storage)) == 3
    copy_line(storage, "tiny", storage.location.full_url, "other")
    with pytest.raises(HpoError, match="study 'other' has been evaluated on its test set 3 times"):
        evaluate_test_set(storage, "other", EvaluationOptions(device="cpu"), threading.Event(), lambda text: None)


CUT_OFF: list[tuple[BaseException, str]] = [
    (SystemExit(), "not counted, .*: no result [(]it did not finish[)]"),
    (RuntimeError("too\nlarge"), "not counted, .*RuntimeError: too large"),
    (
        HpoError("its loss is nan"),
        "not counted, .*the network of trial . cannot be evaluated on the test set: its loss",
    ),
]


@pytest.mark.parametrize(("error", "told"), CUT_OFF, ids=["killed", "raised", "refused"])
def test_an_evaluation_without_a_result_is_recorded_and_does_not_count(
    error: BaseException, told: str, storage: Storage, searched: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = evaluate.evaluate_network

    def fail(network: Any, images: SealedExamples, *args: Any) -> Any:
        if images.content_sha256 == sealed_digits().content_sha256:
            assert [each["result"] for each in evaluations_in(storage)] == [None]
            raise error
        return real(network, images, *args)

    monkeypatch.setattr(evaluate, "evaluate_network", fail)
    with pytest.raises((SystemExit, HpoError)) as caught:
        evaluated(storage)
    monkeypatch.setattr(evaluate, "evaluate_network", real)
    assert isinstance(error, SystemExit) or "no test result was seen, so this evaluation does not count" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    assert not list(Path().glob("*tiny-test*"))
    result = evaluated(storage)
    assert (result["look"], result["looks"]) == (1, 1)
    said = evaluation_lines(evaluations_in(storage))
    assert re.match(told, said[0])
    assert said[1].startswith("evaluation 1, ")


def test_a_result_is_not_shown_before_it_is_stored(
    storage: Storage, searched: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*args: Any) -> None:
        raise StorageError("storage: the server has gone")

    monkeypatch.setattr(evaluate, "complete_evaluation", lost)
    with pytest.raises(
        StorageError, match="has gone; the test result is not shown, and the evaluation counts only if it was stored"
    ):
        evaluated(storage)
    monkeypatch.setattr(evaluate, "complete_evaluation", complete_evaluation)
    assert evaluated(storage)["look"] == 1


def test_a_folder_that_fails_after_the_evaluation_is_an_error_with_the_accuracy(
    storage: Storage, searched: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = evaluate.write_files, 0

    def full(*args: Any) -> None:
        nonlocal left
        if not left:
            raise HpoError("x/result.json: cannot be written (No space left on device)")
        left -= 1
        real(*args)

    monkeypatch.setattr(evaluate, "write_files", full)
    refuse(storage, r"No space left on device\)$")  # all files are written once before the evaluation
    left = 1
    with pytest.raises(
        HpoError, match=r"No space left on device\); the test set was evaluated, .* \(accuracy 0\.\d{4}\)"
    ):
        evaluated(storage)
    assert evaluations_in(storage)[0]["result"]["accuracy"] > 0
    assert not list(Path().glob("*tiny-test*"))


def test_of_two_processes_one_has_the_first_evaluation(storage: Storage, searched: Study) -> None:
    def other(text: str) -> None:
        if "epoch 1/" in text:
            evaluated(storage, folder=Path("faster"))

    with pytest.raises(HpoError, match="has been evaluated on its test set once"):
        evaluate_test_set(
            storage, "tiny", EvaluationOptions(device="cpu", folder=Path("slower")), threading.Event(), other
        )
    assert len(evaluations_in(storage)) == 1
    assert not Path("slower").exists()


def test_a_stop_while_it_trains_is_not_an_evaluation(storage: Storage, searched: Study) -> None:
    stop = threading.Event()
    with pytest.raises(InterruptionError):
        evaluate_test_set(storage, "tiny", EvaluationOptions(device="cpu"), stop, lambda text: stop.set())
    assert evaluations_in(storage) == []
    assert not list(Path().glob("*tiny-test*")) + list(Path().glob(".hpo-*"))


def test_an_error_names_the_folder_that_was_asked_for() -> None:
    with pytest.raises(HpoError, match=r"^wanted/no/weights: cannot be written"), new_folder(Path("wanted")) as files:
        write_atomically(b"", files / "no" / "weights")
    assert not Path("wanted").exists()


def test_random_subnetworks_are_compared_with_the_network(storage: Storage, searched: Study) -> None:
    result = evaluated(storage, subnetworks=30)
    sub, test = result["subnetworks"], result["test"]
    assert sub["count"] == 30
    assert 0 < sub["difference"] < 0.2
    assert sub["single"]["loss"] > sub["mean"]["loss"] > 0  # the logarithm is concave
    assert sub["mean"]["accuracy"] == pytest.approx(test["accuracy"], abs=0.2)
    assert any("mean of 30 random sub-networks" in line for line in lines_of(result))


def refuse(storage: Storage, said: str, **wanted: Any) -> None:
    """It is refused with that line, and no evaluation is recorded."""
    before = evaluations_in(storage)
    with pytest.raises(HpoError, match=said) as caught:
        evaluated(storage, **wanted)
    assert "\n" not in str(caught.value)
    assert evaluations_in(storage) == before
    assert not list(Path().glob(".hpo-*"))


def test_what_cannot_be_tested_is_refused_before_the_evaluation(storage: Storage, searched: Study) -> None:
    refuse(storage, "has no trial 17", trial=17)
    Path("full").mkdir()
    Path("full/file").touch()
    refuse(storage, "full: exists already: name another folder with -o", folder=Path("full"))
    refuse(storage, "no/such: the folder .*no does not exist", folder=Path("no/such"))
    refuse(storage, "trial . has no checkpoint", from_checkpoint=True)
    Path("empty").mkdir()
    evaluated(storage, folder=Path("empty"))


def test_a_network_that_fails_on_training_examples_is_not_trained(
    storage: Storage, searched: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("no such mask")

    monkeypatch.setattr(scores, "subnetwork_outputs", broken)
    monkeypatch.setattr(evaluate, "_train", pytest.fail)
    said = "study 'tiny': the network of trial . cannot be evaluated on training examples: ValueError: no such mask"
    refuse(storage, said, subnetworks=3)


def test_a_study_without_dropout_has_no_subnetworks(storage: Storage) -> None:
    search(study_of(), storage)
    refuse(storage, "--subnetworks: trial . has no dropout", subnetworks=3)


def test_a_study_without_a_completed_trial_has_nothing_to_test(storage: Storage) -> None:
    search(study_of(), storage, stop_at=lambda event: isinstance(event, EpochEnded))
    refuse(storage, "no finished trial yet")
    refuse(storage, "trial 0 is waiting: select a complete one", trial=0)


def test_a_network_that_diverges_on_all_images_is_not_tested(
    storage: Storage, searched: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subject.select

    def hot(*args: Any) -> Any:
        choice = real(*args)
        optimizer = choice.config.optimizer.model_copy(update={"lr": 1e200})
        object.__setattr__(choice, "config", choice.config.model_copy(update={"optimizer": optimizer}))
        return choice

    monkeypatch.setattr(subject, "select", hot)
    refuse(storage, "trained on all examples, trial . diverged: .*; the test set was not evaluated")


def test_with_the_best_epochs_score_it_trains_for_as_many(storage: Storage) -> None:
    study = study_of(training={"epochs": 8}, optimizer={"lr": {"low": 1.0, "high": 20.0, "log": True}})
    tree = study.resolved()
    search(study_of(**{**tree, "search": {**tree["search"], "score": "best"}}), storage)
    best = best_trials(storage, "tiny", 1)[0]
    assert best.user_attrs["score_epoch"] < 8
    assert evaluated(storage)["weights"]["epochs"] == best.user_attrs["score_epoch"]


def test_whom_patience_ended_is_trained_for_as_long_under_its_own_schedule(storage: Storage) -> None:
    training = {"epochs": 12, "patience": 2}
    optimizer = {"lr": {"choices": [0.5]}, "schedule": "cosine"}
    study = study_of(training=training, optimizer=optimizer, search={"trials": 1, "repeat": True})
    search(study, storage)
    best = best_trials(storage, "tiny", 1)[0]
    epochs = len(trials_of(storage)[best.number].system_attrs[CURVE]["val_loss"])
    assert 2 < epochs < 12
    result = evaluated(storage)
    assert result["weights"]["epochs"] == epochs
    patient = study_of(training={"epochs": 12}, optimizer=optimizer).config(best.params)
    member = Member(0, patient, derive_seed("test", study.search.seed, best.number))
    (state,) = (each.states([0])[0] for each in train([member], whole(study), "float64") if each.epoch == epochs)
    ours, _ = read_weights(Path("tiny-test") / WEIGHTS_FILE)
    assert all(torch.allclose(ours[name], value) for name, value in state.items())


def test_a_plateau_schedule_repeats_the_reductions_of_the_trial(storage: Storage) -> None:
    optimizer = {"lr": {"choices": [0.5]}, "schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.3}
    study = study_of(training={"epochs": 5}, optimizer=optimizer, search={"trials": 1, "repeat": True})
    search(study, storage)
    best = best_trials(storage, "tiny", 1)[0]
    losses = trials_of(storage)[best.number].system_attrs[CURVE]["val_loss"]
    evaluated(storage)
    seed = derive_seed("test", study.search.seed, best.number)
    member = Member(0, study.config(best.params), seed, val_losses=tuple(losses))
    (state,) = (each.states([0])[0] for each in train([member], whole(study), "float64") if each.epoch == 5)
    ours, _ = read_weights(Path("tiny-test") / WEIGHTS_FILE)
    assert all(torch.allclose(ours[name], value) for name, value in state.items())
    own = replace(member, val_losses=())  # those of training examples, which fall
    (state,) = (each.states([0])[0] for each in train([own], whole(study), "float64") if each.epoch == 5)
    assert not all(torch.allclose(ours[name], value) for name, value in state.items())


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """MNIST's files, the test set among them."""
    monkeypatch.setenv("HPO_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "data" / "mnist"
    write_mnist(folder)
    pixels = np.random.default_rng(7).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    (folder / "t10k-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 20, 28, 28) + pixels.tobytes())
    (folder / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 20) + bytes(range(10)) * 2)
    return folder


def test_data_that_is_missing_or_another_is_refused(storage: Storage, mnist: Path) -> None:
    search(study_of(data={"dataset": "mnist", "train_size": 50}), storage)
    labels = mnist / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.unlink()
    refuse(storage, "t10k-labels-idx1-ubyte: missing")
    write_mnist(mnist, seed=1)
    labels.write_bytes(content)
    refuse(storage, "the data of mnist are not those that the study was created with")
    write_mnist(mnist)
    evaluated(storage)
    labels.write_bytes(content[:-1] + b"\x00")
    refuse(storage, "the test set is not that of test evaluation 1", again=True)


def test_an_invalid_test_set_is_found_before_the_evaluation(storage: Storage, mnist: Path) -> None:
    search(study_of(data={"dataset": "mnist", "train_size": 50}), storage)
    for name, wrong, said in [
        ("t10k-labels-idx1-ubyte", b"\x0a", "t10k-labels-idx1-ubyte: label 10 of image 19 is above 9"),
        ("t10k-images-idx3-ubyte", b"", "t10k-images-idx3-ubyte: truncated"),
    ]:
        content = (mnist / name).read_bytes()
        (mnist / name).write_bytes(content[:-1] + wrong)
        refuse(storage, said)
        (mnist / name).write_bytes(content)
    assert evaluated(storage)["look"] == 1


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_checkpoint_is_tested_as_the_search_kept_it(keep: str, storage: Storage) -> None:
    study = study_of(network=DROPS, training={"epochs": 6, "keep": keep}, optimizer={"lr": {**LR, "low": 0.5}})
    search(study, storage)
    result = evaluated(storage, from_checkpoint=True)
    trial = trials_of(storage)[result["trial"]]
    losses = trial.system_attrs[CURVE]["val_loss"]
    epoch = losses.index(min(losses)) + 1 if keep == "best" else 6
    assert result["weights"]["from_checkpoint"] is True
    assert (result["weights"]["epochs"], result["weights"]["images"]) == (epoch, 120)
    assert result["weights"]["seed"] == trial.user_attrs["seed"]
    (kept,) = [
        path
        for path in artifact_folder(storage.location).iterdir()
        if read_weights(path)[1]["trial"] == str(trial.number)
    ]
    path = Path("tiny-test") / WEIGHTS_FILE
    assert probabilities(study, trial.number, storage, path).equal(probabilities(study, trial.number, storage, kept))


def test_a_checkpoint_that_is_not_the_trials_is_refused(storage: Storage) -> None:
    study = study_of(training={"keep": "last", "keep_trials": 2})
    search(study, storage)
    best, second = best_trials(storage, "tiny", 2)
    abouts = {path: read_weights(path)[1] for path in artifact_folder(storage.location).iterdir()}
    paths = {int(about["trial"]): path for path, about in abouts.items() if about["schema"] == "hpo.weights/1"}
    content = paths[best.number].read_bytes()
    damages: list[tuple[bytes, str]] = [
        (paths[second.number].read_bytes(), "is not the checkpoint of trial"),
        (content[:-9], "its weights cannot be read: damaged or truncated"),
    ]
    for damaged, said in damages:
        paths[best.number].write_bytes(damaged)
        refuse(storage, said, from_checkpoint=True)
    paths[best.number].unlink()
    refuse(storage, r"does not exist here; .* wrote it: name its folder in HPO_ARTIFACTS", from_checkpoint=True)
    paths[best.number].write_bytes(content)
    evaluated(storage, from_checkpoint=True)
