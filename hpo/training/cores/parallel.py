"""Train the stacks of a population at the same time: how many, and whether in processes or in threads.

Each core of a CPU trains a stack; the stacks synchronize once an epoch. Threads inside each operation would synchronize
a thousand times as often, and all of them would wait whenever another process occupies a core: on a busy machine,
stacks were 3 to 30 times as fast (docs/explanation/log.md). Networks so small that Python's overhead dominates have
fewer stacks.

Long trainings have a process for each stack (stack_process.py), others threads of this process. Stacks that call the
user's functions have threads, too, so that these functions run where the user launched the study.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple

import torch
from torch import nn

from hpo.training.cores.stack_process import StackProcess, can_fork, handled_signals_blocked
from hpo.training.device_data import DeviceSplit, steps_per_epoch
from hpo.training.size import measure_network, network_size
from hpo.training.stack import Member, Stack

MIN_PROCESS_FLOPS = 25_000_000_000
"""Floating-point operations of a training from which processes pay: about half a second."""

MIN_STEP_FLOPS_PER_PROCESS, MIN_STEP_FLOPS_PER_THREAD = 20_000_000, 100_000_000
"""Floating-point operations in a step from which a further process or thread pays: up to about a millisecond."""

AnyStack = Stack | StackProcess

Folds = list[list[AnyStack]]
"""The stacks of each fold, with the same members in the same order."""

Run = Callable[[Sequence[Callable[[], Any]], float | None], list[Any]]
"""Calls functions, one for each stack, at the same time, with a timeout in seconds for all; returns their results."""


class UseOfCores(NamedTuple):
    """The stacks that train at a time, the threads inside the operations of each, and whether each has a process."""

    stacks: int
    threads: int
    processes: bool


def use_of_cores(members: Sequence[Member], flops: int, split: DeviceSplit) -> UseOfCores:
    """Return how members use the cores, for the floating-point operations of one step of all of them."""
    cores = torch.get_num_threads() if split.device.type == "cpu" else 1
    training = members[0].config.training
    steps = (training.epochs - members[0].epoch) * steps_per_epoch(len(split.train), training.batch_size)
    long = flops * steps * len(split.folds) >= MIN_PROCESS_FLOPS
    if long and can_fork(split.device) and not split.task.has_user_functions:
        stacks = max(1, min(cores, flops // MIN_STEP_FLOPS_PER_PROCESS, len(members)))
        if stacks > 1 and cores // stacks == 1:  # threads inside of operations may hang in a fork
            return UseOfCores(stacks, 1, True)
    threads = max(1, min(cores, flops // MIN_STEP_FLOPS_PER_THREAD))
    stacks = min(threads, len(members))
    return UseOfCores(stacks, threads // stacks, False)


def step_flops(member: Member, split: DeviceSplit, module: nn.Module | None = None) -> int:
    """Return the floating-point operations of a member's training step.

    A user-defined network is measured with `module`, which is constructed without it.
    """
    settings = member.config.network
    if settings.kind == "module" and module is not None:
        size = measure_network(module, split.shape)
    else:
        size = network_size(settings, split.shape, split.task.outputs)
    # A multiplication and an addition each for the output, for its gradient and for the weight's gradient.
    return 6 * size.products * member.config.training.batch_size


@contextmanager
def parallel_stacks(folds: Folds, cores: UseOfCores) -> Iterator[Run]:
    """Yield a function that calls all stacks at the same time; put processes into the places of stacks that have some.

    At the exit the processes end, also within an epoch. A thread that hangs remains until this process ends.
    """
    processes: list[StackProcess] = []
    try:
        if cores.processes:
            _start_processes(folds, processes)
        with ThreadPool(cores.stacks, torch.set_num_threads, (cores.threads,)) as pool:
            yield lambda calls, timeout_s: pool.map_async(operator.call, calls, 1).get(timeout_s)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def _start_processes(folds: Folds, processes: list[StackProcess]) -> None:
    for stacks in folds:
        for index, stack in enumerate(stacks):
            assert isinstance(stack, Stack), "no stack has a process yet"
            with handled_signals_blocked():
                stacks[index] = process = StackProcess(stack, folds)
                processes.append(process)
