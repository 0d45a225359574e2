"""Confirming a study, from its best configurations to their runs under fresh seeds, which any process can share.

What is finished is only shown: nothing is trained, and no images are needed. What was stopped is shown as far as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hpo.errors import HpoError, InterruptionError
from hpo.results.confirm.result import Confirmation, check_finished, of_study, runs_left
from hpo.results.confirm.study import confirming_name, confirming_study
from hpo.results.display.progress import QuietProgress
from hpo.search.options import LaunchOptions
from hpo.service.launching import launch
from hpo.storage import Storage, StudyState, state_of, summary


def confirm(
    storage: Storage,
    name: str,
    *,
    top: int,
    seeds: int,
    options: LaunchOptions,
    display: Callable[[], QuietProgress],
    say: Callable[[Confirmation], None],
    stop: threading.Event,
) -> Confirmation:
    """Train the best configurations of a study again, or go on with that; return what was found.

    A `display` shows the training; `say` gets what was found, too. Raises HpoError, after `say` got what was found so
    far, where the confirmation is paused or stopped, InterruptionError after a stop, and what a launch raises.
    """
    study = confirming_study(storage, name, top, seeds)
    held = summary(storage, study.name)
    called = study.name
    closed = state_of(held.user_attrs) in (StudyState.PAUSED, StudyState.STOPPED)
    if runs_left(held) and not closed:
        beside = f"{study.name}: a study of its own; another confirmation of '{name}' stays as it is"
        with display() as shown:
            if study.name != confirming_name(name, 1) and shown.prints_notes:
                shown.line(beside)
            called = launch(study, storage, options, on_event=shown, stop=stop)
        if shown.interrupted:
            raise InterruptionError(f"{called}: interrupted; confirm '{name}' again to go on")
        held = summary(storage, called)
    try:
        found = of_study(storage, called)
    except HpoError:
        check_finished(held, name)  # that it is stopped matters more than that there is nothing to show yet
        raise
    say(found)
    check_finished(held, name)
    return found
