"""Locks and seeding for process-wide state: random generators, torch.fx tracing, warning filters.

Building a network seeds the global random generators, and torch.fx changes how every module is called while it traces.
Code that does either, or that calls a whole module, must hold `GLOBAL_STATE_LOCK`, so that populations in several
threads do not disturb each other. Training a stack does neither. Code that changes the warning filters must hold
`WARNINGS_LOCK` until it has restored them.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

GLOBAL_STATE_LOCK = threading.RLock()
WARNINGS_LOCK = threading.RLock()

_CPU = torch.device("cpu")


@contextmanager
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch's, Python's and NumPy's global generators, and restore their states at the end.

    `device` is a further device whose torch generator is seeded. Holds `GLOBAL_STATE_LOCK` meanwhile.
    """
    with GLOBAL_STATE_LOCK, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        states = random.getstate(), np.random.get_state()
        try:
            # Not torch.manual_seed: it also seeds other devices, whose generators would not be restored.
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            elif device.type == "mps":
                torch.mps.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
