"""Random numbers: what they depend on, that they are the same everywhere, and their distribution."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpo.training.randomness import (
    augmentation_numbers,
    batch_order,
    dropout_keys,
    mixed_counters,
    random_words,
)
from hpo.training.seeds import derive_seed, member_seed


def test_seeds_never_change() -> None:
    """A study may continue on another machine or after an update of hpo: its seeds must stay the same."""
    assert derive_seed("a", 1) == 4193839430313607
    assert member_seed(0, 0) == 3668152027173367
    assert batch_order(0, 1, 6).tolist() == [2, 5, 3, 0, 4, 1]
    assert dropout_keys([1], 1, 1, 2).flatten().tolist() == [107825946459903812, 8217899602234984364]
    assert (augmentation_numbers(0, 1, 2) * 2**53).long().flatten().tolist() == [
        3692795245800213,
        3381886251845627,
        5217005507694082,
        8719197801361380,
        8659654942092896,
        832522416722598,
    ]
    words = random_words(torch.tensor([[5]]), 4, mixed_counters(4, torch.device("cpu")))
    assert words.tolist() == [[-7496, -13985, 9608, -22486]]


@given(st.integers(0, 2**63), st.integers(0, 10**6), st.integers(0, 5))
def test_a_seed_fits_into_a_json_number(study: int, trial: int, repeat: int) -> None:
    seed = member_seed(study, trial, repeat)
    assert 0 <= seed < 2**53
    assert int(float(seed)) == seed


def test_a_seed_depends_on_study_trial_and_repeat() -> None:
    seeds = {member_seed(study, trial, repeat) for study in range(10) for trial in range(50) for repeat in range(3)}
    assert len(seeds) == 1500
    assert derive_seed(1, 23) != derive_seed(12, 3)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 100), st.integers(1, 300))
def test_a_batch_order_is_a_permutation_by_split_and_epoch(seed: int, epoch: int, images: int) -> None:
    order = batch_order(seed, epoch, images)
    assert torch.equal(order, batch_order(seed, epoch, images))
    assert sorted(order.tolist()) == list(range(images))


def test_epochs_and_splits_have_different_orders() -> None:
    orders = {tuple(batch_order(seed, epoch, 50).tolist()) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100


def test_augmentation_numbers_depend_on_split_epoch_and_image() -> None:
    """They are uniform, differ between epochs, splits and images, and do not depend on the number of images."""
    numbers = torch.stack([augmentation_numbers(seed, epoch, 1000) for seed in range(3) for epoch in range(1, 6)])
    assert numbers.shape == (15, 3, 1000)
    assert len(torch.unique(numbers)) == numbers.numel()
    counts = torch.histc(numbers.float(), 100, 0, 1)
    assert abs(((counts - 450) ** 2 / 450).sum() - 99) <= 5 * (2 * 99) ** 0.5
    assert augmentation_numbers(0, 1, 7).equal(numbers[0, :, :7])


def test_dropout_keys_are_distinct_for_member_epoch_step_and_layer() -> None:
    keys = [dropout_keys([1, 2, 3], epoch, steps=50, layers=4) for epoch in range(1, 6)]
    assert keys[0].shape == (50, 4, 3, 1)
    assert len(np.unique(torch.stack(keys).numpy())) == 5 * 50 * 4 * 3
    assert torch.equal(keys[1][:, :, 2:], dropout_keys([3], 2, steps=50, layers=4))


def test_sixteen_bit_numbers_are_uniform() -> None:
    """Chi-square over the high and the low byte of 1.6 million numbers: 255 degrees of freedom, deviation 22.6."""
    words = random_words(dropout_keys([1], 1, 1, 1)[0, 0], 1_600_000, mixed_counters(1_600_000, torch.device("cpu")))
    numbers = words.numpy().view(np.uint16)[0]
    for part in (numbers >> 8, numbers & 255):
        for lane in range(4):
            counts = np.bincount(part[lane::4], minlength=256)
            expected = len(numbers) / 4 / 256
            chi_square = ((counts - expected) ** 2 / expected).sum()
            assert abs(chi_square - 255) <= 5 * np.sqrt(2 * 255)
