"""The matrix products and convolutions of a stack's epoch, recorded so that they can run again without all the rest.

Their time is a bound: no change of the other operations makes an epoch faster than its products. With the compiled
passes, it is a bound for what Python and the remaining operations cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hpo.training.compiled.passes import Passes
from hpo.training.device_data import DeviceSplit
from hpo.training.networks.builtin import build
from hpo.training.stack import DTYPES, Member, Stack

ATEN = torch.ops.aten
PRODUCTS = {ATEN.mm, ATEN.addmm, ATEN.bmm, ATEN.baddbmm, ATEN.convolution, ATEN.convolution_backward}
PRODUCTS |= {ATEN.addmm_, ATEN.baddbmm_}


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the calls of products with their arguments: the tensors themselves, in the layout that the stack uses."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Sequence[Any], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @contextmanager
    def with_passes(self) -> Iterator[None]:
        """Record the compiled passes, too; the tensors that they get pointers to stay alive."""
        call = Passes._call

        def recorded(passes: Passes, *args: Any) -> None:
            self.calls.append((call, (passes, *args), {}))
            call(passes, *args)

        with patch.object(Passes, "_call", recorded):
            yield

    @torch.no_grad()
    def run(self) -> None:
        for function, args, kwargs in self.calls:
            function(*args, **kwargs)


def products_of_epoch(
    members: Sequence[Member], split: DeviceSplit, precision: str, passes: bool = False
) -> Callable[[], None]:
    """Return a function that computes the products of an epoch of one stack: those of a step, and of the evaluation.

    With `passes`, it runs the compiled passes, too, in the order of the training.

    The step is that of a whole batch; as in the training, each step uses the same memory.
    """
    size = members[0].config.training.batch_size
    steps = len(split.train) // size
    typed = split.in_type(DTYPES[precision])
    typed = replace(typed, train=typed.train[:size], train_targets=typed.train_targets[:size])
    network = members[0].config.network
    modules = [build(network, split.shape, split.task.outputs, member.seed) for member in members]
    stack = Stack(members, modules, typed)
    step, evaluation = _Recorder(), _Recorder()
    for recorder, work in ((step, partial(stack._train_epoch, 1)), (evaluation, stack._evaluate)):
        with recorder, recorder.with_passes() if passes else nullcontext():
            work()
    assert step.calls, "the stack computes its products in another way"

    def run() -> None:
        for _ in range(steps):
            step.run()
        evaluation.run()

    return run
