"""Augmentation of training images: each flipped or not, and shifted by a few pixels, anew in every epoch.

What an image gets comes from the split's seed, the epoch and its place among the images: the same for all members,
whatever their batch size, so that they share the images as they do without. Other settings make other use of the same
random numbers. The pixels that a shift brings in are 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.studyfile import TrainingSettings
from hpo.training.device_split import DeviceSplit
from hpo.training.randomness import augmentation_numbers


def epoch_images(split: DeviceSplit, epoch: int, settings: TrainingSettings) -> Callable[[Tensor], Tensor]:
    """Return what gives the training images of an epoch by their places, [B] int64 -> [B, C, H, W]."""
    images, shift = split.train, settings.shift
    if not (settings.flip or shift):
        return lambda batch: images[batch]
    channels, height, width = split.shape
    padded_width = width + 2 * shift
    flips, *moves = augmentation_numbers(split.seed, epoch, len(images))
    down, right = ((each * (2 * shift + 1)).long() for each in moves)  # 0 .. 2 shift: the padding is the middle
    flipped = (flips < settings.flip).long()
    # A row of an image is read from its first pixel on, or from its last one back.
    first = (down * padded_width + right + flipped * (width - 1)).to(split.device)
    direction = (1 - 2 * flipped).to(split.device)
    rows = (torch.arange(height, device=split.device) * padded_width).unsqueeze(1)
    columns = torch.arange(width, device=split.device)

    def augmented(batch: Tensor) -> Tensor:
        pixels = first[batch].view(-1, 1, 1) + rows + direction[batch].view(-1, 1, 1) * columns
        padded = F.pad(images[batch], [shift] * 4).flatten(2)
        chosen = padded.gather(2, pixels.flatten(1).unsqueeze(1).expand(-1, channels, -1))
        return chosen.view(-1, channels, height, width)

    return augmented
