"""Learning-rate schedules: the learning rate of each step of an epoch, and the state of `schedule = "plateau"`.

A schedule multiplies `lr` by two factors. With n steps in an epoch, at step t of the whole training (from 0), in epoch
e (from 1) of E, they are those of these torch.optim.lr_scheduler classes:

    warmup     (t + 1) / (warmup n), at most 1            LinearLR from 1 / (warmup n), stepped after each step
    step       step_factor ^ floor((e - 1) / step_every)  StepLR, stepped after each epoch
    cosine     (1 + cos(pi t / (E n))) / 2                CosineAnnealingLR down to 0, stepped after each step
    onecycle   see `_onecycle`                            OneCycleLR without cycle_momentum, stepped after each step
    plateau    see `Plateau`                              ReduceLROnPlateau of the validation loss, after each epoch

Only a plateau has a state; the other rates depend on settings, epoch and step alone. `onecycle` has no warm-up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpo.studyfile import OptimizerSettings

THRESHOLD, LEAST_REDUCTION = 1e-4, 1e-8
"""The defaults of ReduceLROnPlateau for `threshold`, relative, and for `eps`."""


@dataclass(frozen=True)
class Plateau:
    """State of one member's plateau schedule: its learning rate, lowest validation loss, and the epochs without it."""

    lr: float
    best: float = math.inf
    bad_epochs: int = 0

    def after(self, loss: float, settings: OptimizerSettings) -> Plateau:
        """Return the state after an epoch with this validation loss."""
        if loss < self.best * (1 - THRESHOLD):
            return Plateau(self.lr, loss)
        if self.bad_epochs < settings.plateau_patience:
            return Plateau(self.lr, self.best, self.bad_epochs + 1)
        reduced = self.lr * settings.plateau_factor
        return Plateau(reduced if self.lr - reduced > LEAST_REDUCTION else self.lr, self.best)


def is_scheduled(settings: OptimizerSettings) -> bool:
    """Return whether the learning rate changes during training."""
    return settings.schedule != "constant" or settings.warmup > 0


def learning_rates(
    settings: OptimizerSettings, epoch: int, epochs: int, steps: int, lr: float | None = None
) -> NDArray[np.float64]:
    """Return the learning rate of each step of an epoch, [steps].

    `epoch` counts from 1 to `epochs`. `lr` replaces the one of the settings, where a plateau has reduced it.
    """
    step = (epoch - 1) * steps + np.arange(steps, dtype=np.float64)
    rates = np.full(steps, settings.lr if lr is None else lr)
    if settings.schedule == "step":
        rates *= settings.step_factor ** ((epoch - 1) // settings.step_every)
    elif settings.schedule == "cosine":
        rates *= (1 + np.cos(np.pi * step / (epochs * steps))) / 2
    elif settings.schedule == "onecycle":
        return rates * _onecycle(settings, step, epochs * steps)
    if settings.warmup > 0:
        rates *= np.minimum(1, (step + 1) / (settings.warmup * steps))
    return rates


def _onecycle(settings: OptimizerSettings, step: NDArray[np.float64], total: int) -> NDArray[np.float64]:
    """Return the factor of `lr` in these steps of `total`: it rises from 1 / div_factor to 1, then falls."""
    first, last = 1 / settings.div_factor, 1 / settings.div_factor / settings.final_div_factor
    peak, end = settings.pct_start * total - 1, total - 1
    rise = step / peak if peak > 0 else np.ones_like(step)
    fall = (step - peak) / (end - peak) if end > peak else np.ones_like(step)
    rising = 1 + (first - 1) / 2 * (1 + np.cos(np.pi * rise))
    falling = last + (1 - last) / 2 * (1 + np.cos(np.pi * fall))
    return np.where(step <= peak, rising, falling)
