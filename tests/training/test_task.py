"""Tasks in training: class weights, the study's own metrics and losses of the user, equal to plain torch by member."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch_reference import config, curves, made_images, member

from hpo.data import Examples, Split
from hpo.data.preprocessing import FittedPreprocessing
from hpo.errors import SettingError
from hpo.studyfile import DataSettings, TaskSettings
from hpo.training.device_data import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.randomness import batch_order
from hpo.training.tasks.task import Task, check_task, make_task

IMAGES = made_images()
CODE = """\
import torch.nn.functional as F
from sklearn.metrics import cohen_kappa_score

def whole(output, targets):
    return F.cross_entropy(output, targets, reduction="none")

def branching(output, targets):
    if output.sum() > 1e30:
        raise ValueError
    return whole(output, targets)

def mean(output, targets):
    return F.cross_entropy(output, targets)

def detached(output, targets):
    return whole(output.detach(), targets)

def fails(output, targets):
    raise RuntimeError("no loss")

def kappa(predictions, targets):
    assert abs(predictions.sum(1) - 1).max() < 1e-6
    return cohen_kappa_score(targets, predictions.argmax(1))

def words(predictions, targets):
    return "many"

class Loss: ...
"""


def array_split(images: DeviceSplit = IMAGES, classes: int = 10) -> Split:
    """Return a split as it is before it is copied to a device."""
    train, validation = (
        Examples(inputs.numpy(), targets.numpy())
        for inputs, targets in (
            (images.train, images.train_targets),
            (images.validation, images.validation_targets),
        )
    )
    names = tuple(map(str, range(classes)))
    return Split(
        data=DataSettings(dataset="digits"),
        names=names,
        white=None,
        folder=None,
        train=train,
        validation=validation,
        content_sha256="",
        split_sha256="",
        test_size=None,
        preprocessing=FittedPreprocessing(),
        method="",
        advice="add some",
    )


def task(settings: dict[str, object], *metrics: str, folder: Path = Path()) -> Task:
    return make_task(TaskSettings.model_validate(settings), metrics, folder, array_split())


def with_task(made: Task) -> DeviceSplit:
    return dataclasses.replace(IMAGES, task=made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path


def test_a_study_without_task_has_loss_and_accuracy_only() -> None:
    made = task({}, "val_accuracy", "val_loss", "parameters", "seconds_per_epoch")
    assert made.curve_keys == ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_with_class_weights_equals_plain_torch(smoothing: float) -> None:
    weights = [0.5, 3.0, 1.0, 1.0, 2.0, 0.1, 1.0, 1.0, 1.0, 4.0]
    settings = [config(lr=lr, training={"label_smoothing": smoothing}) for lr in (0.05, 0.1)]
    members = [member(number, each) for number, each in enumerate(settings)]
    split = with_task(task({"class_weights": weights}, "val_f1"))
    found, failed = curves(members, split)
    assert not failed
    for one in members:
        module = build(one.config.network, split.shape, 10, one.seed).double()
        optimizer = torch.optim.SGD(module.parameters(), lr=one.config.optimizer.lr)
        of_classes = torch.tensor(weights, dtype=torch.float64)
        for epoch in range(1, 4):
            for batch in torch.split(batch_order(split.seed, epoch, len(split.train_targets)), 16):
                optimizer.zero_grad()
                logits = module(split.train[batch].double())
                F.cross_entropy(logits, split.train_targets[batch], of_classes, label_smoothing=smoothing).backward()
                optimizer.step()
            with torch.no_grad():
                logits = module(split.validation.double())
            curve = found[one.number][epoch - 1]
            assert curve["val_loss"] == pytest.approx(
                F.cross_entropy(logits, split.validation_targets).item(), rel=1e-9
            )
            f1 = f1_score(split.validation_targets, logits.argmax(1), average="macro", zero_division=0)
            assert curve["val_f1"] == pytest.approx(f1, rel=1e-9)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    labels = IMAGES.train_targets.numpy()
    expected = compute_class_weight("balanced", classes=np.arange(10), y=labels)
    weights = task({"class_weights": "balanced"}).weights
    assert weights is not None
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("function", ["whole", "branching"])
def test_a_loss_of_the_user_trains_as_the_same_loss_of_hpo(function: str, folder: Path) -> None:
    """`branching` cannot run in vmap: it is called member by member."""
    members = [member(number, config(lr=0.05 * (number + 1))) for number in range(3)]
    ours, _ = curves(members, with_task(task({"loss": f"mine.py:{function}"}, folder=folder)))
    expected, _ = curves(members, IMAGES)
    for number, epochs in expected.items():
        for found, values in zip(ours[number], epochs, strict=True):
            assert found == pytest.approx(values, rel=1e-9)


def test_a_metric_of_the_user_gets_the_probabilities_of_all_validation_examples(folder: Path) -> None:
    members = [member(number, config(lr=0.05 * (number + 1))) for number in range(2)]
    split = with_task(task({}, "mine.py:kappa", folder=folder))
    found, _ = curves(members, split)
    for one in members:
        module = build(one.config.network, split.shape, 10, one.seed).double()
        optimizer = torch.optim.SGD(module.parameters(), lr=one.config.optimizer.lr)
        for batch in torch.split(batch_order(split.seed, 1, len(split.train_targets)), 16):
            optimizer.zero_grad()
            F.cross_entropy(module(split.train[batch].double()), split.train_targets[batch]).backward()
            optimizer.step()
        predicted: NDArray[np.int64] = module(split.validation.double()).argmax(1).numpy()
        kappa = cohen_kappa_score(split.validation_targets, predicted)
        assert found[one.number][0]["val_kappa"] == pytest.approx(kappa, rel=1e-9)


def test_a_member_whose_metric_is_undefined_fails_with_the_reason() -> None:
    made = dataclasses.replace(task({}), metrics={"val_odd": lambda outputs, targets: outputs[:, 0, 0] * torch.nan})
    found, failed = curves([member(0, config())], with_task(made))
    assert found == {0: []}
    assert failed == {0: "val_odd is nan after epoch 1"}


@pytest.mark.parametrize(
    ("settings", "metrics", "key", "problem"),
    [
        ({"class_weights": [1.0, 2.0]}, (), "task.class_weights", "must have 10 numbers, one for each class (got 2)"),
        ({"top_k": 10}, ("val_top_k",), "task.top_k", "must be below the number of classes, 10 (got 10)"),
        ({"loss": "mine.py:other"}, (), "task.loss", "mine.py has no 'other'"),
        ({"loss": "mine.py:Loss"}, (), "task.loss", "mine.py:Loss is a type, not a function"),
        ({"loss": "mine.py:mean"}, (), "task.loss", "mine.py:mean returns [] (float32) for 4 examples; it must return"),
        ({"loss": "mine.py:detached"}, (), "task.loss", "mine.py:detached does not depend on the network's output"),
        ({}, ("mine.py:words",), "search.metric", "mine.py:words returns a str; it must return a number"),
    ],
)
def test_wrong_settings_are_found_before_training(
    settings: dict[str, object], metrics: tuple[str, ...], key: str, problem: str, folder: Path
) -> None:
    with pytest.raises(SettingError) as raised:
        check_task(task(settings, *metrics, folder=folder), array_split(), lambda key, call: call())
    assert raised.value.key == key
    assert raised.value.problem.startswith(problem)


def test_an_undefined_metric_is_found_before_training() -> None:
    split = array_split()
    validation = split.validation
    rare = Examples(validation.inputs[validation.targets != 3], validation.targets[validation.targets != 3])
    made = task({}, "val_auroc")
    check_task(made, split, lambda key, call: call())
    with pytest.raises(SettingError, match=r"val_auroc is undefined: .* of class '3'; add some"):
        check_task(made, dataclasses.replace(split, validation=rare), lambda key, call: call())


def test_an_exception_of_a_users_function_is_its_own(folder: Path) -> None:
    def called(key: str, call: Callable[[], object]) -> object:
        with pytest.raises(RuntimeError, match="no loss"):
            call()
        raise SettingError(key, "raised")

    with pytest.raises(SettingError, match="raised"):
        check_task(task({"loss": "mine.py:fails"}, folder=folder), array_split(), called)
