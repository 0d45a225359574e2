"""Training examples of each member's own: cutout and mixup, with settings and random numbers per member.

    cutout   T. DeVries, G. W. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017:
             a square of an image, around a random pixel and clipped at the borders, is 0
    mixup    H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018: a batch is mixed with itself in a
             random order; the share of the first is drawn from Beta(alpha, alpha), once a step as in the authors' code

The random numbers depend on the member's seed, the epoch and the image or step, never on the other members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpo.studyfile import TrainingSettings
from hpo.training.randomness import cutout_numbers, mixup_numbers
from hpo.training.tasks.task import Task


def has_own_examples(settings: TrainingSettings) -> bool:
    """Return whether a member's training examples are its own, so that it cannot share them with other members."""
    return settings.mixup > 0 or settings.cutout > 0


@dataclass(frozen=True)
class MemberBatch:
    """A batch of K members, `inputs` [K, B, ...].

    With mixup, an example is mixed with that at the position `partners` [K, B]; `shares` [K] are those of the first.
    """

    inputs: Tensor
    partners: Tensor | None = None
    shares: Tensor | None = None

    def losses(self, task: Task, outputs: Tensor, targets: Tensor, smoothing: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the members' mean training losses, [K], and the sums of learning curves, as `Task.losses` does.

        With mixup, both are the mean of those of an example's target and of its partner's, weighted by the shares.
        """
        losses, sums = task.losses(outputs, targets, smoothing)
        if self.partners is None or self.shares is None:
            return losses.member_means(), sums
        others, sums_of_others = task.losses(outputs, targets[self.partners], smoothing)
        shares = self.shares.to(sums.dtype)
        means = torch.lerp(others.member_means(), losses.member_means(), shares)
        return means, torch.lerp(sums_of_others, sums, shares)


class MemberExamples:
    """An epoch's cutout and mixup of members with these settings and seeds, for batches of these training examples."""

    def __init__(
        self, settings: Sequence[TrainingSettings], seeds: Sequence[int], epoch: int, batches: Sequence[Tensor]
    ) -> None:
        self._sides, self._seeds, self._epoch = [each.cutout for each in settings], seeds, epoch
        self._batches = [batch.cpu().numpy() for batch in batches]
        alphas = [each.mixup for each in settings]
        self._mixup = mixup_numbers(alphas, seeds, epoch, list(map(len, batches))) if any(alphas) else None

    def batch(self, step: int, examples: Tensor) -> MemberBatch:
        """Return the members' inputs in this step, from 0, for its examples [B, ...]."""
        inputs = examples.expand(len(self._seeds), *examples.shape)
        if any(self._sides):
            inputs = self._cut_out(step, examples)
        if self._mixup is None:
            return MemberBatch(inputs.contiguous())
        shares, partners = (part[step].to(examples.device) for part in self._mixup)
        exact = torch.float64 if examples.dtype == torch.float64 else torch.float32
        weights = shares.to(exact).view(-1, *[1] * examples.dim())
        others = inputs[torch.arange(len(inputs), device=inputs.device).unsqueeze(1), partners]
        return MemberBatch((weights * inputs + (1 - weights) * others).to(examples.dtype), partners, shares)

    def _cut_out(self, step: int, images: Tensor) -> Tensor:
        """Return the images [B, C, H, W] of each member with its square of zeros, [K, B, C, H, W]."""
        numbers = cutout_numbers(self._seeds, self._epoch, self._batches[step])
        sides = torch.tensor(self._sides).view(-1, 1, 1)
        within = []
        for number, pixels in zip(numbers, images.shape[2:], strict=True):
            first = (number * pixels).long().unsqueeze(2) - sides // 2
            place = torch.arange(pixels)
            within.append((first <= place) & (place < first + sides))  # [K, B, H] and [K, B, W]
        rows, columns = (each.to(images.device) for each in within)
        return torch.where((rows.unsqueeze(3) & columns.unsqueeze(2)).unsqueeze(2), 0, images)
