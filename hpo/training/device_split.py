"""A split's images as tensors on the device that trains, loaded once.

Knows nothing of files: it is given arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpo.data import Split

Shape = tuple[int, int, int]
"""An image: channels, height, width."""


@dataclass(frozen=True)
class DeviceSplit:
    """Training and validation images [N, C, H, W] and labels [N] int64 on one device."""

    train: Tensor
    train_labels: Tensor
    validation: Tensor
    validation_labels: Tensor
    classes: int
    seed: int

    @property
    def shape(self) -> Shape:
        """An image's channels, height and width."""
        return example_shape(self.train.shape)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.train.device

    def in_type(self, dtype: torch.dtype) -> DeviceSplit:
        """Return the split with its images in another type; itself where they are in that type."""
        return replace(self, train=self.train.to(dtype), validation=self.validation.to(dtype))


def example_shape(shape: Sequence[int]) -> Shape:
    """Return what the shape of images, [N, C, H, W], says of one of them."""
    _, channels, height, width = shape
    return channels, height, width


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
