"""A split's images as tensors on the device that trains, loaded once.

Knows nothing of files: it is given arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpo.data import Split

Shape = tuple[int, int, int]
"""An image: channels, height, width."""


@dataclass(frozen=True)
class DeviceSplit:
    """Training and validation images [N, C, H, W] float32 and labels [N] int64 on one device."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    classes: int
    seed: int

    @property
    def shape(self) -> Shape:
        """An image's channels, height and width."""
        channels, height, width = self.train.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.train.device


def to_device(split: Split, seed: int, device: torch.device) -> DeviceSplit:
    """Copy a split to the device. `seed` is the split's: the order of batches comes from it."""
    return DeviceSplit(
        train=torch.from_numpy(split.train.pixels).to(device),
        train_labels=torch.from_numpy(split.train.labels).to(device),
        validation=torch.from_numpy(split.validation.pixels).to(device),
        validation_labels=torch.from_numpy(split.validation.labels).to(device),
        classes=split.classes,
        seed=seed,
    )
