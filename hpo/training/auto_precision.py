"""Choose the precision of `precision = "auto"` by timing a population in float32 and bfloat16 on this machine.

bfloat16 is chosen only where it is clearly faster, because its steps are less accurate, and because a choice that
depends on measurement noise would differ between runs. Both precisions do equal work in alternation, in short chunks: a
moment of high load slows some chunks, and the choice is that of most pairs of chunks. A first measurement near the
limit is repeated.
"""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from hpo.training.device_data import DeviceSplit
from hpo.training.devices import is_out_of_memory
from hpo.training.population import EpochResult, train
from hpo.training.stack import Member

MIN_SPEEDUP = 1.2
"""Speedup from which bfloat16 is chosen."""

STEPS = 4
"""Training steps in each timed epoch."""

ROUNDS = 8
"""Timed epochs per precision in a measurement."""

MAX_MEASUREMENTS = 3
"""Measurements where the first ones are near the limit."""

CLEAR = 1.1
"""Factor from `MIN_SPEEDUP`, above or below, from which one measurement decides."""


def choose_precision(members: Sequence[Member], split: DeviceSplit) -> tuple[str, float]:
    """Return "bfloat16" or "float32", and the speedup of bfloat16 over float32 for these members.

    Halves the members until they fit into memory; without a measurement, returns ("float32", 1.0).
    """
    try:
        speedup = _measure_speedup(members, split)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        speedup = None
    if speedup is None:
        return choose_precision(members[: len(members) // 2], split) if len(members) > 1 else ("float32", 1.0)
    return ("bfloat16" if speedup >= MIN_SPEEDUP else "float32"), speedup


def _measure_speedup(members: Sequence[Member], split: DeviceSplit) -> float:
    examples = STEPS * members[0].config.training.batch_size
    small_split = replace(
        split,
        train=split.train[:examples],
        train_targets=split.train_targets[:examples],
        validation=split.validation[:examples],
        validation_targets=split.validation_targets[:examples],
        task=replace(split.task, metrics={}),  # one that is undefined for few examples would drop the members
        other_folds=(),
    )
    stable = [_with_tiny_lr(member) for member in members]
    runs = {precision: train(stable, small_split, precision) for precision in ("float32", "bfloat16")}
    for epochs in runs.values():
        next(epochs)  # warms up
    seconds: dict[str, list[float]] = {precision: [] for precision in runs}
    for _ in range(MAX_MEASUREMENTS):
        for number in range(ROUNDS):  # the precision that comes second in one pair comes first in the next one
            for precision in sorted(runs, reverse=bool(number % 2)):
                seconds[precision].append(_time_epoch(runs[precision], split.device))
        speedup = statistics.median(map(operator.truediv, seconds["float32"], seconds["bfloat16"]))
        if not MIN_SPEEDUP / CLEAR < speedup < MIN_SPEEDUP * CLEAR:
            break
    return speedup


def _time_epoch(epochs: Iterator[EpochResult], device: torch.device) -> float:
    """Train the next epoch; return its duration in seconds."""
    _synchronize(device)
    start = time.perf_counter()
    next(epochs)
    _synchronize(device)
    return time.perf_counter() - start


def _with_tiny_lr(member: Member) -> Member:
    """Return the member with a learning rate so small that it cannot diverge: a dropped member would cost no time."""
    training = member.config.training.model_copy(update={"epochs": 1 + MAX_MEASUREMENTS * ROUNDS})
    optimizer = member.config.optimizer.model_copy(update={"lr": 1e-9})
    return replace(member, config=member.config.model_copy(update={"training": training, "optimizer": optimizer}))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
