"""What `precision = "auto"` means on this machine: found by training a population for a moment both ways.

bfloat16 must be clearly faster to be chosen: it costs accuracy of each step, and a choice that hangs on the noise of
one measurement would differ from run to run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from hpo.training.images import DeviceSplit
from hpo.training.population import Member, train

CLEARLY_FASTER = 1.2
"""Ratio of times from which bfloat16 is chosen."""

STEPS = 4
ROUNDS = 3


def choose_precision(members: Sequence[Member], split: DeviceSplit) -> tuple[str, float]:
    """Return "bfloat16" or "float32", and how many times as fast bfloat16 trains these members here."""
    images = STEPS * members[0].config.training.batch_size
    few = replace(
        split,
        train=split.train[:images],
        train_labels=split.train_labels[:images],
        validation=split.validation[:images],
        validation_labels=split.validation_labels[:images],
    )
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for _ in range(ROUNDS):  # in alternation, so that a busy moment of the machine meets both
        for precision, measured in seconds.items():
            measured.append(_seconds(members, few, precision))
    ratio = min(seconds["float32"]) / min(seconds["bfloat16"])
    return ("bfloat16" if ratio >= CLEARLY_FASTER else "float32"), ratio


def _seconds(members: Sequence[Member], split: DeviceSplit, precision: str) -> float:
    """Return how long the second epoch takes: the first one warms up."""
    epochs = train([_two_epochs(member) for member in members], split, precision)
    next(epochs)
    _wait(split.device)
    start = time.perf_counter()
    next(epochs, None)
    _wait(split.device)
    return time.perf_counter() - start


def _two_epochs(member: Member) -> Member:
    training = member.config.training.model_copy(update={"epochs": 2})
    return replace(member, config=member.config.model_copy(update={"training": training}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
