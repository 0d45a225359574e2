"""What there is only one of in a process: random generators, the way modules are called, which warnings are heard.

Building a network seeds the first, and torch.fx changes the second while it traces. Whoever does either, or calls a
whole module, holds `ONE_THREAD`, so that populations of several threads do not meet. Training a stack does neither.
Whoever changes which warnings are heard holds `HEARD` for as long as they are others.
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
    """Hold `ONE_THREAD` with torch's, Python's and NumPy's global generators seeded; leave them as they were."""
    with GLOBAL_STATE_LOCK, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        states = random.getstate(), np.random.get_state()
        try:
            # Not torch.manual_seed: it seeds further devices, too, whose generators would not be put back.
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
