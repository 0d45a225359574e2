"""What torch has only one of in a process: its generator of random numbers, and the way modules are called.

Building a network seeds the one, and torch.fx changes the other while it traces. Whoever does either, or calls a whole
module, holds `ONE_THREAD`, so that populations of several threads do not meet. Training itself does neither.
"""

from __future__ import annotations

import threading

ONE_THREAD = threading.RLock()
