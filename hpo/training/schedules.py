"""Learning-rate schedules: what a member's learning rate is in each step of an epoch.

It is `lr` times two factors, the warm-up's and the schedule's. With n steps an epoch, in step t of the whole training
(from 0) and epoch e (from 1) of E, they are, each as torch.optim.lr_scheduler has it:

    warmup     (t + 1) / (warmup n), at most 1       LinearLR, from 1 / (warmup n), a step at a time
    step       step_factor ^ floor((e - 1) / step_every)            StepLR, an epoch at a time
    cosine     (1 + cos(pi t / (E n))) / 2           CosineAnnealingLR down to 0, a step at a time

Knows nothing of tensors, and has no state: an epoch's rates depend on its number alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpo.studyfile import OptimizerSettings


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
