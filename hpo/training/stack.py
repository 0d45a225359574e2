"""Members that train as one stack: their network, their optimizer, and an epoch at a time.

An epoch is one synchronization with the device: everything between is tensors. Knows nothing of other stacks, of
threads, or of what becomes of the metrics.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpo.studyfile import Config
from hpo.training.augmentation import epoch_images
from hpo.training.device_split import DeviceSplit
from hpo.training.networks.user_defined import checked_output, with_output_check
from hpo.training.networks.weights import State
from hpo.training.optimizers import Optimizer
from hpo.training.randomness import batch_order, dropout_keys
from hpo.training.stacking.dropout import Dropout
from hpo.training.stacking.stacked_network import StackedNetwork
from hpo.training.stacking.unstacked_network import Draws, PlainNetwork

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
EVALUATION_BATCH = 500
"""Images evaluated at once: enough to fill the GEMMs, few enough that K times their activations stay small."""

METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")

MemberMetrics = dict[int, dict[str, float]]
"""Trial number -> metric -> value."""


@dataclass(frozen=True)
class Member:
    """One trial's place in a population: its number, its settings and the seed of its random numbers."""

    number: int
    config: Config
    seed: int


class Stack:
    """Members of one shape, on the device and in the type of their split's images.

    `modules` are their networks; `numbers` are those left. One module that is not to be `stacked` runs as it is.
    """

    def __init__(
        self, members: Sequence[Member], modules: Sequence[nn.Module], split: DeviceSplit, stacked: bool = True
    ) -> None:
        first = members[0].config
        self.numbers = [member.number for member in members]
        self._seeds = [member.seed for member in members]
        self._smoothings = [member.config.training.label_smoothing for member in members]
        self._split = split
        self._wide = torch.float32 if split.device.type == "mps" else torch.float64  # mps has no wider type
        assert stacked or len(modules) == 1, "only a stack has several members"
        self._network: StackedNetwork | PlainNetwork
        if stacked:
            self._network = StackedNetwork(modules, split.train.dtype)
        else:
            self._network = PlainNetwork(with_output_check(modules[0], split.classes, first.network), split.train.dtype)
        self._optimizer = Optimizer(self._network.blocks, [member.config.optimizer for member in members])
        self._training, self._settings = first.training, first.network

    def epoch(self, epoch: int) -> MemberMetrics:
        """Train one epoch, evaluate, and return number -> metric -> value: the epoch's one synchronization."""
        trained = self._train_epoch(epoch)
        evaluated = self._evaluate()
        table = torch.cat([trained, evaluated]).cpu().tolist()
        return {
            number: {metric: row[index] for metric, row in zip(METRICS, table, strict=True)}
            for index, number in enumerate(self.numbers)
        }

    def leave(self, numbers: Collection[int]) -> None:
        """Compact the stack to the members that stay, everything that is theirs together."""
        stay = [index for index, number in enumerate(self.numbers) if number not in numbers]
        if len(stay) == len(self.numbers):
            return
        self.numbers = [self.numbers[index] for index in stay]
        self._seeds = [self._seeds[index] for index in stay]
        self._smoothings = [self._smoothings[index] for index in stay]
        if stay:
            kept = torch.tensor(stay, device=self._split.device)
            self._network.select(kept)
            self._optimizer.select(kept)

    def states(self, numbers: Collection[int]) -> dict[int, State]:
        """Return copies of the weights of those of the numbers that are here, which later epochs do not change."""
        return {
            number: {
                name: value.cpu() if isinstance(value, Tensor) else value
                for name, value in self._network.state_dict(index).items()
            }
            for index, number in enumerate(self.numbers)
            if number in numbers
        }

    def _train_epoch(self, epoch: int) -> Tensor:
        """Return the means of loss and accuracy over the epoch's images, [2, K]."""
        device, labels, size = self._split.device, self._split.train_labels, self._training.batch_size
        images = epoch_images(self._split, epoch, self._training)
        order = batch_order(self._split.seed, epoch, len(labels)).to(device)
        batches = list(torch.split(order, size))
        if len(batches) > 1 and len(batches[-1]) == 1 < size:
            batches.pop()  # with batch norm and without: one image has no variance
        network = self._network
        dropouts: Sequence[Dropout | Draws] = network.dropouts
        keys = dropout_keys(self._seeds, epoch, len(batches), len(dropouts)).to(device)
        smoothing = None
        if any(self._smoothings):
            smoothing = torch.tensor(self._smoothings, dtype=self._wide, device=device).unsqueeze(1)
        self._optimizer.begin_epoch(epoch, self._training.epochs, len(batches))
        totals = torch.zeros(2, len(self.numbers), dtype=self._wide, device=device)
        for step, batch in enumerate(batches):
            for layer, dropout in enumerate(dropouts):
                dropout.set_keys(keys[step, layer])
            network.blocks.begin_step()
            goal, loss, correct = _losses(self._outputs(images(batch), training=True), labels[batch], smoothing)
            # The sum over members of each one's mean: a mean over members would divide every step by K.
            goal.mean(1).sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            totals += torch.stack([loss.detach().sum(1), correct])
        return totals / sum(len(batch) for batch in batches)

    def _outputs(self, images: Tensor, training: bool) -> Tensor:
        """Return what the members make of images, [K, B, classes]. Raises SettingError where it is anything else."""
        logits = self._network(images, training)
        checked_output(logits[0], len(images), self._split.classes, self._settings)
        return logits

    @torch.no_grad()
    def _evaluate(self) -> Tensor:
        """Return loss and accuracy on the validation split, [2, K]."""
        totals = torch.zeros(2, len(self.numbers), dtype=self._wide, device=self._split.device)
        images, labels = self._split.validation, self._split.validation_labels
        parts = zip(torch.split(images, EVALUATION_BATCH), torch.split(labels, EVALUATION_BATCH), strict=True)
        for some, of_some in parts:
            _, loss, correct = _losses(self._outputs(some, training=False), of_some)
            totals += torch.stack([loss.sum(1), correct])
        return totals / len(labels)


def _losses(logits: Tensor, labels: Tensor, smoothing: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return what to minimize and the cross-entropy, of each image [K, B], and the number of right answers [K].

    Of logits [K, B, classes]. The first two differ by the labels' `smoothing` [K, 1], as F.cross_entropy has it.
    """
    scores = logits.transpose(1, 2)  # the order in which the last layer wrote them
    if scores.dtype == torch.bfloat16:
        scores = scores.float()
    targets = labels.expand(len(scores), -1)
    if smoothing is None:
        goal = loss = F.cross_entropy(scores, targets, reduction="none")
    else:
        logarithms = F.log_softmax(scores, 1)
        loss = F.nll_loss(logarithms, targets, reduction="none")
        goal = loss.lerp(-logarithms.mean(1), smoothing.to(loss.dtype))
    correct = (scores.detach().max(1).indices == targets).sum(1)  # max: many times as fast as argmax on a CPU
    return goal, loss, correct.to(loss.dtype)
