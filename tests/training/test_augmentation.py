"""Flips and shifts: the augmented images, their random numbers, and unchanged validation images."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch_reference import config, curves, made_images, member, plain_images

from hpo.studyfile import TrainingSettings
from hpo.training.augmentation import epoch_examples
from hpo.training.device_data import DeviceSplit

SPLIT = made_images(train=400, shape=(3, 6, 9))
ALL = torch.arange(400)


def images(epoch: int = 1, split: DeviceSplit = SPLIT, batch: torch.Tensor = ALL, **settings: float) -> torch.Tensor:
    training = TrainingSettings.model_validate({"epochs": 3, **settings})
    return epoch_examples(split, epoch, training)(batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"flip": 0.4}, {"shift": 2}, {"flip": 0.5, "shift": 1}, {"shift": 5}])
def test_augmented_images_are_those_of_a_loop_over_images(dtype: torch.dtype, settings: dict[str, float]) -> None:
    split = SPLIT.in_type(dtype)
    batch = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:50]
    for epoch in (1, 7):
        ours = images(epoch, split, batch, **settings)
        assert ours.dtype == dtype
        expected = plain_images(split, epoch, TrainingSettings.model_validate({"epochs": 3, **settings}))
        assert ours.equal(expected[batch])


def test_flip_1_mirrors_all_images_and_flip_0_none() -> None:
    assert images(flip=1.0).equal(SPLIT.train.flip(3))
    assert images(flip=0.0, shift=0).equal(SPLIT.train)


def test_frequencies_of_flips_and_shifts() -> None:
    """400 images, augmented anew in each epoch; the limits are five standard deviations."""
    flipped = torch.stack([(images(epoch, flip=0.3) != SPLIT.train).flatten(1).any(1) for epoch in range(1, 26)])
    assert abs(flipped.double().mean() - 0.3) < 5 * (0.3 * 0.7 / flipped.numel()) ** 0.5
    assert len(torch.unique(flipped, dim=0)) == 25
    ones = dataclasses.replace(SPLIT, train=torch.ones_like(SPLIT.train))
    rows = torch.stack([images(epoch, ones, shift=1)[:, 0].amax(2) for epoch in range(1, 26)]).flatten(0, 1)
    for lost in (rows[:, 0] == 0, rows[:, -1] == 0):  # moved down by one, moved up by one
        assert abs(lost.double().mean() - 1 / 3) < 5 * (2 / 9 / len(rows)) ** 0.5


def test_flips_do_not_depend_on_the_shift_setting() -> None:
    few, more = ((images(flip=flip) != SPLIT.train).flatten(1).any(1) for flip in (0.2, 0.6))
    assert (few & ~more).sum() == 0
    assert few.sum() < more.sum()


def test_another_split_seed_gives_other_augmentations() -> None:
    assert not images(shift=1).equal(images(split=dataclasses.replace(SPLIT, seed=4), shift=1))


def test_augmentation_does_not_depend_on_the_batch_size() -> None:
    """The images of an epoch are the same with one step or many."""
    training = {"shift": 1, "flip": 0.5}
    first = [
        curves([member(0, config(hidden=[], lr=1e-300, epochs=2, batch_size=size, training=training))], SPLIT)[0][0]
        for size in (400, 50)
    ]
    for one, other in zip(*first, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-12)
    assert first[0][0]["train_loss"] != first[0][1]["train_loss"]  # other augmentations in another epoch
    assert first[0][0]["val_loss"] == first[0][1]["val_loss"]  # validation images are not augmented


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_cuda_the_images_are_bitwise_the_same() -> None:
    moved = dataclasses.replace(SPLIT, train=SPLIT.train.cuda(), train_targets=SPLIT.train_targets.cuda())
    assert images(split=moved, batch=ALL.cuda(), flip=0.5, shift=2).cpu().equal(images(flip=0.5, shift=2))
