"""A population: K members trained side by side on one device, epoch by epoch.

`train` is a generator. After every epoch it yields what the members made of it, and is told which of them to leave
out from now on: pruning, reporting, progress and graceful stops all live on that one seam. What a member does depends
on its own settings and seed and on the split, never on its company.

Knows nothing of search spaces, pruners or storage.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpo.studyfile import Config
from hpo.training.images import DeviceSplit
from hpo.training.networks import build
from hpo.training.optimizers import Optimizer
from hpo.training.randomness import batch_order, dropout_keys
from hpo.training.stacking import StackedNetwork

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
EVALUATION_BATCH = 500
"""Images evaluated at once: enough to fill the GEMMs, few enough that K times their activations stay small."""

METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Member:
    """One trial's place in a population: its number, its settings and the seed of its random numbers."""

    number: int
    config: Config
    seed: int


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gave: trial number -> metric -> value, for members that are well; and why others failed.

    `train_loss` and `train_accuracy` are means over the epoch's batches as they were trained on, dropout included;
    `val_loss` and `val_accuracy` are of the whole validation split after the epoch. Losses are in nats, accuracies
    fractions.
    """

    epoch: int
    metrics: dict[int, dict[str, float]]
    failed: dict[int, str]


def train(
    members: Sequence[Member], split: DeviceSplit, precision: str
) -> Generator[EpochResult, Collection[int], None]:
    """Train members of one shape (see `shape_of`) and yield an `EpochResult` an epoch, from epoch 1.

    Send the numbers of the members to leave out from the next epoch on. Ends after the last epoch, or when no member
    is left. A member whose loss is no longer finite is in `failed` once, and out.
    """
    population = _Population(members, split, precision)
    for epoch in range(1, members[0].config.training.epochs + 1):
        values = population.epoch(epoch)
        failed = {number: _reason(epoch, metrics) for number, metrics in values.items() if not _finite(metrics)}
        well = {number: metrics for number, metrics in values.items() if number not in failed}
        dropped = yield EpochResult(epoch, well, failed)
        population.leave({*failed, *(dropped or ())})
        if not population.numbers:
            return


def shape_of(config: Config) -> str:
    """Return what members of one population must have in common: all settings but those that each has for itself."""
    shared = config.model_dump(mode="json")
    for own in ("init", "dropout"):
        del shared["network"][own]
    shared["optimizer"] = shared["optimizer"]["kind"]
    return repr(sorted(shared.items()))


class _Population:
    def __init__(self, members: Sequence[Member], split: DeviceSplit, precision: str) -> None:
        first = members[0].config
        self.numbers = [member.number for member in members]
        self._seeds = [member.seed for member in members]
        self._split = split
        self._compute = DTYPES[precision]
        modules = [build(m.config.network, split.shape, split.classes, m.seed).to(split.device) for m in members]
        self._network = StackedNetwork(modules, self._compute)
        self._optimizer = Optimizer(self._network.blocks, [member.config.optimizer for member in members])
        self._batch = first.training.batch_size
        self._train = split.train.to(self._compute)
        self._validation = split.validation.to(self._compute)

    def epoch(self, epoch: int) -> dict[int, dict[str, float]]:
        """Train one epoch, evaluate, and return number -> metric -> value: the epoch's one synchronization."""
        trained = self._train_epoch(epoch)
        evaluated = self._evaluate()
        table = torch.cat([trained, evaluated]).double().cpu().tolist()
        return {
            number: {metric: row[index] for metric, row in zip(METRICS, table, strict=True)}
            for index, number in enumerate(self.numbers)
        }

    def leave(self, numbers: Collection[int]) -> None:
        """Compact the population to the members that stay, everything that is theirs together."""
        stay = [index for index, number in enumerate(self.numbers) if number not in numbers]
        if len(stay) == len(self.numbers):
            return
        self.numbers = [self.numbers[index] for index in stay]
        self._seeds = [self._seeds[index] for index in stay]
        if stay:
            kept = torch.tensor(stay, device=self._split.device)
            self._network.keep(kept)
            self._optimizer.keep(kept)

    def _train_epoch(self, epoch: int) -> Tensor:
        """Return the means of loss and accuracy over the epoch's images, [2, K]."""
        images, labels = self._train, self._split.train_labels
        order = batch_order(self._split.seed, epoch, len(labels)).to(images.device)
        batches = [batch for batch in torch.split(order, self._batch) if len(batch) > 1 or len(labels) == 1]
        network, dropouts = self._network, self._network.dropouts
        keys = dropout_keys(self._seeds, epoch, len(batches), len(dropouts)).to(images.device)
        totals = torch.zeros(2, len(self.numbers), dtype=torch.float64, device=images.device)
        for step, batch in enumerate(batches):
            for layer, dropout in enumerate(dropouts):
                dropout.set_keys(keys[step, layer])
            network.blocks.begin_step()
            loss, correct = _loss(network(images[batch], training=True), labels[batch])
            # The sum over members of each one's mean: a mean over members would divide every step by K.
            loss.mean(1).sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            totals += torch.stack([loss.detach().sum(1), correct])
        return totals / sum(len(batch) for batch in batches)

    @torch.no_grad()
    def _evaluate(self) -> Tensor:
        """Return loss and accuracy on the validation split, [2, K]."""
        totals = torch.zeros(2, len(self.numbers), dtype=torch.float64, device=self._validation.device)
        labels = self._split.validation_labels
        parts = zip(torch.split(self._validation, EVALUATION_BATCH), torch.split(labels, EVALUATION_BATCH), strict=True)
        for images, some in parts:
            loss, correct = _loss(self._network(images, training=False), some)
            totals += torch.stack([loss.sum(1), correct])
        return totals / len(labels)


def _loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's cross-entropy [K, B] and the number of right answers [K], of logits [K, B, classes]."""
    scores = logits.transpose(1, 2)  # the order in which the last layer wrote them
    if scores.dtype == torch.bfloat16:
        scores = scores.float()
    targets = labels.expand(len(scores), -1)
    loss = F.cross_entropy(scores, targets, reduction="none")
    correct = (scores.detach().argmax(1) == targets).sum(1)
    return loss, correct.to(loss.dtype)


def _finite(metrics: dict[str, float]) -> bool:
    return math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["val_loss"])


def _reason(epoch: int, metrics: dict[str, float]) -> str:
    name = "train_loss" if not math.isfinite(metrics["train_loss"]) else "val_loss"
    return f"diverged: {name} is {metrics[name]} after epoch {epoch}"
