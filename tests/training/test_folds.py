"""Folds: a member has the curve of a plain torch loop over scikit-learn's indices on each fold, and their mean."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.model_selection import KFold
from torch_reference import config, made_images, plain_curve

from hpo.training.device_data import DeviceSplit
from hpo.training.population import EpochResult, train
from hpo.training.seeds import member_seed
from hpo.training.stack import Member

FOLDS = 3
WHOLE = made_images(90, 3)


def folded(whole: DeviceSplit = WHOLE) -> DeviceSplit:
    """Return a split of `FOLDS` folds over the training examples of another one."""
    parts = []
    for training, validation in KFold(FOLDS).split(whole.train_targets):
        rows, others = torch.from_numpy(training), torch.from_numpy(validation)
        parts.append(
            replace(
                whole,
                train=whole.train[rows],
                train_targets=whole.train_targets[rows],
                validation=whole.train[others],
                validation_targets=whole.train_targets[others],
            )
        )
    return replace(parts[0], other_folds=tuple(parts[1:]))


SPLIT = folded()


def member(number: int, **settings: object) -> Member:
    return Member(number, config(batch_norm=True, dropout=0.2, **settings), member_seed(0, number))


def assert_mean_of_plain_curves(result: EpochResult, trial: Member) -> None:
    """Assert that a member's metrics of an epoch are those of plain training on each fold, and their mean."""
    found = result.metrics[trial.number]
    plain = [plain_curve(trial, fold)[result.epoch - 1] for fold in SPLIT.folds]
    for metric in plain[0]:
        values = [fold[metric] for fold in plain]
        assert found[metric] == pytest.approx(sum(values) / FOLDS, abs=1e-9)
        for fold, value in enumerate(values, 1):
            assert found[f"{metric}/{fold}"] == pytest.approx(value, abs=1e-9)
    assert len(found) == len(plain[0]) * (1 + FOLDS)


@pytest.mark.parametrize("threads", [1, 2])
def test_each_fold_equals_a_plain_loop_over_its_indices(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpo.training.cores.parallel.MIN_STEP_FLOPS_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    members = [member(0), member(1, lr=0.03, training={"label_smoothing": 0.1}), member(2, optimizer={"kind": "sgd"})]
    for result in train(members, SPLIT, "float64"):
        for trial in members:
            assert_mean_of_plain_curves(result, trial)


def test_a_member_frozen_on_all_folds_continues_as_without_a_pause() -> None:
    settings = {"optimizer": {"kind": "adam", "lr": 0.01}, "epochs": 4}
    members = [member(0, **settings), member(1, **settings)]
    expected = {result.epoch: result.metrics for result in train(members, SPLIT, "float64")}
    epochs = train(members, SPLIT, "float64")
    next(epochs)
    states = epochs.send([1]).freeze([0])
    assert len(states[0].folds) == FOLDS
    assert states[0].nbytes == sum(replace(fold, other_folds=()).nbytes for fold in states[0].folds)
    continued = [replace(members[0], state=states[0])]
    for result in train(continued, SPLIT, "float64"):
        assert result.metrics[0] == pytest.approx(expected[result.epoch][0], abs=1e-9)


def test_a_member_that_diverges_on_one_fold_fails_with_that_fold() -> None:
    broken = replace(SPLIT.folds[1], validation=torch.full_like(SPLIT.folds[1].validation, torch.nan))
    split = replace(SPLIT, other_folds=(broken, SPLIT.folds[2]))
    result = next(train([member(0), member(1)], split, "float64"))
    assert result.metrics == {}
    assert result.failed[1] == "diverged: val_loss/2 is nan after epoch 1"
