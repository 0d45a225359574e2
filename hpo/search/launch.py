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
from hpo.search.plan import Plan, plan
from hpo.search.records import RUN, open_study, record_change, settle_run
from hpo.search.space import how_many
from hpo.storage import Storage, summary
from hpo.studyfile import Study
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

    A study that the storage has goes on where it was; where other processes search it, this one joins them. Raises
    UsageError or StudyFileError (the file, the device, a file that differs from the stored one) and DataError before
    anything is stored, and StudyBusyError where a change of the file would leave others searching what it was.
    """
    start = time.perf_counter()
    planned = plan(study, device)
    population, device_name = planned.population, describe(planned.device)
    split = to_device(planned.images, study.data.split_seed, planned.device)
    stored = open_study(study, planned.images, storage, extend)
    record_change(stored, study, storage)
    storage.works_on(device_name)
    precision = settle_run(stored, storage, device_name, _precision(study, stored, planned, split, on_event))
    completed, pruned, failed = _counts(study, storage)
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
    timeout_s = study.search.trial_timeout
    objective = Objective(split, precision, lambda text: on_event(Note(text, "warning")), timeout_s)
    done = Search(study, stored, storage, objective, population, on_event, stop).run()
    reason: Reason = "finished" if done else "interrupted" if stop.is_set() else "space exhausted"
    if reason == "space exhausted":
        on_event(Note(f"the search space holds only {how_many(study)}, and there is no other to train"))
    on_event(StudyEnded(reason, *_counts(study, storage), time.perf_counter() - start))


def _precision(
    study: Study, stored: optuna.Study, planned: Plan, split: DeviceSplit, on_event: Callable[[Event], None]
) -> str:
    """Return what "auto" means: what the study began with, or else what is faster here."""
    if study.first.training.precision != "auto":
        return study.first.training.precision
    if RUN in stored.user_attrs:
        return str(stored.user_attrs[RUN]["precision"])
    if split.device.type == "mps":
        return "float32"
    members = [Member(number, planned.config, number) for number in range(planned.population)]
    precision, ratio = choose_precision(members, split)
    on_event(Note(f"precision: {precision} (bfloat16 trains {ratio:.2f} times as fast as float32 here)"))
    return precision


def _counts(study: Study, storage: Storage) -> tuple[int, int, int]:
    states = summary(storage, study.name).states
    return states.get(TrialState.COMPLETE, 0), states.get(TrialState.PRUNED, 0), states.get(TrialState.FAIL, 0)
