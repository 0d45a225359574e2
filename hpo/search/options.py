"""Options of a launch: one frozen object, passed from the API down to the search of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LaunchOptions:
    """Options of a launch or a submission. The defaults are those of `hpo launch` and `hpo submit`.

    device: auto, cpu, cuda, cuda:1 or mps. `submit` plans on the CPU whatever it is.
    workers: the number of processes that share the search; None for this process alone.
    ray: the address of a Ray cluster, "local" to start one; None for no Ray.
    gpus_per_worker: GPUs of each worker on Ray, or a fraction of one.
    extend: continue a stored study although its file has changed.
    changed_code: continue a stored study although the user's code has changed.
    enqueue: trials to train first, each as JSON of its values (see `hpo.search.enqueueing`).
    priority: the study's priority in the queue; None leaves it as it is.
    track: trackers to write the trials to as well, each as `hpo launch --track` takes it.
    """

    device: str = "auto"
    workers: int | None = None
    ray: str | None = None
    gpus_per_worker: float = 0.0
    extend: bool = False
    changed_code: bool = False
    enqueue: Sequence[str] = ()
    priority: int | None = None
    track: Sequence[str] = ()


DEFAULTS = LaunchOptions()
