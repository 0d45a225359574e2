"""Launch a study in this process, in worker processes of this machine, or in workers on Ray."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

import torch

from hpo.errors import UsageError
from hpo.search.events import Event
from hpo.search.launch import launch as launch_here
from hpo.search.options import DEFAULTS, LaunchOptions
from hpo.service.dashboard.figures import FigureUpdater
from hpo.service.queue_control import require_files
from hpo.storage import Storage
from hpo.studyfile import AnyStudy, ObjectiveStudy
from hpo.tracking.live import LiveTracking
from hpo.tracking.targets import parse_targets
from hpo.training.devices import find_device


def launch(
    study: AnyStudy,
    storage: Storage,
    options: LaunchOptions = DEFAULTS,
    *,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> str:
    """Search the study until it ends or `stop` is set; return its name then, for it may have been renamed.

    Raises UsageError for options that exclude each other, and HpoError for a tracker that is not installed.
    """
    check_options(study, options)
    with LiveTracking(storage, parse_targets(options.track, "--track"), on_event) as listen:
        if options.ray is None and options.workers is None:
            figures = FigureUpdater(storage, lambda name, event: listen(event))
            drawing = functools.partial(figures, study.name)
            return launch_here(study, storage, options, on_event=drawing, stop=stop)
        with storage.retry_policy.override(stop):
            return _launch_crew(study, storage, options, listen, stop)


def _launch_crew(
    study: AnyStudy,
    storage: Storage,
    options: LaunchOptions,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> str:
    """Search the study in worker processes; return its name at the end."""
    # Imported here because a launch in this process needs none of it.
    from hpo.service.crew.crew import Crew, launch_with
    from hpo.service.crew.local import LocalCrew
    from hpo.service.crew.ray import RayCrew
    from hpo.service.worker import WorkerOptions

    device, ray = options.device, options.ray
    count, url = options.workers or 1, storage.location.full_url
    crew: Crew
    if ray is not None:
        crew = RayCrew(url, study.name, count, None if ray == "local" else ray, options.gpus_per_worker, on_event)
    else:
        find_device(device)  # one error here instead of one from each worker
        threads = max(1, torch.get_num_threads() // count)
        crew = LocalCrew(url, WorkerOptions((study.name,), device, threads, until_idle=True), count, on_event)
    return launch_with(study, storage, crew, options, on_event=on_event, stop=stop)


def check_options(study: AnyStudy, options: LaunchOptions) -> None:
    """Raise UsageError for options that exclude each other, or that the study cannot have."""
    if options.gpus_per_worker and options.ray is None:
        raise UsageError("--gpus-per-worker: works with --ray only; without Ray, choose where to train with --device")
    if options.ray is not None and options.device != "auto":
        raise UsageError("--device: Ray chooses where its workers train; use --gpus-per-worker instead")
    if options.ray is not None or options.workers is not None:
        require_files(study, "--ray" if options.workers is None else "--workers")
    if isinstance(study, ObjectiveStudy) and options.device != "auto":
        raise UsageError(f"--device: {study.objective} chooses its device itself; remove the option")
