"""What `precision = "auto"` means on this machine: found by training a population for a moment both ways.

bfloat16 must be clearly faster to be chosen: it costs accuracy of each step, and a choice that hangs on the noise of
one measurement would differ from run to run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from hpo.training.device_split import DeviceSplit
from hpo.training.devices import is_out_of_memory
from hpo.training.population import EpochResult, train
from hpo.training.stack import Member

CLEARLY_FASTER = 1.2
"""Ratio of times from which bfloat16 is chosen."""

STEPS = 4
ROUNDS = 8


def choose_precision(members: Sequence[Member], split: DeviceSplit) -> tuple[str, float]:
    """Return "bfloat16" or "float32", and how many times as fast bfloat16 trains these members here.

    Where they do not fit into memory together, fewer of them are measured.
    """
    try:
        ratio = _ratio(members, split)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        ratio = None
    if ratio is None:
        return choose_precision(members[: len(members) // 2], split) if len(members) > 1 else ("float32", 1.0)
    return ("bfloat16" if ratio >= CLEARLY_FASTER else "float32"), ratio


def _ratio(members: Sequence[Member], split: DeviceSplit) -> float:
    images = STEPS * members[0].config.training.batch_size
    few = replace(
        split,
        train=split.train[:images],
        train_labels=split.train_labels[:images],
        validation=split.validation[:images],
        validation_labels=split.validation_labels[:images],
    )
    steady = [_steady(member) for member in members]
    epochs = {precision: train(steady, few, precision) for precision in ("float32", "bfloat16")}
    for each in epochs.values():
        next(each)  # warms up
    seconds: dict[str, list[float]] = {precision: [] for precision in epochs}
    for _ in range(ROUNDS):  # in alternation, so that a busy moment of the machine meets both
        for precision, each in epochs.items():
            seconds[precision].append(_seconds(each, split.device))
    return min(seconds["float32"]) / min(seconds["bfloat16"])


def _seconds(epochs: Iterator[EpochResult], device: torch.device) -> float:
    """Return how long the next epoch takes."""
    _wait(device)
    start = time.perf_counter()
    next(epochs)
    _wait(device)
    return time.perf_counter() - start


def _steady(member: Member) -> Member:
    """Return the member for all rounds, with a learning rate at which nobody diverges: who leaves takes no time."""
    training = member.config.training.model_copy(update={"epochs": 1 + ROUNDS})
    optimizer = member.config.optimizer.model_copy(update={"lr": 1e-9})
    return replace(member, config=member.config.model_copy(update={"training": training, "optimizer": optimizer}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
