"""Random numbers of training: batch order, augmentation and dropout masks, reproducible on every device.

A dropout mask depends on the trial's seed, the epoch, the step, the layer and the element; cutout and mixup depend on
the trial's seed, the epoch, and the image or step. The order of the examples, flips and shifts depend on the split's
seed and the epoch. Nothing depends on the member's index in its stack, on the other members, on the worker or on a
restart: a trial trained alone therefore has the same learning curve as in a population.

A dropout layer needs K x elements random numbers a step, so they come from a counter-based generator: a mixed counter,
xored with a key, goes through two multiply-and-shift rounds (the construction of SplitMix64: Steele, Lea, Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014), and each 64-bit word gives four 16-bit numbers. Six
passes of integer arithmetic run on any device and give the same bits on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.training.seeds import derive_seed

_INCREMENT = np.uint64(0x9E3779B97F4A7C15)  # SplitMix64's counter increment
_ROUND_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9, SplitMix64's first multiplier, as a signed 64-bit integer
_ROUND_2 = -7723592293110705685  # 0x94D049BB133111EB, its second multiplier


def batch_order(split_seed: int, epoch: int, examples: int) -> Tensor:
    """Return the order of the training examples in an epoch, [examples] int64 on the CPU, the same for every member."""
    generator = np.random.Generator(np.random.PCG64(derive_seed("order", split_seed, epoch)))
    return torch.from_numpy(generator.permutation(examples))


def augmentation_numbers(split_seed: int, epoch: int, images: int) -> Tensor:
    """Return three uniform numbers in [0, 1) per training image, [3, images] float64 on the CPU, for all members."""
    counters = np.arange(1, 3 * images + 1, dtype=np.uint64).reshape(images, 3) * _INCREMENT
    words = _mix(np.uint64(derive_seed("augmentation", split_seed, epoch)) + counters)
    return torch.from_numpy((words >> np.uint64(11)) * 2.0**-53).T


def dropout_keys(seeds: list[int], epoch: int, steps: int, layers: int) -> Tensor:
    """Return the keys of an epoch's dropout masks: one per step, layer and member, [steps, layers, K, 1] int64."""
    base = np.array([derive_seed("dropout", seed, epoch) for seed in seeds], dtype=np.uint64)
    count = np.arange(1, steps * layers + 1, dtype=np.uint64).reshape(steps, layers, 1) * _INCREMENT
    return torch.from_numpy(_mix(base + count).view(np.int64)).unsqueeze(-1)


def cutout_numbers(seeds: Sequence[int], epoch: int, images: NDArray[np.int64]) -> Tensor:
    """Return two uniform numbers in [0, 1) per member and image, by the images' indices, [2, K, images] float64."""
    base = np.array([derive_seed("cutout", seed, epoch) for seed in seeds], dtype=np.uint64)
    counters = (2 * images.astype(np.uint64) + np.array([[1], [2]], dtype=np.uint64)) * _INCREMENT
    words = _mix(base[:, None] + counters[:, None, :])
    return torch.from_numpy((words >> np.uint64(11)) * 2.0**-53)


def mixup_numbers(
    alphas: Sequence[float], seeds: Sequence[int], epoch: int, sizes: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return, for each step of an epoch with batches of these sizes, the members' shares and their orders of the batch.

    A share [K] float64 is drawn from Beta(alpha, alpha), an order [K, size] int64 is a random permutation. For an alpha
    of 0 the share is 1 and the order is that of the batch.
    """
    shares, orders = [], []
    for alpha, seed in zip(alphas, seeds, strict=True):
        of_shares, of_orders = (
            np.random.Generator(np.random.PCG64(derive_seed(part, seed, epoch))) for part in ("mixup", "mixup order")
        )
        shares.append(of_shares.beta(alpha, alpha, len(sizes)) if alpha else np.ones(len(sizes)))
        orders.append([of_orders.permutation(size) if alpha else np.arange(size) for size in sizes])
    of_steps = [torch.from_numpy(np.stack(each)) for each in zip(*orders, strict=True)]
    return list(torch.from_numpy(np.stack(shares, 1))), of_steps


def random_words(keys: Tensor, count: int, counters: Tensor) -> Tensor:
    """Return uniform 16-bit numbers as signed integers, [K, count] int16, for `keys` [K, 1].

    `counters` are those of `mixed_counters`, at least `count / 4` of them.
    """
    words = counters[: -(-count // 4)] ^ keys
    words.mul_(_ROUND_1)
    words.bitwise_xor_(words >> 32)
    words.mul_(_ROUND_2)
    # The shift is arithmetic (torch has no other). A last xor with it would clear the highest bit; a sum does not.
    words.add_(words >> 32)
    return words.view(torch.int16)[:, :count]


def mixed_counters(count: int, device: torch.device) -> Tensor:
    """Return the counters that `random_words` needs for `count` numbers per member, [count / 4] int64."""
    steps = np.arange(1, -(-count // 4) + 1, dtype=np.uint64) * _INCREMENT
    return torch.from_numpy(_mix(steps).view(np.int64)).to(device)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the words after SplitMix64's output function."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
