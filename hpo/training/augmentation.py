"""Augment training images: random horizontal flips and shifts, drawn anew in each epoch.

The random numbers depend on the split's seed, the epoch and the image's index only. All members of a population,
whatever their batch size, therefore share the augmented images. The pixels that a shift moves in are 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.studyfile import TrainingSettings
from hpo.training.device_data import DeviceSplit
from hpo.training.randomness import augmentation_numbers


def epoch_examples(split: DeviceSplit, epoch: int, settings: TrainingSettings) -> Callable[[Tensor], Tensor]:
    """Return a function from indices [B] int64 to the epoch's training examples [B, ...].

    Images are augmented if so set; the caller has checked that other examples are not.
    """
    images, shift = split.train, settings.shift
    if not (settings.flip or shift):
        return lambda batch: images.index_select(0, batch)  # a third of the time of images[batch]
    channels, height, width = split.shape
    padded_width = width + 2 * shift
    flips, *moves = augmentation_numbers(split.seed, epoch, len(images))
    down, right = ((each * (2 * shift + 1)).long() for each in moves)  # 0 .. 2 shift: the padding is the middle
    flipped = (flips < settings.flip).long()
    # Read a row from its first pixel forwards, or, for a flipped image, from its last pixel backwards.
    first = (down * padded_width + right + flipped * (width - 1)).to(split.device)
    direction = (1 - 2 * flipped).to(split.device)
    rows = (torch.arange(height, device=split.device) * padded_width).unsqueeze(1)
    columns = torch.arange(width, device=split.device)

    def augmented(batch: Tensor) -> Tensor:
        pixels = first[batch].view(-1, 1, 1) + rows + direction[batch].view(-1, 1, 1) * columns
        padded = F.pad(images.index_select(0, batch), [shift] * 4).flatten(2)
        gathered = padded.gather(2, pixels.flatten(1).unsqueeze(1).expand(-1, channels, -1))
        return gathered.view(-1, channels, height, width)

    return augmented
