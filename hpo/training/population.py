"""A population: K members trained side by side on one device, epoch by epoch.

On a CPU the members are dealt out to stacks, one a core, each in a thread of its own, which meet once an epoch.
Threads inside each operation would meet a thousand times as often, and wherever another process takes a core for a
moment all of them wait: on a busy machine, stacks were 3 to 30 times as fast
(docs/explanation/log.md). A GPU has one stack, and so have networks so
small that Python's own work, which threads cannot share, is most of it.

`train` is a generator. After every epoch it yields what the members made of it, and is told which of them to leave
out from now on: pruning, reporting, progress and graceful stops all live on that one seam. What a member does depends
on its own settings and seed and on the split, never on its company.

Knows nothing of search spaces, pruners or storage.
"""

from __future__ import annotations

import math
import multiprocessing
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing.pool import ThreadPool

import torch

from hpo.training.device_split import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.networks.weights import State
from hpo.training.size import device_memory, measure_network, member_size
from hpo.training.stack import DTYPES, Member, MemberMetrics, Stack

WORTH_A_CORE = 100_000_000
"""Floating-point operations a step from which a stack earns a thread of its own: about a millisecond's."""


class TrialTimeout(Exception):
    """A population took longer than its trials may."""


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gave: trial number -> metric -> value, for members that are well; and why others failed.

    `train_loss` and `train_accuracy` are means over the epoch's batches as they were trained on, dropout, flips and
    shifts included, label smoothing not: losses are to be compared. `val_loss` and `val_accuracy` are of the whole
    validation split after the epoch. Losses are in nats, accuracies fractions. `states` returns copies of the weights
    after the epoch, by number, of members that trained in it; only until the generator goes on. Nothing is copied for
    those that are not asked for.
    """

    epoch: int
    metrics: MemberMetrics
    failed: dict[int, str]
    states: Callable[[Collection[int]], dict[int, State]] = field(repr=False, compare=False)


def train(
    members: Sequence[Member], split: DeviceSplit, precision: str, timeout_s: float | None = None, stacked: bool = True
) -> Generator[EpochResult, Collection[int], None]:
    """Train members of one shape (see hpo/training/grouping.py) and yield an `EpochResult` an epoch, from epoch 1.

    Send the numbers of the members to leave out from the next epoch on. Ends after the last epoch, or when no member
    is left. A member whose loss is no longer finite is in `failed` once, and out. Raises TrialTimeout where an epoch
    ends, or hangs, later than `timeout_s` after the beginning, and CannotStackError where their modules cannot be
    stacked. One member that is not to be `stacked` trains as it is.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    stacks, threads = _deal(members, split, precision, stacked)
    with _at_once(len(stacks), threads) as run:
        for epoch in range(1, members[0].config.training.epochs + 1):
            values: MemberMetrics = {}
            left = None if deadline is None else min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            try:
                for part in run([(stack, epoch) for stack in stacks], left):
                    values.update(part)
            except multiprocessing.TimeoutError as error:
                raise TrialTimeout(f"took longer than search.trial_timeout, {timeout_s:g} s (epoch {epoch})") from error
            failed = {number: _reason(epoch, metrics) for number, metrics in values.items() if not _finite(metrics)}
            well = {number: metrics for number, metrics in values.items() if number not in failed}
            trained = list(stacks)
            dropped = yield EpochResult(epoch, well, failed, partial(_states, trained))
            trained.clear()  # whoever holds on to the result shall not hold on to the stacks
            for stack in stacks:
                stack.leave({*failed, *(dropped or ())})
            stacks = [stack for stack in stacks if stack.numbers]
            if not stacks:
                return


def _states(stacks: Sequence[Stack], numbers: Collection[int]) -> dict[int, State]:
    found = {number: state for stack in stacks for number, state in stack.states(numbers).items()}
    if missing := set(numbers) - found.keys():
        raise KeyError(f"no weights of {sorted(missing)}: they have left, or the epoch is over")
    return found


def _deal(members: Sequence[Member], split: DeviceSplit, precision: str, stacked: bool) -> tuple[list[Stack], int]:
    """Return the members in stacks of equal size, and the threads of each: as many cores as there is work for."""
    config = members[0].config
    if config.network.kind != "module":  # before memory is taken that a system may have promised, and does not have
        least = len(members) * member_size(config, split.shape, split.classes, precision).least_bytes
        if least > device_memory(split.device):
            raise MemoryError(f"{len(members)} members need {least:,} bytes")
    modules = [build(m.config.network, split.shape, split.classes, m.seed).to(split.device) for m in members]
    # A multiplication and an addition each for the output, its gradient and the weight's.
    step = 6 * measure_network(modules[0], split.shape).products * config.training.batch_size
    cores = torch.get_num_threads() if split.device.type == "cpu" else 1
    worth = max(1, min(cores, step * len(members) // WORTH_A_CORE))
    count = min(worth, len(members))
    typed = split.in_type(DTYPES[precision])  # once for all stacks: it may be the whole data set
    bounds = [len(members) * part // count for part in range(count + 1)]
    stacks = [Stack(members[start:end], modules[start:end], typed, stacked) for start, end in pairwise(bounds)]
    return stacks, worth // count


@contextmanager
def _at_once(
    stacks: int, threads: int
) -> Iterator[Callable[[Sequence[tuple[Stack, int]], float | None], list[MemberMetrics]]]:
    """Give a function that trains an epoch of all stacks at once, each in a thread that has `threads` for them.

    It waits for at most so many seconds. A thread that hangs is left behind: nothing can end it but the process's end.
    """
    with ThreadPool(stacks, torch.set_num_threads, (threads,)) as pool:
        yield lambda epochs, timeout_s: pool.starmap_async(Stack.epoch, epochs, 1).get(timeout_s)


def _finite(metrics: dict[str, float]) -> bool:
    return math.isfinite(metrics["train_loss"]) and math.isfinite(metrics["val_loss"])


def _reason(epoch: int, metrics: dict[str, float]) -> str:
    name = "train_loss" if not math.isfinite(metrics["train_loss"]) else "val_loss"
    return f"diverged: {name} is {metrics[name]} after epoch {epoch}"
