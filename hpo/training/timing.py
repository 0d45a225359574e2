"""Time members in short chunks of equal work: stacked and one at a time, in each precision, on this machine.

The chunks are a few training steps on the first examples of the split, with the learning rate so small that no member
diverges. Candidates alternate, because a moment of high load then slows a few chunks of each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from hpo.training.device_data import DeviceSplit
from hpo.training.devices import is_out_of_memory
from hpo.training.population import EpochResult, train
from hpo.training.stack import Member

STEPS = 4
"""Training steps in a timed epoch."""

ROUNDS = 8
"""Chunks of each way of training in `compare_ways`."""


@dataclass(frozen=True)
class Way:
    """A way of training, and the seconds that a step of one member took in each chunk."""

    stacked: bool
    precision: str
    seconds: list[float]

    @property
    def mean(self) -> float:
        """Return the mean of the chunks, in seconds."""
        return statistics.fmean(self.seconds)


def compare_ways(members: Sequence[Member], split: DeviceSplit, precisions: Sequence[str], stacks: bool) -> list[Way]:
    """Train the members one at a time and, where `stacks`, stacked; return one way for each of these and precision.

    One at a time, plain torch runs the first member's module. Halves the members until they fit into memory. Raises
    torch's error where a single one does not fit.
    """
    try:
        return _compare(members, split, precisions, stacks)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or len(members) == 1:
            raise
    return compare_ways(members[: len(members) // 2], split, precisions, stacks)


def _compare(members: Sequence[Member], split: DeviceSplit, precisions: Sequence[str], stacks: bool) -> list[Way]:
    count = len(members)
    few = few_examples(split, STEPS * members[0].config.training.batch_size)
    stable = [with_tiny_lr(member, 1 + count * ROUNDS) for member in members]
    ways = [Way(stacked, each, []) for each in precisions for stacked in (False, True)[: 1 + stacks]]
    runs = [train(stable if way.stacked else stable[:1], few, way.precision, stacked=way.stacked) for way in ways]
    for epochs in runs:
        next(epochs)  # warms up
    for _ in range(ROUNDS):
        for way, epochs in zip(ways, runs, strict=True):
            seconds = sum(time_epoch(epochs, split.device) for _ in range(1 if way.stacked else count))
            way.seconds.append(seconds / (count * STEPS))
    return ways


def few_examples(split: DeviceSplit, examples: int) -> DeviceSplit:
    """Return a split of the first examples, without folds."""
    return replace(
        split,
        train=split.train[:examples],
        train_targets=split.train_targets[:examples],
        validation=split.validation[:examples],
        validation_targets=split.validation_targets[:examples],
        task=replace(split.task, metrics={}),  # one that is undefined for few examples would drop the members
        other_folds=(),
    )


def with_tiny_lr(member: Member, epochs: int) -> Member:
    """Return the member with a learning rate so small that it cannot diverge: a dropped member would cost no time."""
    training = member.config.training.model_copy(update={"epochs": epochs})
    optimizer = member.config.optimizer.model_copy(update={"lr": 1e-9})
    return replace(member, config=member.config.model_copy(update={"training": training, "optimizer": optimizer}))


def time_epoch(epochs: Iterator[EpochResult], device: torch.device) -> float:
    """Train the next epoch; return its duration in seconds."""
    _synchronize(device)
    start = time.perf_counter()
    next(epochs)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
