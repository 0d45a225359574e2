"""Choose the precision of `precision = "auto"` by timing a population in float32 and bfloat16 on this machine.

bfloat16 is chosen only where it is clearly faster, because its steps are less accurate, and because a choice that
depends on measurement noise would differ between runs. Both precisions do equal work in alternation, in short chunks: a
moment of high load slows some chunks, and the choice is that of most pairs of chunks. A first measurement near the
limit is repeated.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from hpo.training.device_data import DeviceSplit
from hpo.training.devices import is_out_of_memory
from hpo.training.population import train
from hpo.training.stack import Member
from hpo.training.timing import STEPS, few_examples, time_epoch, with_tiny_lr

MIN_SPEEDUP = 1.2
"""Speedup from which bfloat16 is chosen."""

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
    few = few_examples(split, STEPS * members[0].config.training.batch_size)
    stable = [with_tiny_lr(member, 1 + MAX_MEASUREMENTS * ROUNDS) for member in members]
    runs = {precision: train(stable, few, precision) for precision in ("float32", "bfloat16")}
    for epochs in runs.values():
        next(epochs)  # warms up
    seconds: dict[str, list[float]] = {precision: [] for precision in runs}
    for _ in range(MAX_MEASUREMENTS):
        for number in range(ROUNDS):  # the precision that comes second in one pair comes first in the next one
            for precision in sorted(runs, reverse=bool(number % 2)):
                seconds[precision].append(time_epoch(runs[precision], split.device))
        ratios = [a / b for a, b in zip(seconds["float32"], seconds["bfloat16"], strict=True)]
        speedup = statistics.median(ratios)
        if not MIN_SPEEDUP / CLEAR < speedup < MIN_SPEEDUP * CLEAR:
            break
    return speedup
