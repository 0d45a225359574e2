"""Learning-rate schedules: the learning rate of each step of an epoch.

A schedule multiplies `lr` by two factors. With n steps in an epoch, at step t of the whole training (from 0), in epoch
e (from 1) of E, they are those of these torch.optim.lr_scheduler classes:

    warmup     (t + 1) / (warmup n), at most 1            LinearLR from 1 / (warmup n), stepped after each step
    step       step_factor ^ floor((e - 1) / step_every)  StepLR, stepped after each epoch
    cosine     (1 + cos(pi t / (E n))) / 2                CosineAnnealingLR down to 0, stepped after each step
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpo.studyfile import OptimizerSettings


def is_scheduled(settings: OptimizerSettings) -> bool:
    """Return whether the learning rate changes during training."""
    return settings.schedule != "constant" or settings.warmup > 0


def learning_rates(settings: OptimizerSettings, epoch: int, epochs: int, steps: int) -> NDArray[np.float64]:
    """Return the learning rate of each step of an epoch, [steps].

    `epoch` counts from 1 to `epochs`. There is no state: the rates depend on the arguments alone.
    """
    step = (epoch - 1) * steps + np.arange(steps, dtype=np.float64)
    rates = np.full(steps, settings.lr)
    if settings.schedule == "step":
        rates *= settings.step_factor ** ((epoch - 1) // settings.step_every)
    elif settings.schedule == "cosine":
        rates *= (1 + np.cos(np.pi * step / (epochs * steps))) / 2
    if settings.warmup > 0:
        rates *= np.minimum(1, (step + 1) / (settings.warmup * steps))
    return rates
