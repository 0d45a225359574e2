"""Updates by compiled passes, for all members at once: each tensor is read and written once, weight decay included."""

from __future__ import annotations

from torch import Tensor

from hpo.training.compiled.passes import passes_for
from hpo.training.optimizers.rules import DECOUPLED, Hyper, OptimizerState


def compiled_update(
    kind: str, value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, decay: Tensor | None, step: int
) -> bool:
    """Update a part [K, elements] for an optimizer's kind, and return True; False where there is no pass for it.

    `decay` is the weight decay, [K, 1] or None, `step` the number of updates with this one. The update of `muon` is
    that of parameters that are no hidden matrices.
    """
    passes = passes_for(value) if kind in COMPILED and value.is_contiguous() and grad.is_contiguous() else None
    if passes is None:
        return False
    columns = [hyper[name] for name in COMPILED[kind]]
    if kind == "sgd":
        passes.descend(value, grad, columns, decay)
    elif kind in ("momentum", "nesterov"):
        passes.descend_with_momentum(value, grad, state, columns, decay, kind == "nesterov")
    else:
        passes.adam(value, grad, state, columns, decay, kind in DECOUPLED, step)
    return True


ADAM = ("lr", "beta1", "beta2", "eps")
COMPILED = {
    "sgd": ("lr",),
    "momentum": ("lr", "momentum"),
    "nesterov": ("lr", "momentum"),
    "adam": ADAM,
    "adamw": ADAM,
    "muon": ADAM,
}
"""Kinds with a pass, and its hyperparameters."""
