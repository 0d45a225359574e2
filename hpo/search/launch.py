"""A study on its way into the storage, and a process on its way into a study.

The plan comes first: whatever is wrong with the file, the data or the device is found before anything is stored.

    submit    put a study into the storage
    join      work on a stored study, as any process can that has the storage and the data
    launch    both, to the study's end
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import UnknownStudyError
from hpo.search.enqueueing import asked_for, store_asked
from hpo.search.events import Event, Note, Reason, StudyEnded, StudyStarted
from hpo.search.loop import Search
from hpo.search.objective_search import OwnSearch
from hpo.search.options import DEFAULTS, LaunchOptions
from hpo.search.plan import ObjectivePlan, Plan, on_device, plan
from hpo.search.population_search import PopulationSearch
from hpo.search.sampling.warm_start import check_start, count_as_alike, predecessors
from hpo.search.space import how_many
from hpo.search.stored_plan import plan_again
from hpo.search.study_records import (
    RUN,
    agree_on_run,
    agree_on_start,
    any_stored_study,
    claim_conditions,
    open_study,
    precisions,
    record_change,
    record_data_folder,
    user_attrs_of,
)
from hpo.storage import PRIORITY, Storage, check_open, heartbeats, load_study, summary
from hpo.studyfile import AnyStudy, ObjectiveStudy, Study
from hpo.training.device_split import DeviceSplit
from hpo.training.devices import describe_device
from hpo.training.precision import choose_precision
from hpo.training.stack import Member
from hpo.training.trainer import Trainer

Listener = Callable[[Event], None]
AnyPlan = Plan | ObjectivePlan


def submit(
    study: AnyStudy,
    storage: Storage,
    options: LaunchOptions = DEFAULTS,
    *,
    planned: AnyPlan | None = None,
) -> AnyPlan:
    """Store the study, for workers to train; return its plan on this machine's CPU.

    A study that is stored already stays as it is, or is extended. Give its plan as `planned` to save planning it again.

    Raises UsageError or StudyFileError (the file, or one that differs from the stored one), DataError, CodeError and
    StudyBusyError before anything is stored.
    """
    planned = planned or plan(study, "cpu")
    _store(study, planned, storage, options)
    return planned


def check_joinable(study: AnyStudy, storage: Storage) -> int:
    """Return the stored study's id. Raises StudyClosedError where it gives out no trials."""
    stored = load_study(storage, study.name)
    check_open(storage, claim_conditions(study, stored))
    return stored._study_id


def join(
    name: str,
    storage: Storage,
    *,
    device: str,
    on_event: Listener,
    stop: threading.Event,
    recent_errors: list[str] | None = None,
    changed_code: bool = False,
) -> Search:
    """Return this process's search of a stored study; which appends to `recent_errors`.

    Raises HpoError where this machine lacks what the study needs, and StudyClosedError where it gives out no trials.
    """
    stored = load_study(storage, name)
    study = any_stored_study(stored)
    raised = [] if recent_errors is None else recent_errors
    planned = plan_again(study, stored, device, changed_code=changed_code)
    return _begin(study, stored, planned, storage, on_event, stop, raised)


def launch(
    study: AnyStudy,
    storage: Storage,
    options: LaunchOptions = DEFAULTS,
    *,
    on_event: Listener,
    stop: threading.Event,
) -> str:
    """Search the study until it has its trials, or until `stop` is set: then the epoch in hand ends.

    Return what it is called then: whoever renames a study does not stop its search.

    A study that the storage has goes on where it was; where other processes search it, this one joins them. Raises
    UsageError or StudyFileError (the file, the device, a file that differs from the stored one), DataError and
    CodeError (other code than the stored one's, without `changed_code`) before anything is stored, StudyBusyError where
    a change of the file would leave others searching what it was, and StudyClosedError where the study is paused or
    stopped.
    """
    start = time.perf_counter()
    with storage.patience.until(stop):
        planned = plan(study, options.device)
        stored = _store(study, planned, storage, options)
        warn(planned, on_event)
        with heartbeats(storage):
            reason = _begin(study, stored, planned, storage, on_event, stop, []).run()
    on_event(ended(study, stored._study_id, storage, reason, time.perf_counter() - start, on_event))
    return name_now(study, stored._study_id, storage)


def warn(planned: AnyPlan, on_event: Listener) -> None:
    """Say what there is to say against the images, once and not by each worker."""
    if planned.warning:
        on_event(Note(planned.warning, "warning"))


def started(
    study: AnyStudy, planned: AnyPlan, counts: tuple[int, int, int], device: str, precision: str
) -> StudyStarted:
    """Return the event of the beginning of work on a study; `counts` are those of `counted` before it."""
    completed, pruned, failed = counts
    if isinstance(planned, ObjectivePlan) or isinstance(study, ObjectiveStudy):
        assert isinstance(study, ObjectiveStudy)
        return StudyStarted(
            study=study.name,
            trials=study.search.trials,
            finished=completed,
            pruned=pruned,
            failed=failed,
            population=1,
            device=device,
            precision="",
            parameters=0,
            images=0,
            objective=study.objective,
        )
    return StudyStarted(
        study=study.name,
        trials=study.search.trials,
        finished=completed,
        pruned=pruned,
        failed=failed,
        population=planned.population,
        device=device,
        precision=precision,
        parameters=planned.size.parameters,
        images=len(planned.images.train),
    )


def ended(
    study: AnyStudy, study_id: int, storage: Storage, reason: Reason, seconds: float, on_event: Listener
) -> StudyEnded:
    """Return the event of the end of a process's work on a study; say what there is to be said of it before."""
    if reason == "space exhausted" and isinstance(study, Study):
        on_event(Note(f"the search space holds only {how_many(study)}, and there is no other to train"))
    try:
        return StudyEnded(reason, *counted(study_id, storage), seconds)
    except UnknownStudyError:
        return StudyEnded("deleted", 0, 0, 0, seconds)


def name_now(study: AnyStudy, study_id: int, storage: Storage) -> str:
    """Return what the study of that id is called; as before where it has been deleted."""
    try:
        return summary(storage, study_id).name
    except UnknownStudyError:
        return study.name


def counted(study_id: int, storage: Storage) -> tuple[int, int, int]:
    """Return how many trials of the study are completed, pruned and failed."""
    states = summary(storage, study_id).states
    return states.get(TrialState.COMPLETE, 0), states.get(TrialState.PRUNED, 0), states.get(TrialState.FAIL, 0)


def _store(study: AnyStudy, planned: AnyPlan, storage: Storage, options: LaunchOptions) -> optuna.Study:
    split = planned.images if isinstance(planned, Plan) else None
    if isinstance(study, Study) and split is not None:
        check_start(study, split, planned.code, storage, options.changed_code)
    asked = asked_for(study, options.enqueue, storage)
    stored = open_study(study, split, planned.code, storage, options)
    record_change(stored, study, planned.code, storage)
    before: list[FrozenTrial] = []
    if isinstance(study, Study) and split is not None:
        record_data_folder(stored, split, storage)
        if options.changed_code:
            count_as_alike(study, stored, storage)
        if asked:
            before = predecessors(study, user_attrs_of(stored), storage).trials
    if asked:
        store_asked(study, asked, before, storage, claim_conditions(study, stored))
    if options.priority is not None:
        storage.change_study(stored._study_id, {PRIORITY: options.priority})
    return stored


def _begin(
    study: AnyStudy,
    stored: optuna.Study,
    planned: AnyPlan,
    storage: Storage,
    on_event: Listener,
    stop: threading.Event,
    recent_errors: list[str],
) -> Search:
    """Return this process's search, after agreeing with the study's other processes on its precision and its start."""
    conditions = claim_conditions(study, stored)
    check_open(storage, conditions)
    shared: dict[str, Any] = {
        "study": study,
        "stored": stored,
        "claim_conditions": conditions,
        "storage": storage,
        "on_event": on_event,
        "stop": stop,
        "recent_errors": recent_errors,
        "code": planned.code,
    }
    if isinstance(planned, ObjectivePlan):  # the objective function chooses its device and precision itself
        storage.works_on("")
        began = agree_on_start(stored, storage)
        on_event(started(study, planned, counted(stored._study_id, storage), "", ""))
        return OwnSearch(**shared, began=began, population=1, function=planned.function)
    assert isinstance(study, Study)
    device_name = describe_device(planned.device)
    split = on_device(study, planned)
    storage.works_on(device_name)
    precision, began = agree_on_run(stored, storage, device_name, _precision(study, stored, planned, split, on_event))
    counts = counted(stored._study_id, storage)
    on_event(started(study, planned, counts, device_name, precisions(study, precision)))
    timeout_s = study.search.trial_timeout
    trainer = Trainer(split, precision, lambda text: on_event(Note(text, "warning")), timeout_s)
    before = _before(study, stored, storage, on_event)
    return PopulationSearch(**shared, began=began, population=planned.population, trainer=trainer, before=before)


def _before(study: Study, stored: optuna.Study, storage: Storage, on_event: Listener) -> list[FrozenTrial]:
    """Return what is known of the studies that this one starts from; say of which nothing is."""
    if not study.search.start_from:
        return []
    found = predecessors(study, user_attrs_of(stored), storage)
    for problem in found.problems:
        on_event(Note(f"search.start_from: {problem}; the search goes on without its trials", "warning"))
    return found.trials


def _precision(study: Study, stored: optuna.Study, planned: Plan, split: DeviceSplit, on_event: Listener) -> str:
    """Return what "auto" means: what the study began with, or else what is faster here. All trials have it, or none."""
    if study.first.training.precision != "auto":
        return study.first.training.precision
    if run := user_attrs_of(stored).get(RUN):
        return str(run["precision"])
    if split.device.type == "mps" or not planned.stacked:
        return "float32"
    members = [Member(number, planned.config, number) for number in range(planned.population)]
    precision, ratio = choose_precision(members, split)
    on_event(Note(f"precision: {precision} (bfloat16 trains {ratio:.2f} times as fast as float32 here)"))
    return precision
