"""Choose what is fastest on this machine: the precision of `precision = "auto"`, and the size of stacks on a CPU.

Two ways of training do equal work in alternation, in short chunks (hpo/training/speed/timing.py): a moment of high load
slows some chunks, and the choice is that of most pairs of chunks. Where the training is so short that a measurement
would not pay, nothing is measured.

bfloat16 is chosen only where it is clearly faster, because its steps are less accurate. The size of a stack changes no
result but by rounding. Large stacks save calls of operations and share the examples; small ones fit into the caches.
For convolutions the best stacks are small, and may have one member.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from hpo.errors import HpoError
from hpo.training.cores.parallel import step_flops, use_of_cores
from hpo.training.device_data import DeviceSplit
from hpo.training.speed.timing import STEPS, Run, Way, fitting, start, time_alternately, unless_too_large
from hpo.training.stack import Member

MIN_SPEEDUP = 1.2
"""Speedup from which bfloat16 is chosen."""

MIN_GAIN = 1.05
"""Speedup of a stack over one of twice its size from which the smaller one is chosen."""

LEAD = 4
"""Pairs of chunks by which one way must be ahead to be chosen."""

MAX_PAIRS = 24
"""Pairs of chunks in a measurement of two ways that are about equally fast."""

MAX_FRACTION = 0.1
"""Fraction of the training steps that a measurement may add."""


MEASURED_PER_CORE = 8
"""Members a core on which the precisions are compared: with more, their ratio is the same and takes longer."""


class StackSize(NamedTuple):
    """The most members of a stack; `largest` would be one stack a core.

    Where that is larger, stacks of `members` are `speedup` times as fast as those of the next size, `slower`.
    """

    members: int
    largest: int
    speedup: float = 1.0
    slower: int = 0


def pays(members: int, steps: int) -> bool:
    """Return whether a measurement of `members` pays for those who train `steps` steps in all.

    Each pair of chunks, and the warm-up, are steps of all members in both ways.
    """
    return steps * MAX_FRACTION >= 2 * (1 + LEAD) * STEPS * members


def measured_members(population: int, device: torch.device) -> int:
    """Return the members of a population on which the precisions are compared: on a GPU, where they fill it, all."""
    return min(population, MEASURED_PER_CORE * torch.get_num_threads()) if device.type == "cpu" else population


def choose_precision(members: Sequence[Member], split: DeviceSplit) -> tuple[str, float]:
    """Return "bfloat16" or "float32", and the speedup of bfloat16 over float32 for these members.

    Halves the members until they fit into memory; without a measurement, returns ("float32", 1.0).
    """
    speedup = fitting(
        members, lambda part: compare(start(part, split, "float32"), start(part, split, "bfloat16"), MIN_SPEEDUP)
    )
    return ("bfloat16" if (speedup or 0) >= MIN_SPEEDUP else "float32"), speedup or 1.0


def choose_stack_size(
    member: Member, population: int, split: DeviceSplit, precision: str, timeout_s: float | None = None
) -> StackSize:
    """Return the size of the fastest stacks for a population of members like this one.

    Stacks are doubled until that makes them slower. Copies of the member train, one stack a core: see
    `population.train` for `precision`, `timeout_s` and errors. A size that does not fit into memory is not chosen.
    """
    cores = use_of_cores([member] * population, population * step_flops(member, split), split).stacks

    def begin(size: int) -> Run:
        copies = [replace(member, number=number) for number in range(cores * size)]
        return start(copies, split, precision, size, timeout_s=timeout_s)

    sizes = [largest := -(-population // cores)]
    while sizes[0] > 1:
        sizes.insert(0, -(-sizes[0] // 2))
    size, run = sizes[0], begin(sizes[0])
    for larger in sizes[1:]:
        further = unless_too_large(partial(begin, larger))
        speedup = 1.0 if further is None else compare(further, run, MIN_GAIN)
        if further is None or speedup >= MIN_GAIN:
            return StackSize(size, largest, speedup, larger)
        size, run = larger, further
    return StackSize(size, largest)


def time_ways(members: Sequence[Member], split: DeviceSplit, precisions: Sequence[str], stacks: bool) -> list[Way]:
    """Return the times of the members one at a time and, where `stacks`, in stacks: one a core, and the fastest ones.

    Halves the members until they fit into memory. Raises HpoError where a single one does not fit.
    """

    def measure(part: Sequence[Member]) -> list[Way]:
        ways = []
        for precision in precisions:
            ways.append(Way(None, precision))
            if stacks:
                found = choose_stack_size(part[0], len(part), split, precision)
                ways += [Way(size, precision) for size in sorted({found.members, found.largest})]
        time_alternately(part, split, ways)
        return ways

    ways = fitting(members, measure)
    if ways is None:
        raise HpoError(f"a single network does not fit into the memory of {split.device}: use a smaller network")
    return ways


def compare(first: Run, second: Run, threshold: float) -> float:
    """Return how many times as fast a member trains in the second way as in the first one: the median over pairs.

    The chunks of a pair are equal work: with fewer members, several epochs. Stops when most pairs are above or below
    the threshold by a lead of `LEAD`. The way that comes second in one pair comes first in the next one.
    """
    most = max(first.members, second.members)
    epochs = {run: round(most / run.members) for run in (first, second)}
    ratios: list[float] = []
    while len(ratios) < MAX_PAIRS and abs(sum(1 if ratio >= threshold else -1 for ratio in ratios)) < LEAD:
        runs = (first, second) if len(ratios) % 2 == 0 else (second, first)
        seconds = {run: sum(run.time_epoch() for _ in range(epochs[run])) / epochs[run] / run.members for run in runs}
        ratios.append(seconds[first] / seconds[second])
    return statistics.median(ratios)
