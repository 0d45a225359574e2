"""Confirming a study, from its best configurations to their runs under fresh seeds, which any process can share."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hpo.results.confirming import confirming_study
from hpo.search.events import Event
from hpo.service.launching import launch
from hpo.storage import Storage


def confirm(
    storage: Storage,
    name: str,
    *,
    top: int,
    seeds: int,
    device: str,
    workers: int | None,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> str:
    """Train the best configurations of a study again, or go on with that; return the confirming study's name."""
    study = confirming_study(storage, name, top, seeds)
    launch(study, storage, device=device, workers=workers, on_event=on_event, stop=stop)
    return study.name
