"""Confirming a study, from its best configurations to their runs under fresh seeds, which any process can share.

What is finished is only shown: nothing is trained, and no images are needed. What was stopped is shown as far as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hpo.errors import HpoError
from hpo.results.confirmation import Confirmation, check_finished, of_study, runs_left
from hpo.results.confirming import SUFFIX, confirming_study
from hpo.results.naming import followed
from hpo.service.launching import launch, shown
from hpo.storage import Storage, StudyState, state_of, summary


def confirm(
    storage: Storage,
    name: str,
    *,
    top: int,
    seeds: int,
    device: str,
    workers: int | None,
    quiet: bool,
    say: Callable[[Confirmation], None],
    stop: threading.Event,
) -> bool:
    """Train the best configurations of a study again, or go on with that; return whether that came to its end.

    `say` gets what was found; progress is shown on stderr. Raises HpoError, after what was found so far, where the
    confirmation is paused or stopped, and what a launch raises.
    """
    study = confirming_study(storage, name, top, seeds)
    held = summary(storage, study.name)
    closed = state_of(held.user_attrs) in (StudyState.PAUSED, StudyState.STOPPED)
    if runs_left(held) and not closed:
        beside = f"{study.name}: a study of its own; another confirmation of '{name}' stays as it is"
        head = [] if study.name == followed(name, SUFFIX) else [beside]
        with shown(quiet=quiet, stop=stop, head=head) as display:
            launch(study, storage, device=device, workers=workers, on_event=display, stop=stop)
        if display.interrupted:
            display.line(f"{study.name}: interrupted; the same command goes on")
            return False
        held = summary(storage, study.name)
    try:
        found = of_study(storage, study.name)
    except HpoError:
        check_finished(held)  # that it is stopped matters more than that there is nothing to show yet
        raise
    say(found)
    check_finished(held)
    return True
