"""Training and validation examples as tensors on one device, copied there once.

The tensors are made from arrays; files are read in `hpo.data`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpo.data import Split
from hpo.training.tasks.task import Task, classification

Shape = tuple[int, int, int]
"""Shape of one example: channels, height, width."""


@dataclass(frozen=True)
class DeviceSplit:
    """Training and validation examples [N, C, H, W] and labels [N] int64 on one device, and the task of the study.

    `seed` is the split's seed; the order of the batches is derived from it. With `data.folds` this is the first fold.
    """

    train: Tensor
    train_targets: Tensor
    validation: Tensor
    validation_targets: Tensor
    task: Task
    seed: int
    other_folds: tuple[DeviceSplit, ...] = ()

    @property
    def folds(self) -> tuple[DeviceSplit, ...]:
        """Return all folds; without `data.folds`, the split alone."""
        return (self, *self.other_folds)

    @property
    def nbytes(self) -> int:
        """The size of the examples of all folds, in bytes."""
        return sum(fold.train.nbytes + fold.validation.nbytes for fold in self.folds)

    @property
    def shape(self) -> Shape:
        """Return the shape of one example."""
        return example_shape(self.train.shape)

    @property
    def device(self) -> torch.device:
        """Return the device of the tensors."""
        return self.train.device

    def in_type(self, dtype: torch.dtype) -> DeviceSplit:
        """Return the split with its examples in `dtype`; tensors that already have that type are not copied."""
        others = tuple(fold.in_type(dtype) for fold in self.other_folds)
        return replace(self, train=self.train.to(dtype), validation=self.validation.to(dtype), other_folds=others)


def example_shape(shape: Sequence[int]) -> Shape:
    """Return the shape of one example from the shape of a batch, [N, C, H, W]."""
    _, channels, height, width = shape
    return channels, height, width


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Return the number of batches in an epoch of training examples.

    A last batch of one example is left out, because it has no variance. It is left out also without batch norm, so that
    trials can be compared.
    """
    whole, rest = divmod(examples, batch_size)
    return whole + (rest > 1 or (rest == 1 and whole == 0))


def to_device(split: Split, seed: int, device: torch.device, tasks: Sequence[Task] = ()) -> DeviceSplit:
    """Copy a split to the device. `seed` is the split's seed.

    `tasks` are those of the folds, by default the classification without settings.

    Raises torch's error where the memory is too small.
    """
    first, *others = (
        DeviceSplit(
            train=torch.from_numpy(fold.train.inputs).to(device),
            train_targets=torch.from_numpy(fold.train.targets).to(device),
            validation=torch.from_numpy(fold.validation.inputs).to(device),
            validation_targets=torch.from_numpy(fold.validation.targets).to(device),
            task=task.to(device),
            seed=seed,
        )
        for fold, task in zip(split.folds, tasks or len(split.folds) * [classification(split.classes)], strict=True)
    )
    return replace(first, other_folds=tuple(others))
