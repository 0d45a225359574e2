"""Train a population: K members side by side on one device, epoch by epoch.

On a CPU the members are divided into stacks, one per core, each trained in a thread of its own. The threads synchronize
once an epoch. Threads inside each operation would synchronize a thousand times as often, and all of them would wait
whenever another process occupies a core: on a busy machine, stacks were 3 to 30 times as fast
(docs/explanation/log.md). A GPU has one stack. So have networks that are so small that Python's overhead, which threads
cannot share, dominates.

`train` is a generator. After every epoch it yields the members' metrics and receives the members to drop: pruning,
reporting, progress displays and graceful stops all build on this interface. A member's results depend on its settings
and seed and on the split, never on the other members.

With `data.folds`, each fold has stacks of its own with the same members. A member's metrics are the means over the
folds, and each fold's own, as `METRIC/FOLD`.

Search spaces, pruners and storages play no role here.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from multiprocessing.pool import ThreadPool
from typing import TypeVar

import torch

from hpo.training.device_data import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import in_type, load_values
from hpo.training.networks.weights_file import State
from hpo.training.size import device_memory, measure_network, member_size
from hpo.training.stack import DTYPES, Member, MemberMetrics, MemberState, Stack
from hpo.training.stacking.trace import TraceCache

MIN_STEP_FLOPS_PER_THREAD = 100_000_000
"""Floating-point operations in a step from which a further thread pays: about a millisecond."""


T = TypeVar("T")


class TrialTimeout(Exception):
    """A population took longer than search.trial_timeout."""


@dataclass(frozen=True)
class EpochResult:
    """Result of an epoch: metrics, trial number -> metric -> value, and the reasons of members that failed.

    `metrics` has the members whose metrics are finite. With `data.folds`, `val_loss` is the mean over the folds, and
    `val_loss/1`, `val_loss/2` and so on are those of each fold; so are the other metrics.

    `train_loss` and `train_accuracy` are means over the epoch's training batches, with dropout, flips and shifts but
    without label smoothing and class weights, so that losses can be compared. `val_loss`, `val_accuracy` and the
    study's own metrics are those of the whole validation split after the epoch. Losses are in nats, unless the user
    defines the loss; accuracies are fractions.

    `states(numbers)` returns copies of the weights after the epoch, by number, of members that trained in it; only
    where there are no folds;
    `freeze(numbers)` returns their whole states. Call them before the generator continues; afterwards, and for other
    numbers, they raise KeyError.
    """

    epoch: int
    metrics: MemberMetrics
    failed: dict[int, str]
    states: Callable[[Collection[int]], dict[int, State]] = field(repr=False, compare=False)
    freeze: Callable[[Collection[int]], dict[int, MemberState]] = field(repr=False, compare=False)


def train(
    members: Sequence[Member],
    split: DeviceSplit,
    precision: str,
    timeout_s: float | None = None,
    stacked: bool = True,
    spent_s: float = 0,
    traces: TraceCache | None = None,
) -> Generator[EpochResult, Collection[int], None]:
    """Train members of one group (see hpo/training/grouping.py), and yield an `EpochResult` per epoch.

    The first epoch is the one after the members' states, or epoch 1.

    Send the numbers of the members to drop from the next epoch on. The generator ends after the last epoch, or when no
    member remains. A member with a metric that is not finite is reported in `failed` once and dropped.

    `precision` is a key of `DTYPES`. `timeout_s` limits the time of all epochs, in seconds, of which earlier
    populations of the members have taken `spent_s`. With `stacked` False, the one member's module runs unstacked.
    `traces` is the cache of the group's graph; without it, every stack is traced.

    Raises TrialTimeout for an epoch that ends, or hangs, after the timeout, CannotStackError for modules that cannot be
    stacked, and MemoryError for members that need more memory than the device has.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s - spent_s
    folds, workers, threads = _make_stacks(members, split, precision, stacked, traces)
    with _parallel_epochs(workers, threads) as run:
        for epoch in range(members[0].epoch + 1, members[0].config.training.epochs + 1):
            left = None if deadline is None else min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            try:
                parts = iter(run([(stack, epoch) for stacks in folds for stack in stacks], left))
            except multiprocessing.TimeoutError as error:
                raise TrialTimeout(f"took longer than search.trial_timeout, {timeout_s:g} s (epoch {epoch})") from error
            values = _mean_over_folds([dict(_items(next(parts) for _ in stacks)) for stacks in folds])
            failed = {n: _failure_reason(epoch, metrics) for n, metrics in values.items() if not _is_finite(metrics)}
            finite = {number: metrics for number, metrics in values.items() if number not in failed}
            trained = list(folds)
            dropped = yield EpochResult(epoch, finite, failed, partial(_states, trained), partial(_frozen, trained))
            trained.clear()  # a result that is stored somewhere must not keep the stacks alive
            for stack in itertools.chain.from_iterable(folds):
                stack.remove({*failed, *(dropped or ())})
            folds = [[stack for stack in stacks if stack.numbers] for stacks in folds]
            if not folds[0]:
                return


Folds = list[list[Stack]]
"""The stacks of each fold, with the same members in the same order."""


def _mean_over_folds(folds: Sequence[MemberMetrics]) -> MemberMetrics:
    """Return the metrics of a single fold, or the means over the folds with each fold's own metrics after them."""
    if len(folds) == 1:
        return folds[0]
    means: MemberMetrics = {}
    for number, metrics in folds[0].items():
        of_folds = {metric: [fold[number][metric] for fold in folds] for metric in metrics}
        means[number] = {metric: statistics.fmean(values) for metric, values in of_folds.items()}
        for metric, values in of_folds.items():
            means[number] |= {f"{metric}/{fold}": value for fold, value in enumerate(values, 1)}
    return means


def _states(folds: Folds, numbers: Collection[int]) -> dict[int, State]:
    assert len(folds) <= 1, "folds have no common weights"
    return _by_number([stack.states(numbers) for stacks in folds for stack in stacks], numbers)


def _frozen(folds: Folds, numbers: Collection[int]) -> dict[int, MemberState]:
    states = [_by_number([stack.freeze(numbers) for stack in stacks], numbers) for stacks in folds]
    first, *others = states or [_by_number([], numbers)]
    return {n: replace(first[n], other_folds=tuple(fold[n] for fold in others)) for n in numbers}


def _by_number(parts: Sequence[dict[int, T]], numbers: Collection[int]) -> dict[int, T]:
    found = dict(_items(parts))
    if missing := set(numbers) - found.keys():
        raise KeyError(f"no weights of trials {sorted(missing)}: they were dropped, or the next epoch has begun")
    return found


def _items(parts: Iterable[dict[int, T]]) -> Iterator[tuple[int, T]]:
    return (item for part in parts for item in part.items())


def _make_stacks(
    members: Sequence[Member], split: DeviceSplit, precision: str, stacked: bool, traces: TraceCache | None
) -> tuple[Folds, int, int]:
    """Return each fold's stacks of about equal size, the stacks that train at a time, and the threads of each stack."""
    config = members[0].config
    if config.network.kind != "module":  # check first: an operating system may promise memory that it does not have
        size = member_size(config, split.shape, split.task.outputs, precision, len(split.folds))
        least = len(members) * size.least_bytes
        if least > device_memory(split.device):
            raise MemoryError(f"{len(members)} members need at least {least:,} bytes")
    modules = [
        [build(m.config.network, split.shape, split.task.outputs, m.seed).to(split.device) for m in members]
        for _ in split.folds
    ]
    # A multiplication and an addition each for the output, for its gradient and for the weight's gradient.
    step = 6 * measure_network(modules[0][0], split.shape).products * config.training.batch_size
    cores = torch.get_num_threads() if split.device.type == "cpu" else 1
    threads = max(1, min(cores, step * len(members) // MIN_STEP_FLOPS_PER_THREAD))
    count = min(threads, len(members))
    for fold, of_fold in enumerate(modules):
        for member, module in zip(members, of_fold, strict=True):
            in_type(module, DTYPES[precision])
            if member.state is not None:
                load_values(module, member.state.folds[fold].network)
    typed = split.in_type(DTYPES[precision])  # once for all stacks: the split may be large
    bounds = [len(members) * part // count for part in range(count + 1)]
    folds = [
        [
            Stack(members[start:end], of_fold[start:end], typed.folds[fold], fold, stacked, traces)
            for start, end in pairwise(bounds)
        ]
        for fold, of_fold in enumerate(modules)
    ]
    return folds, count, threads // count


@contextmanager
def _parallel_epochs(
    stacks: int, threads: int
) -> Iterator[Callable[[Sequence[tuple[Stack, int]], float | None], list[MemberMetrics]]]:
    """Yield a function that trains one epoch of all stacks in parallel, each in a thread that uses `threads` cores.

    Its second argument is a timeout in seconds. A thread that hangs remains until the process ends: nothing else can
    end it.
    """
    with ThreadPool(stacks, torch.set_num_threads, (threads,)) as pool:
        yield lambda epochs, timeout_s: pool.starmap_async(Stack.epoch, epochs, 1).get(timeout_s)


def _is_finite(metrics: dict[str, float]) -> bool:
    return all(map(math.isfinite, metrics.values()))


def _failure_reason(epoch: int, metrics: dict[str, float]) -> str:
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    losses = [name for name in wrong if name.startswith(("train_loss", "val_loss"))]
    # The fold, where there are folds, says more than the mean over them.
    name = next((name for name in losses or wrong if "/" in name), (losses or wrong)[0])
    return f"{'diverged: ' if losses else ''}{name} is {metrics[name]} after epoch {epoch}"
