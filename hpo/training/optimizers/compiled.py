"""Updates by compiled passes, for all members at once: each tensor is read and written once, weight decay included."""

from __future__ import annotations

from torch import Tensor

from hpo.training.compiled.passes import passes_for
from hpo.training.optimizers.rules import Hyper, OptimizerState

MOMENTUM, SCALED, ADAM = ("lr", "momentum"), ("lr", "alpha", "eps"), ("lr", "beta1", "beta2", "eps")
PASSES: dict[str, tuple[str, tuple[str, ...], tuple[bool, ...]]] = {
    "sgd": ("descend", ("lr",), ()),
    "momentum": ("descend_with_momentum", MOMENTUM, (False,)),
    "nesterov": ("descend_with_momentum", MOMENTUM, (True,)),
    "adagrad": ("descend_scaled", SCALED, (True,)),
    "rmsprop": ("descend_scaled", SCALED, (False,)),
    "adam": ("adam", ADAM, (False,)),
    "adamw": ("adam", ADAM, (True,)),
    "lion": ("lion", ("lr", "beta1", "beta2"), ()),
    "muon": ("adam", ADAM, (True,)),
}
"""Kind -> its pass, hyperparameters and flags. That of `muon` is for parameters that are no hidden matrices."""


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
    """Update a part [K, elements] for an optimizer's kind, and return True; False where there are no passes for it.

    `copy` gets the value in the gradient's type, if that is another one. `clip`, the factors of the gradient, and
    `decay`, the weight decay, are [K, 1] or None. `step` is the number of updates with this one.
    """
    passes = passes_for(grad) if value.is_contiguous() else None
    if passes is None:
        return False
    name, columns, flags = PASSES[kind]
    numbers = (*flags, step) if name == "adam" else flags
    tensors = [value, grad, copy, *state]
    passes.update(name, tensors, [*(hyper[column] for column in columns), clip, decay], numbers)
    return True
