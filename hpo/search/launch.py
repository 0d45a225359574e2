"""A launch: plan the study, open it in the storage, settle the precision, and search.

The plan comes first: whatever is wrong with the file, the data or the device is found before anything is stored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from hpo.search.events import Event, Note, Reason, StudyEnded, StudyStarted
from hpo.search.loop import Search
from hpo.search.plan import plan
from hpo.search.records import RUN, open_study, process_record, record_change, record_run
from hpo.search.space import how_many
from hpo.storage import Storage
from hpo.studyfile import Config, Study
from hpo.training.devices import describe
from hpo.training.images import DeviceSplit, to_device
from hpo.training.objective import Objective
from hpo.training.precision import choose_precision
from hpo.training.stack import Member


def launch(
    study: Study,
    storage: Storage,
    *,
    device: str = "auto",
    extend: bool = False,
    on_event: Callable[[Event], None],
    stop: threading.Event,
) -> None:
    """Search the study until it has its trials, or until `stop` is set: then the epoch in hand ends.

    A study that the storage has goes on where it was. Raises UsageError or StudyFileError (the file, the device, a
    file that differs from the stored one) and DataError before anything is stored.
    """
    start = time.perf_counter()
    planned = plan(study, device)
    population, device_name = planned.population, describe(planned.device)
    split = to_device(planned.images, study.data.split_seed, planned.device)
    stored = open_study(study, planned.images, storage, extend)
    with process_record(stored):
        record_change(stored, study)
        precision = _precision(study, stored, planned.config, split, population, on_event)
        record_run(stored, device_name, precision)
        completed, pruned, failed = _counts(stored)
        on_event(
            StudyStarted(
                study=study.name,
                trials=study.search.trials,
                finished=completed,
                pruned=pruned,
                failed=failed,
                population=population,
                device=device_name,
                precision=precision,
                parameters=planned.size.parameters,
            )
        )
        objective = Objective(split, precision, lambda text: on_event(Note(text, "warning")))
        done = Search(study, stored, storage, objective, population, on_event, stop).run()
        reason: Reason = "finished" if done else "interrupted" if stop.is_set() else "space exhausted"
        if reason == "space exhausted":
            on_event(Note(f"the search space holds only {how_many(study)}, and there is no other to train"))
        on_event(StudyEnded(reason, *_counts(stored), time.perf_counter() - start))


def _precision(
    study: Study,
    stored: optuna.Study,
    config: Config,
    split: DeviceSplit,
    population: int,
    on_event: Callable[[Event], None],
) -> str:
    """Return what "auto" means: what the study began with, or else what is faster here."""
    if study.first.training.precision != "auto":
        return study.first.training.precision
    if RUN in stored.user_attrs:
        return str(stored.user_attrs[RUN]["precision"])
    if split.device.type == "mps":
        return "float32"
    members = [Member(number, config, number) for number in range(population)]
    precision, ratio = choose_precision(members, split)
    on_event(Note(f"precision: {precision} (bfloat16 trains {ratio:.2f} times as fast as float32 here)"))
    return precision


def _counts(stored: optuna.Study) -> tuple[int, int, int]:
    states = [trial.state for trial in stored.get_trials(deepcopy=False)]
    return states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED), states.count(TrialState.FAIL)
