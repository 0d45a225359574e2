"""Update rules: the arithmetic of torch.optim.SGD, Adagrad, RMSprop, Adam and AdamW, and Lion, for K members at once.

A rule updates a block [K, elements] with hyperparameters [K, 1]: one pass of tensor operations updates all members.
Weight decay and clipping are applied before a rule, by the optimizer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpo.studyfile import OptimizerSettings

HYPERPARAMETERS = ("lr", "weight_decay", "momentum", "alpha", "beta1", "beta2", "eps", "match_rms", "adamw_ratio")
"""Keys of a rule's hyperparameters: those of settings, and the last two, derived from `adjust_lr` and `adamw_lr`."""
DEFAULT_EPS = {"adagrad": 1e-10}
"""torch's default for eps where it is not 1e-8."""

Hyper = dict[str, Tensor]
"""Hyperparameter -> value per member, [K, 1]."""
OptimizerState = list[Tensor]
"""State tensors of a part, such as the moments of Adam, [K, elements] each."""


def _sgd(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, step: int) -> None:
    value.addcmul_(grad, hyper["lr"], value=-1)


def _momentum(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, step: int) -> None:
    value.addcmul_(state[0].mul_(hyper["momentum"]).add_(grad), hyper["lr"], value=-1)


def _nesterov(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, step: int) -> None:
    state[0].mul_(hyper["momentum"]).add_(grad)
    value.addcmul_(grad.addcmul_(state[0], hyper["momentum"]), hyper["lr"], value=-1)


def _adagrad(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, step: int) -> None:
    state[0].addcmul_(grad, grad)
    value.addcdiv_(grad.mul_(-hyper["lr"]), state[0].sqrt().add_(hyper["eps"]))


def _rmsprop(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, step: int) -> None:
    alpha = hyper["alpha"]
    state[0].mul_(alpha).addcmul_(grad * (1 - alpha), grad)
    value.addcdiv_(grad.mul_(-hyper["lr"]), state[0].sqrt().add_(hyper["eps"]))


def _adam(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, step: int) -> None:
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    mean, square = state
    mean.mul_(beta1).addcmul_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad.mul_(grad), 1 - beta2)
    scale = torch.sqrt(1 - beta2**step)
    denominator = torch.sqrt(square, out=grad).div_(scale).add_(hyper["eps"])
    value.addcmul_(torch.div(mean, denominator, out=denominator), -hyper["lr"] / (1 - beta1**step))


def _lion(value: Tensor, grad: Tensor, state: OptimizerState, hyper: Hyper, step: int) -> None:
    """Apply Lion (X. Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, Algorithm 2)."""
    beta1, beta2, momentum = hyper["beta1"], hyper["beta2"], state[0]
    value.addcmul_((momentum * beta1).addcmul_(grad, 1 - beta1).sign_(), hyper["lr"], value=-1)
    momentum.mul_(beta2).addcmul_(grad, 1 - beta2)


Rule = Callable[[Tensor, Tensor, OptimizerState, Hyper, int], None]
RULES: dict[str, tuple[Rule, int]] = {
    "sgd": (_sgd, 0),
    "momentum": (_momentum, 1),
    "nesterov": (_nesterov, 1),
    "adagrad": (_adagrad, 1),
    "rmsprop": (_rmsprop, 1),
    "adam": (_adam, 2),
    "adamw": (_adam, 2),
    "lion": (_lion, 1),
    "muon": (_adam, 2),
}
"""Each kind's update rule, and its number of state tensors of the parameters' size. Rules may overwrite gradients.

That of `muon` is the one of parameters that are no hidden matrices (hpo/training/optimizers/muon.py).
"""
DECOUPLED = ("adamw", "lion", "muon")
"""Kinds whose weight decay shrinks the weights, not through the gradient."""


def hyperparameter(settings: OptimizerSettings, name: str) -> float:
    """Return a hyperparameter, or torch's default for eps where it is not set."""
    if name == "match_rms":
        return float(settings.adjust_lr == "match_rms_adamw")
    if name == "adamw_ratio":
        return 1.0 if settings.adamw_lr is None else settings.adamw_lr / settings.lr
    value = getattr(settings, name)
    return float(DEFAULT_EPS.get(settings.kind, 1e-8) if value is None else value)
