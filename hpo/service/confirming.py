"""Confirm a study: run its best configurations, the baseline and the first trial again, and return the result.

All run under fresh seeds. The runs are an ordinary study, which any number of processes can share. A finished
confirmation is returned without training, and without the data.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from hpo.errors import HpoError, InterruptionError
from hpo.results.confirm.result import Confirmation, check_finished, read_confirmation, runs_left
from hpo.results.confirm.study import confirming_name, create_confirming_study
from hpo.results.display.progress import QuietProgress
from hpo.results.ensemble.record import stored_ensemble
from hpo.search.events import Note
from hpo.search.options import LaunchOptions
from hpo.search.study_records import any_stored_study, stored_study, user_attrs_of
from hpo.service.launching import check_options, launch
from hpo.storage import Storage, StudyState, load_study, state_of, summary


def confirm(
    storage: Storage,
    name: str,
    *,
    top: int,
    seeds: int,
    splits: int | None = None,
    ensemble: bool = False,
    options: LaunchOptions,
    display: Callable[[], QuietProgress],
    say: Callable[[Confirmation], None],
    stop: threading.Event,
) -> Confirmation:
    """Train the best configurations of a study again, or continue doing so; return the result.

    With `ensemble`, the study's ensemble is trained under the same seeds, after the configurations.
    `display` makes what shows the training; `say` is called with the result, or with the result so far. Raises HpoError
    if the confirming study is paused or stopped, InterruptionError after a stop, and what a launch raises.
    """
    original = load_study(storage, name)
    check_options(any_stored_study(original), options)
    if ensemble:
        stored_study(original)  # refuses an objective study
        stored_ensemble(user_attrs_of(original), name)
    study = create_confirming_study(storage, name, top, seeds, splits)
    confirming, current_name = summary(storage, study.name), study.name
    closed = state_of(confirming.user_attrs) in (StudyState.PAUSED, StudyState.STOPPED)
    if runs_left(confirming) and not closed:
        with display() as shown:
            if study.name != confirming_name(name, 1) and shown.prints_notes:
                shown.line(f"{study.name}: a new study; another confirmation of '{name}' stays unchanged")
            current_name = launch(study, storage, options, on_event=shown, stop=stop)
        if shown.interrupted:
            raise InterruptionError(f"{current_name}: interrupted; confirm '{name}' again to go on")
        confirming = summary(storage, current_name)
    if ensemble and not runs_left(confirming):
        from hpo.results.confirm.ensemble_runs import confirm_ensemble  # imports torch

        with display() as shown:
            confirm_ensemble(storage, name, current_name, options.device, stop, lambda text: shown(Note(text)))
    try:
        found = read_confirmation(storage, current_name)
    except HpoError:
        check_finished(confirming, name)  # "is stopped" says more than "there are no runs to show"
        raise
    say(found)
    check_finished(confirming, name)
    return found
