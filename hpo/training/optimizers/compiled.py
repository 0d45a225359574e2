"""Updates by compiled passes, for all members at once: each tensor is read and written once, weight decay included."""

from __future__ import annotations

from torch import Tensor

from hpo.training.compiled.passes import passes_for
from hpo.training.optimizers.rules import DECOUPLED, Hyper, OptimizerState

MOMENTUM = "descend_with_momentum", ("lr", "momentum")
SCALED = "descend_scaled", ("lr", "alpha", "eps")
ADAM = "adam", ("lr", "beta1", "beta2", "eps")
PASSES = {
    "sgd": ("descend", ("lr",)),
    "momentum": MOMENTUM,
    "nesterov": MOMENTUM,
    "adagrad": SCALED,
    "rmsprop": SCALED,
    "adam": ADAM,
    "adamw": ADAM,
    "lion": ("lion", ("lr", "beta1", "beta2")),
    "muon": ADAM,
}
"""Kind -> its pass and hyperparameters. That of `muon` is for parameters that are no hidden matrices."""


def compiled_update(
    kind: str,
    value: Tensor,
    grad: Tensor,
    copy: Tensor | None,
    state: OptimizerState,
    hyper: Hyper,
    clip: Tensor | None,
    decay: Tensor | None,
    step: int,
) -> bool:
    """Update a part [K, elements] for an optimizer's kind, and return True; False where there is no pass for it.

    `copy` gets the value in the gradient's type, if that is another one. `clip`, the factors of the gradient, and
    `decay`, the weight decay, are [K, 1] or None. `step` is the number of updates with this one.
    """
    passes = passes_for(grad) if value.is_contiguous() else None
    if passes is None:
        return False
    name, columns = PASSES[kind]
    numbers: list[int] = []
    if name == "adam":
        numbers = [kind in DECOUPLED, step]
    elif name in ("descend_with_momentum", "descend_scaled"):
        numbers = [kind in ("nesterov", "adagrad")]
    tensors = [value, grad, copy, *state]
    passes.update(name, tensors, [*(hyper[column] for column in columns), clip, decay], numbers)
    return True
