"""Time members in short chunks of equal work: in stacks of any size or one at a time, in each precision.

The chunks are a few training steps on the first examples of the split, with the learning rate so small that no member
diverges. Ways of training take turns, because a moment of high load then slows a few chunks of each.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from hpo.training.device_data import DeviceSplit
from hpo.training.devices import is_out_of_memory
from hpo.training.grouping import stack_key
from hpo.training.population import EpochResult, train
from hpo.training.stack import Member

STEPS = 4
"""Training steps in a timed epoch."""

ROUNDS, ENOUGH_S = (3, 8), 10.0
"""Fewest and most chunks of each way in `time_alternately`, and the seconds after which the fewest are enough."""

_EPOCHS = 1000
"""More epochs than any measurement trains."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Run:
    """A population in training, for measurements; `members` is their number."""

    epochs: Generator[EpochResult, Collection[int], None]
    device: torch.device
    members: int

    def time_epoch(self) -> float:
        """Train the next epoch; return its duration in seconds."""
        _synchronize(self.device)
        start_s = time.perf_counter()
        next(self.epochs)
        _synchronize(self.device)
        return time.perf_counter() - start_s


def start(
    members: Sequence[Member],
    split: DeviceSplit,
    precision: str,
    stack_size: int | None = None,
    *,
    stacked: bool = True,
    timeout_s: float | None = None,
) -> Run:
    """Return a run of the members on a few examples, after one epoch that warms up. Arguments: see `population.train`.

    The members start anew, without their states. `stack_size` is the most members of each stack.
    """
    few = _few_examples(split, STEPS * members[0].config.training.batch_size)
    stable = [with_tiny_lr(member) for member in members]
    sizes = {stack_key(each.config): stack_size for each in stable} if stack_size is not None else {}
    run = Run(train(stable, few, precision, timeout_s, stacked, stack_sizes=sizes), split.device, len(members))
    run.time_epoch()
    return run


def unless_too_large(measure: Callable[[], T]) -> T | None:
    """Return the measurement, or None where memory is too small for it."""
    try:
        return measure()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    return None


def fitting(members: Sequence[Member], measure: Callable[[Sequence[Member]], T]) -> T | None:
    """Return the measurement of the members, or of half as many where memory is too small for it, and so on.

    None where a single member does not fit.
    """
    found = unless_too_large(lambda: measure(members))
    return fitting(members[: len(members) // 2], measure) if found is None and len(members) > 1 else found


@dataclass(frozen=True)
class Way:
    """A way of training, and the seconds that a step of one member took in each chunk.

    `stack_size` is the largest number of members of a stack, None for one member at a time in plain torch.
    """

    stack_size: int | None
    precision: str
    seconds: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Return the mean of the chunks, in seconds."""
        return statistics.fmean(self.seconds)


def time_alternately(members: Sequence[Member], split: DeviceSplit, ways: Sequence[Way]) -> None:
    """Train the members in each way, in alternation, and append the seconds of each chunk to the way's.

    One at a time, plain torch runs the first member's module.
    """
    count = len(members)
    runs = [
        start(members, split, way.precision, way.stack_size)
        if way.stack_size
        else start(members[:1], split, way.precision, stacked=False)
        for way in ways
    ]
    began, (fewest, most) = time.perf_counter(), ROUNDS
    while len(ways[0].seconds) < (most if time.perf_counter() - began < ENOUGH_S else fewest):
        for way, run in zip(ways, runs, strict=True):
            seconds = sum(run.time_epoch() for _ in range(1 if way.stack_size else count))
            way.seconds.append(seconds / (count * STEPS))


def _few_examples(split: DeviceSplit, examples: int) -> DeviceSplit:
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


def with_tiny_lr(member: Member) -> Member:
    """Return the member with a learning rate so small that it cannot diverge: a dropped member would cost no time."""
    training = member.config.training.model_copy(update={"epochs": _EPOCHS})
    optimizer = member.config.optimizer.model_copy(update={"lr": 1e-9})
    config = member.config.model_copy(update={"training": training, "optimizer": optimizer})
    return replace(member, config=config, state=None, val_losses=())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
