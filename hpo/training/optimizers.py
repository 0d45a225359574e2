"""torch.optim's rules with a learning rate, its schedule, a clip and the rest per member, over blocks of parameters.

Each rule is torch's own arithmetic (torch.optim.SGD, Adagrad, RMSprop, Adam, AdamW), on a block [K, elements] with
hyperparameters [K, 1]: one pass of tensor operations serves all members. Weight decay acts on blocks of weights only.
Moments stay in the master's type. A member's gradient is clipped by its own norm, over all blocks, as
torch.nn.utils.clip_grad_norm_ does before the optimizer's step. A parameter without a gradient is left alone, its
moments and its count of steps too, as torch leaves one whose gradient is None. Knows nothing of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpo.studyfile import OptimizerSettings
from hpo.training.stacking.parameter_blocks import Blocks, Slot

HYPERPARAMETERS = ("lr", "weight_decay", "momentum", "alpha", "beta1", "beta2", "eps")
DEFAULT_EPS = {"adagrad": 1e-10}
"""torch's default where it is not 1e-8."""

Hyper = dict[str, Tensor]
State = list[Tensor]


def _sgd(value: Tensor, grad: Tensor, state: State, hyper: Hyper, step: int) -> None:
    value.addcmul_(grad, -hyper["lr"])


def _momentum(value: Tensor, grad: Tensor, state: State, hyper: Hyper, step: int) -> None:
    value.addcmul_(state[0].mul_(hyper["momentum"]).add_(grad), -hyper["lr"])


def _nesterov(value: Tensor, grad: Tensor, state: State, hyper: Hyper, step: int) -> None:
    state[0].mul_(hyper["momentum"]).add_(grad)
    value.addcmul_(grad.addcmul_(state[0], hyper["momentum"]), -hyper["lr"])


def _adagrad(value: Tensor, grad: Tensor, state: State, hyper: Hyper, step: int) -> None:
    state[0].addcmul_(grad, grad)
    value.addcdiv_(grad.mul_(-hyper["lr"]), state[0].sqrt().add_(hyper["eps"]))


def _rmsprop(value: Tensor, grad: Tensor, state: State, hyper: Hyper, step: int) -> None:
    alpha = hyper["alpha"]
    state[0].mul_(alpha).addcmul_(grad * (1 - alpha), grad)
    value.addcdiv_(grad.mul_(-hyper["lr"]), state[0].sqrt().add_(hyper["eps"]))


def _adam(value: Tensor, grad: Tensor, state: State, hyper: Hyper, step: int) -> None:
    beta1, beta2 = hyper["beta1"], hyper["beta2"]
    mean, square = state
    mean.mul_(beta1).addcmul_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad.mul_(grad), 1 - beta2)
    scale = torch.sqrt(1 - beta2**step)
    denominator = torch.sqrt(square, out=grad).div_(scale).add_(hyper["eps"])
    value.addcmul_(torch.div(mean, denominator, out=denominator), -hyper["lr"] / (1 - beta1**step))


Rule = Callable[[Tensor, Tensor, State, Hyper, int], None]
RULES: dict[str, tuple[Rule, int]] = {
    "sgd": (_sgd, 0),
    "momentum": (_momentum, 1),
    "nesterov": (_nesterov, 1),
    "adagrad": (_adagrad, 1),
    "rmsprop": (_rmsprop, 1),
    "adam": (_adam, 2),
    "adamw": (_adam, 2),
}
"""Each kind's rule and how many tensors of the parameters' size it remembers. A rule may overwrite the gradient."""


@dataclass
class _Part:
    """What is updated as one: a block, or the columns of one of its parameters. `step` counts its updates."""

    slots: list[Slot]
    master: Tensor
    grad: Tensor
    state: State
    decayed: bool
    step: int


class Optimizer:
    """One kind of optimizer over K members' blocks, each member with its own settings."""

    def __init__(self, blocks: Blocks, settings: Sequence[OptimizerSettings]) -> None:
        self._kind = settings[0].kind
        self._rule, states = RULES[self._kind]
        first = blocks.blocks[0].master
        self._blocks = blocks
        self._states = [[torch.zeros_like(block.master) for _ in range(states)] for block in blocks.blocks]
        self._apart = False  # whether a parameter has ever had no gradient: from then on each counts its own steps
        self._parts = self._divided([0] * len(blocks.blocks))
        self._scratch = torch.empty(0, dtype=first.dtype, device=first.device)
        self._set(list(settings))

    def _set(self, settings: list[OptimizerSettings]) -> None:
        self._settings = settings
        self._hyper = {name: self._column([_value(each, name) for each in settings]) for name in HYPERPARAMETERS}
        clips = [math.inf if each.clip is None else each.clip for each in settings]
        self._clips = self._column(clips) if min(clips) < math.inf else None
        self._scheduled = any(map(is_scheduled, settings))
        self._rates: list[Tensor] = []  # of the epoch's steps that are left, the last one first

    def _column(self, values: list[float]) -> Tensor:
        return self._scratch.new_tensor(values).unsqueeze(1)

    def begin_epoch(self, epoch: int, epochs: int, steps: int) -> None:
        """Take note that the next steps are those of an epoch, from 1, so many of them: schedules depend on it."""
        if self._scheduled:
            rates = np.stack([learning_rates(each, epoch, epochs, steps) for each in self._settings], axis=1)
            self._rates = list(self._scratch.new_tensor(rates[::-1].copy()).unsqueeze(2))

    @torch.no_grad()
    def step(self) -> None:
        """Update every master that has a gradient from it, then the values that the layers compute with."""
        hyper, decoupled = self._hyper, self._kind == "adamw"
        if self._scheduled:
            hyper = {**hyper, "lr": self._rates.pop()}
        parts = self._due()
        shares = None if self._clips is None or not parts else self._shares(self._clips, parts)
        for part in parts:
            grad = self._gradient(part.grad)
            if shares is not None:
                grad.mul_(shares)
            if part.decayed and decoupled:
                part.master.mul_(1 - hyper["lr"] * hyper["weight_decay"])
            elif part.decayed:
                grad.addcmul_(part.master, hyper["weight_decay"])
            self._rule(part.master, grad, part.state, hyper, part.step)
        self._blocks.refresh()

    def keep(self, members: Tensor) -> None:
        """Keep only these members' settings and moments."""
        self._set([self._settings[index] for index in members.tolist()])
        self._states = [[moment[members] for moment in state] for state in self._states]
        self._parts = self._divided([part.step for part in self._parts])

    def _due(self) -> list[_Part]:
        """Return what has a gradient, and count it: whole blocks, until a parameter has none for the first time."""
        if not self._apart and any(slot.fresh for slot in self._blocks.slots.values()):
            self._apart = True
            self._parts = self._divided([part.step for part in self._parts for _ in part.slots])
        due = [part for part in self._parts if not part.slots[0].fresh] if self._apart else self._parts
        for part in due:
            part.step += 1
        return due

    def _divided(self, steps: Sequence[int]) -> list[_Part]:
        """Return the blocks, or the parameters once they are apart, that were updated so often."""
        parts: list[_Part] = []
        for block, state in zip(self._blocks.blocks, self._states, strict=True):
            one_by_one = [(columns, [slot]) for columns, slot in block.parameters]
            whole = [(slice(None), [slot for _, slot in block.parameters])]
            for columns, slots in one_by_one if self._apart else whole:
                master, grad = block.master[:, columns], block.grad[:, columns]
                moments = [moment[:, columns] for moment in state]
                parts.append(_Part(slots, master, grad, moments, block.decayed, steps[len(parts)]))
        return parts

    def _shares(self, clips: Tensor, parts: Sequence[_Part]) -> Tensor:
        """Return how much of its gradient each member keeps, [K, 1]: 1 where its norm is within the clip, or none is.

        1e-6 is torch's. A norm that is not finite is one member's own, and one without a clip keeps such a gradient.
        """
        grads = (part.grad for part in parts)
        norms = torch.cat([torch.linalg.vector_norm(g, dim=1, keepdim=True, dtype=clips.dtype) for g in grads], 1)
        norm: Tensor = torch.linalg.vector_norm(norms, dim=1, keepdim=True)
        return (clips / (norm + 1e-6)).clamp(max=1).masked_fill(clips.isinf(), 1)

    def _gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient in the master's type, free to be overwritten: the next step writes it anew."""
        if grad.dtype == self._scratch.dtype:
            return grad
        if self._scratch.numel() < grad.numel():
            self._scratch = self._scratch.new_empty(grad.numel())
        return self._scratch[: grad.numel()].view_as(grad).copy_(grad)


def _value(settings: OptimizerSettings, name: str) -> float:
    value = getattr(settings, name)
    return float(DEFAULT_EPS.get(settings.kind, 1e-8) if value is None else value)


def is_scheduled(settings: OptimizerSettings) -> bool:
    """Return whether the learning rate is not the same in all steps."""
    return settings.schedule != "constant" or settings.warmup > 0


def learning_rates(settings: OptimizerSettings, epoch: int, epochs: int, steps: int) -> NDArray[np.float64]:
    """Return the learning rate in each of an epoch's steps, [steps]."""
    step = (epoch - 1) * steps + np.arange(steps, dtype=np.float64)
    rates = np.full(steps, settings.lr)
    if settings.schedule == "step":
        rates *= settings.step_factor ** ((epoch - 1) // settings.step_every)
    elif settings.schedule == "cosine":
        rates *= (1 + np.cos(np.pi * step / (epochs * steps))) / 2
    if settings.warmup > 0:
        rates *= np.minimum(1, (step + 1) / (settings.warmup * steps))
    return rates
