"""A study on its way into the storage, and a process on its way into a study.

The plan comes first: whatever is wrong with the file, the data or the device is found before anything is stored.

    submit    put a study into the storage
    join      work on a stored study, as any process can that has the storage and the data
    launch    both, to the study's end
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import UnknownStudyError
from hpo.search.enqueueing import asked_for, store_asked
from hpo.search.events import Event, Note, Reason, StudyEnded, StudyStarted
from hpo.search.loop import Search
from hpo.search.objective_search import OwnSearch
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
    open_objective_study,
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
    *,
    extend: bool = False,
    priority: int | None = None,
    changed_code: bool = False,
    planned: AnyPlan | None = None,
    enqueue: Sequence[str] = (),
) -> AnyPlan:
    """Put the study into the storage, for workers to take up; return what it comes to on this machine's CPU.

    One that is there stays as it is, or is extended. `planned` is that already, where the caller has asked for it.
    `enqueue` are trials to train first, each as JSON of its values (hpo.search.enqueueing).

    Raises UsageError or StudyFileError (the file, or one that differs from the stored one), DataError, CodeError and
    StudyBusyError before anything is stored.
    """
    planned = planned or plan(study, "cpu")
    _store(study, planned, storage, extend, priority, changed_code, enqueue)
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
    """Return this process's search of a stored study; `raised_before` is kept up by it, as long as the caller likes.

    Raises HpoError where this machine lacks what the study needs, and StudyClosedError where it gives out no trials.
    """
    stored = load_study(storage, name)
    study = any_stored_study(stored)
    raised = [] if recent_errors is None else recent_errors
    if isinstance(study, ObjectiveStudy):
        own = plan_again(study, stored, device, changed_code=changed_code)
        return _begin_own(study, stored, own, storage, on_event, stop, raised)
    planned = plan_again(study, stored, device, changed_code=changed_code)
    return _begin(study, stored, planned, storage, on_event, stop, raised)


def launch(
    study: AnyStudy,
    storage: Storage,
    *,
    device: str = "auto",
    extend: bool = False,
    changed_code: bool = False,
    enqueue: Sequence[str] = (),
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
        planned = plan(study, device)
        stored = _store(study, planned, storage, extend, changed_code=changed_code, enqueue=enqueue)
        warn(planned, on_event)
        with heartbeats(storage):
            if isinstance(study, ObjectiveStudy):
                assert isinstance(planned, ObjectivePlan)
                search: Search = _begin_own(study, stored, planned, storage, on_event, stop, [])
            else:
                assert isinstance(planned, Plan)
                search = _begin(study, stored, planned, storage, on_event, stop, [])
            reason = search.run()
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


def _store(
    study: AnyStudy,
    planned: AnyPlan,
    storage: Storage,
    extend: bool,
    priority: int | None = None,
    changed_code: bool = False,
    enqueue: Sequence[str] = (),
) -> optuna.Study:
    if isinstance(study, ObjectiveStudy):
        assert isinstance(planned, ObjectivePlan)
        asked = asked_for(study, enqueue, storage)
        stored = open_objective_study(study, planned.code, storage, extend, priority, changed_code)
        record_change(stored, study, planned.code, storage)
        if asked:
            store_asked(study, asked, (), storage, claim_conditions(study, stored))
    else:
        assert isinstance(planned, Plan)
        stored = _store_networks(study, planned, storage, extend, priority, changed_code, enqueue)
    if priority is not None:
        storage.change_study(stored._study_id, {PRIORITY: priority})
    return stored


def _store_networks(
    study: Study,
    planned: Plan,
    storage: Storage,
    extend: bool,
    priority: int | None,
    changed_code: bool,
    enqueue: Sequence[str],
) -> optuna.Study:
    check_start(study, planned.images, planned.code, storage, changed_code)
    asked = asked_for(study, enqueue, storage)
    stored = open_study(study, planned.images, planned.code, storage, extend, priority, changed_code)
    record_change(stored, study, planned.code, storage)
    record_data_folder(stored, planned.images, storage)
    if changed_code:
        count_as_alike(study, stored, storage)
    if asked:
        before = predecessors(study, user_attrs_of(stored), storage).trials
        store_asked(study, asked, before, storage, claim_conditions(study, stored))
    return stored


def _begin(
    study: Study,
    stored: optuna.Study,
    planned: Plan,
    storage: Storage,
    on_event: Listener,
    stop: threading.Event,
    recent_errors: list[str],
) -> Search:
    """Settle what the study's processes have to agree on, and say what is going to be trained."""
    conditions = claim_conditions(study, stored)
    check_open(storage, conditions)
    device_name = describe_device(planned.device)
    split = on_device(study, planned)
    storage.works_on(device_name)
    precision, began = agree_on_run(stored, storage, device_name, _precision(study, stored, planned, split, on_event))
    counts = counted(stored._study_id, storage)
    on_event(started(study, planned, counts, device_name, precisions(study, precision)))
    timeout_s = study.search.trial_timeout
    trainer = Trainer(split, precision, lambda text: on_event(Note(text, "warning")), timeout_s)
    before = _before(study, stored, storage, on_event)
    return PopulationSearch(
        study=study,
        stored=stored,
        claim_conditions=conditions,
        began=began,
        storage=storage,
        population=planned.population,
        on_event=on_event,
        stop=stop,
        recent_errors=recent_errors,
        trainer=trainer,
        code=planned.code,
        before=before,
    )


def _begin_own(
    study: ObjectiveStudy,
    stored: optuna.Study,
    planned: ObjectivePlan,
    storage: Storage,
    on_event: Listener,
    stop: threading.Event,
    recent_errors: list[str],
) -> Search:
    """The same for the user's own objective, which is on a device, and in a precision, of its own choice."""
    conditions = claim_conditions(study, stored)
    check_open(storage, conditions)
    storage.works_on("")
    began = agree_on_start(stored, storage)
    on_event(started(study, planned, counted(stored._study_id, storage), "", ""))
    return OwnSearch(
        study=study,
        stored=stored,
        claim_conditions=conditions,
        began=began,
        storage=storage,
        population=1,
        on_event=on_event,
        stop=stop,
        recent_errors=recent_errors,
        function=planned.function,
        code=planned.code,
    )


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
