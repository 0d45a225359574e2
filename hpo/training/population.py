"""Train a population: K members side by side on one device, epoch by epoch.

On a CPU the members are divided into stacks, one a core or more (hpo/training/cores/parallel.py). A GPU has one stack.

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
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import TypeVar

from torch import Tensor, nn

from hpo.errors import HpoError
from hpo.training.cores.allocator import reused_memory
from hpo.training.cores.parallel import AnyStack, Folds, Run, UseOfCores, parallel_stacks, step_flops, use_of_cores
from hpo.training.cores.stack_process import training_here
from hpo.training.device_data import DeviceSplit
from hpo.training.devices import is_out_of_memory
from hpo.training.grouping import first_line, stack_key
from hpo.training.networks.builtin import build
from hpo.training.networks.user_defined import in_type, load_values
from hpo.training.networks.weights_file import State
from hpo.training.shapes.division import divide
from hpo.training.shapes.padding import Padding
from hpo.training.shapes.template import NetworkShape, largest_network, largest_settings, network_shape
from hpo.training.size import device_memory, member_size, shape_key
from hpo.training.stack import DTYPES, Member, MemberMetrics, MemberState, Stack
from hpo.training.stacking.tracing.trace import CannotStackError, TraceCache

T = TypeVar("T")


class TrialTimeout(Exception):
    """A population took longer than search.trial_timeout."""


@dataclass(frozen=True)
class EpochResult:
    """Result of an epoch: metrics, trial number -> metric -> value, and the reasons of members that failed.

    `metrics` has the members whose metrics are finite. With `data.folds`, `val_loss` is the mean over the folds, and
    `val_loss/1`, `val_loss/2` and so on are those of each fold; so are the other metrics.

    `train_loss` and `train_accuracy` are means over the epoch's training batches, with dropout, augmentation and mixup
    but without label smoothing and class weights, so that losses can be compared. `val_loss`, `val_accuracy` and the
    study's own metrics are those of the whole validation split after the epoch. Losses are in nats, unless the user
    defines the loss; accuracies are fractions.

    `states(numbers)` returns copies of the weights after the epoch, by number, of members that trained in it; only
    where there are no folds; `freeze(numbers)` returns their whole states. Call both before the generator continues or
    is closed; afterwards, and for other numbers, they raise KeyError. `shapes` is the number of different networks that
    began to train together, `stacks` that of the stacks they were divided into, on one fold.
    """

    epoch: int
    metrics: MemberMetrics
    failed: dict[int, str]
    states: Callable[[Collection[int]], dict[int, State]] = field(repr=False, compare=False)
    freeze: Callable[[Collection[int]], dict[int, MemberState]] = field(repr=False, compare=False)
    shapes: int = 1
    stacks: int = 1


def train(
    members: Sequence[Member],
    split: DeviceSplit,
    precision: str,
    timeout_s: float | None = None,
    stacked: bool = True,
    spent_s: float = 0,
    traces: Callable[[str], TraceCache] | None = None,
    stack_sizes: Mapping[str, int] = MappingProxyType({}),
) -> Generator[EpochResult, Collection[int], None]:
    """Train members of one group (see hpo/training/grouping.py), and yield an `EpochResult` per epoch.

    Members of one architecture, in similar sizes, share stacks (hpo/training/shapes/). The first epoch is the one after
    the members' states, or epoch 1.

    Send the numbers of the members to drop from the next epoch on. The generator ends after the last epoch, or when no
    member remains. A member with a metric that is not finite is reported in `failed` once and dropped.

    `precision` is a key of `DTYPES`. `timeout_s` limits the time of all epochs, in seconds, of which earlier
    populations of the members have taken `spent_s`. With `stacked` False, the one member's module runs unstacked.
    `traces` returns the cache of an architecture's graph; without it, every stack is traced. `stack_sizes` has the most
    members of a stack by `stack_key`; without it, there is one stack a core, or more for several shapes. Members that
    cannot be trained fail alone, where the population has other architectures.

    Raises TrialTimeout for an epoch that ends, or hangs, after the timeout, CannotStackError for modules that cannot be
    stacked, and MemoryError for members that need more memory than the device has.
    """
    mixed = len({stack_key(member.config) for member in members}) > 1
    deadline = None if timeout_s is None else time.monotonic() + timeout_s - spent_s
    with ExitStack() as training:
        training.enter_context(training_here())
        folds, shapes, cores = _make_stacks(members, split, precision, stacked, traces, stack_sizes)
        stacks_at_first = len(folds[0])
        training.enter_context(reused_memory())
        run = training.enter_context(parallel_stacks(folds, cores))
        for epoch in range(members[0].epoch + 1, members[0].config.training.epochs + 1):
            left = None if deadline is None else min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
            try:
                parts = run([partial(_epoch, stack, epoch) for stacks in folds for stack in stacks], left)
            except multiprocessing.TimeoutError as error:
                raise TrialTimeout(f"took longer than search.trial_timeout, {timeout_s:g} s (epoch {epoch})") from error
            failed = _untrainable(parts, itertools.chain.from_iterable(folds), mixed)
            trained_parts = ({} if isinstance(part, HpoError) else part for part in parts)
            by_fold = [dict(_items(next(trained_parts) for _ in stacks)) for stacks in folds]
            values = _mean_over_folds([{n: each for n, each in fold.items() if n not in failed} for fold in by_fold])
            failed |= {n: _failure_reason(epoch, metrics) for n, metrics in values.items() if not _is_finite(metrics)}
            finite = {number: metrics for number, metrics in values.items() if number not in failed}
            trained = list(folds)
            states, freeze = partial(_states, run, trained), partial(_frozen, run, trained)
            try:
                dropped = yield EpochResult(epoch, finite, failed, states, freeze, shapes, stacks_at_first)
            finally:
                trained.clear()  # a result that is stored somewhere must not keep the stacks alive
            for stack in itertools.chain.from_iterable(folds):
                stack.remove({*failed, *(dropped or ())})
            folds = [[stack for stack in stacks if stack.numbers] for stacks in folds]
            if not folds[0]:
                return


def _untrainable(parts: Sequence[MemberMetrics | HpoError], stacks: Iterable[AnyStack], mixed: bool) -> dict[int, str]:
    """Return the reasons of members whose stacks raised errors. Raises the error where all have one architecture."""
    reasons: dict[int, str] = {}
    for part, stack in zip(parts, stacks, strict=True):
        if isinstance(part, HpoError):
            if not mixed:
                raise part
            reasons |= dict.fromkeys(stack.numbers, str(part))
    return reasons


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


def _epoch(stack: AnyStack, epoch: int) -> MemberMetrics | HpoError:
    try:
        return stack.epoch(epoch)
    except HpoError as error:
        return error


def _states(run: Run, folds: Folds, numbers: Collection[int]) -> dict[int, State]:
    assert len(folds) <= 1, "folds have no common weights"
    parts = [run([partial(stack.states, numbers) for stack in stacks], None) for stacks in folds]
    return _by_number(itertools.chain.from_iterable(parts), numbers)


def _frozen(run: Run, folds: Folds, numbers: Collection[int]) -> dict[int, MemberState]:
    parts = [run([partial(stack.freeze, numbers) for stack in stacks], None) for stacks in folds]
    first, *others = (_by_number(part, numbers) for part in parts or [[]])
    return {n: replace(first[n], other_folds=tuple(fold[n] for fold in others)) for n in numbers}


def _by_number(parts: Iterable[dict[int, T]], numbers: Collection[int]) -> dict[int, T]:
    found = dict(_items(parts))
    if missing := set(numbers) - found.keys():
        raise KeyError(f"no weights of trials {sorted(missing)}: they were dropped, or the epoch is over")
    return found


def _items(parts: Iterable[dict[int, T]]) -> Iterator[tuple[int, T]]:
    return (item for part in parts for item in part.items())


def _make_stacks(
    members: Sequence[Member],
    split: DeviceSplit,
    precision: str,
    stacked: bool,
    traces: Callable[[str], TraceCache] | None,
    stack_sizes: Mapping[str, int],
) -> tuple[Folds, int, UseOfCores]:
    """Return each fold's stacks, the number of different networks, and how the stacks use the cores."""
    _require_memory(members, split, precision)
    modules = [
        [build(m.config.network, split.shape, split.task.outputs, m.seed).to(split.device) for m in members]
        for _ in split.folds
    ]
    keys = [_shape_key(member, module) for member, module in zip(members, modules[0], strict=True)]
    firsts = {key: keys.index(key) for key in keys}
    flops = {key: step_flops(members[i], split, modules[0][i]) for key, i in firsts.items()}
    cores = use_of_cores(members, sum(flops[key] for key in keys), split)
    shapes: list[NetworkShape] = []
    parts: Sequence[Sequence[int]]
    if len(firsts) > 1:
        found = {key: network_shape(members[i].config.network, modules[0][i], split.shape) for key, i in firsts.items()}
        shapes = [found[key] for key in keys]
        batch_sizes = [member.config.training.batch_size for member in members]
        parts = divide([stack_key(member.config) for member in members], shapes, batch_sizes, cores.stacks)
    else:
        parts = _cut(range(len(members)), cores.stacks)
    sizes = [stack_sizes.get(stack_key(members[part[0]].config), len(part)) for part in parts]
    parts = [piece for part, size in zip(parts, sizes, strict=True) for piece in _cut(part, -(-len(part) // size))]
    for fold, of_fold in enumerate(modules):
        for member, module in zip(members, of_fold, strict=True):
            in_type(module, DTYPES[precision])
            if member.state is not None:
                load_values(module, member.state.folds[fold].network)
    typed = split.in_type(DTYPES[precision])  # once for all stacks: the split may be large

    def make(part: Sequence[int], fold: int) -> Stack:
        of_part = [modules[fold][i] for i in part]
        own = [shapes[i] for i in part] if shapes else []
        return _make_stack([members[i] for i in part], of_part, own, typed, fold, precision, stacked, traces)

    folds: Folds = [[make(part, fold) for part in parts] for fold in range(len(modules))]
    return folds, len(firsts), cores


def _cut(members: Sequence[int], count: int) -> list[Sequence[int]]:
    """Return the members in `count` parts of about the same size."""
    bounds = [len(members) * part // count for part in range(count + 1)]
    return [members[start:end] for start, end in pairwise(bounds)]


def _shape_key(member: Member, module: nn.Module) -> tuple[object, ...]:
    """Return what members share whose networks need no padding in one stack."""
    tensors = tuple((name, value.shape) for name, value in module.state_dict().items() if isinstance(value, Tensor))
    return stack_key(member.config), tensors


def _require_memory(members: Sequence[Member], split: DeviceSplit, precision: str) -> None:
    """Raise MemoryError for members whose least sizes exceed the device's memory.

    An operating system may promise memory that it does not have.
    """
    if members[0].config.network.kind != "module":
        sizes, least = dict[str, int](), 0
        for member in members:
            config = member.config
            key = f"{shape_key(config.network)} {config.optimizer.kind} {config.training.ema > 0}"
            if key not in sizes:
                size = member_size(config, split.shape, split.task.outputs, precision, len(split.folds))
                sizes[key] = size.least_bytes
            least += sizes[key]
        if least > device_memory(split.device):
            raise MemoryError(f"{len(members)} members need at least {least:,} bytes")


def _make_stack(
    members: Sequence[Member],
    modules: Sequence[nn.Module],
    shapes: Sequence[NetworkShape],
    split: DeviceSplit,
    fold: int,
    precision: str,
    stacked: bool,
    traces: Callable[[str], TraceCache] | None,
) -> Stack:
    """Return a stack of members of one architecture, or of several `shapes` that are padded to one."""
    padding = None
    if len({tuple(each.tensors.items()) for each in shapes}) > 1:
        padding, template = _padding(members, shapes, split, precision)
        modules = padding.modules(modules, template)
    found = traces(repr(_shape_key(members[0], modules[0]))) if traces is not None else None
    return Stack(members, modules, split.folds[fold], fold, stacked, found, padding)


def _padding(
    members: Sequence[Member], shapes: Sequence[NetworkShape], split: DeviceSplit, precision: str
) -> tuple[Padding, nn.Module]:
    """Return the padding of members of several shapes, and the network of the largest one, which they are padded to.

    Raises CannotStackError where the largest arguments of user-defined modules make no network together.
    """
    settings = [member.config.network for member in members]
    user_defined = settings[0].kind == "module"
    largest = largest_settings(settings)
    try:
        template = in_type(largest_network(settings, split.shape, split.task.outputs), DTYPES[precision])
    except Exception as error:
        if not user_defined or is_out_of_memory(error):
            raise
        # The proof compares a few of the architectures at a time (hpo/training/grouping.py).
        problem = f"{settings[0].module}: the largest arguments of these networks make none: {first_line(error)}"
        raise CannotStackError(problem) from error
    template = template.to(split.device)
    return Padding([each.own_shape(largest) for each in shapes], template, user_defined), template


def _is_finite(metrics: dict[str, float]) -> bool:
    return all(map(math.isfinite, metrics.values()))


def _failure_reason(epoch: int, metrics: dict[str, float]) -> str:
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    losses = [name for name in wrong if name.startswith(("train_loss", "val_loss"))]
    # The fold, where there are folds, says more than the mean over them.
    name = next((name for name in losses or wrong if "/" in name), (losses or wrong)[0])
    return f"{'diverged: ' if losses else ''}{name} is {metrics[name]} after epoch {epoch}"
