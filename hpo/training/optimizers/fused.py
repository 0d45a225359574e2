"""Updates of large parameters on a CPU, one member after the other, by the kernels of torch.optim with `fused=True`.

A kernel reads and writes each tensor once, weight decay included. A rule (hpo/training/optimizers/rules.py) updates all
members at once, but passes over memory several times. torch's public functions for the kernels take 50 us a member to
check their arguments, so the kernels are called as these functions call them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hpo.training.optimizers.rules import Hyper, OptimizerState

Update = Callable[[Tensor, Tensor, OptimizerState, Hyper, Tensor | None, int], None]
"""A rule that takes the weight decay, [K, 1], before the number of updates; None is no decay."""


def fused_update(kind: str, value: Tensor) -> Update | None:
    """Return the update of a part [K, elements] of an optimizer's kind, None where its rule is faster."""
    update, least = FUSED.get(kind, (None, 0))
    return update if value.device.type == "cpu" and value.shape[1] >= least else None


def _sgd(
    value: Tensor,
    grad: Tensor,
    state: OptimizerState,
    hyper: Hyper,
    decay: Tensor | None,
    step: int,
    *,
    nesterov: bool,
) -> None:
    columns = [hyper["lr"], hyper["momentum"]]
    for tensors, (weight_decay, lr, momentum) in _members([value, grad, *state], columns, decay):
        torch._fused_sgd_(
            *tensors,
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=nesterov,
            maximize=False,
            is_first_step=False,  # the momentum buffers begin with zeros
        )


def _adam(
    kernel: Callable[..., Any],
    value: Tensor,
    grad: Tensor,
    state: OptimizerState,
    hyper: Hyper,
    decay: Tensor | None,
    step: int,
) -> None:
    columns, steps = [hyper[name] for name in ("lr", "beta1", "beta2", "eps")], [torch.tensor(float(step))]
    for tensors, (weight_decay, lr, beta1, beta2, eps) in _members([value, grad, *state], columns, decay):
        kernel(
            *tensors,
            [],
            steps,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            weight_decay=weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )


def _members(
    tensors: list[Tensor], columns: list[Tensor], decay: Tensor | None
) -> Iterator[tuple[list[list[Tensor]], list[float]]]:
    """Yield each member's tensors, each in a list, and its weight decay with its values of the columns [K, 1]."""
    decays = torch.zeros_like(columns[0]) if decay is None else decay
    rows = zip(*(each.unbind() for each in tensors), strict=True)
    for of_member, values in zip(rows, torch.cat([decays, *columns], 1).tolist(), strict=True):
        yield [[each] for each in of_member], values


FUSED: dict[str, tuple[Update, int]] = {
    "momentum": (partial(_sgd, nesterov=False), 20_000),
    "nesterov": (partial(_sgd, nesterov=True), 20_000),
    "adam": (partial(_adam, torch._fused_adam_), 4096),
    "adamw": (partial(_adam, torch._fused_adamw_), 4096),
    "muon": (partial(_adam, torch._fused_adamw_), 4096),
}
"""Kind of an optimizer -> the update, and the elements of a member from which it is faster than the rule.

That of `muon` is the one of parameters that are no hidden matrices.
"""
