"""A launch: read the images, open the study, settle device, precision and population, and search.

Everything that can be wrong with the study file or the data is found before anything is stored.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import optuna
from optuna.trial import TrialState

from hpo.data import load_split
from hpo.search.events import Event, Note, Reason, StudyEnded, StudyStarted
from hpo.search.loop import Search
from hpo.search.records import RUN, open_study, process_record, record_change, record_run
from hpo.search.samplers import check_search
from hpo.search.space import how_many
from hpo.storage import Storage
from hpo.studyfile import Config, Study
from hpo.training.devices import describe, find_device
from hpo.training.images import DeviceSplit, to_device
from hpo.training.objective import Objective
from hpo.training.precision import choose_precision
from hpo.training.size import population_size, size_of
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
    check_search(study)
    where = find_device(device)
    if where.type == "mps" and study.first.training.precision == "float64":
        raise study.error("training.precision", "float64 does not exist on mps; use float32, or --device cpu")
    images = load_split(study)
    split = to_device(images, study.data.split_seed, where)
    config = Config.model_validate(study.first.model_dump(include=set(Config.model_fields)))
    member = size_of(config, split.shape, split.classes, _or_float32(study))
    stored = open_study(study, images, storage, extend)
    with process_record(stored):
        record_change(stored, study)
        population = population_size(study.search.population, study.search.trials, member.member_bytes, where)
        precision = _precision(study, stored, config, split, population, on_event)
        record_run(stored, describe(where), precision)
        completed, pruned, failed = _counts(stored)
        on_event(
            StudyStarted(
                study=study.name,
                trials=study.search.trials,
                finished=completed,
                pruned=pruned,
                failed=failed,
                population=population,
                device=describe(where),
                precision=precision,
                parameters=member.parameters,
            )
        )
        objective = Objective(split, precision, lambda text: on_event(Note(text, "warning")))
        done = Search(study, stored, storage, objective, population, on_event, stop).run()
        reason: Reason = "finished" if done else "interrupted" if stop.is_set() else "space exhausted"
        if reason == "space exhausted":
            on_event(Note(f"the search space holds only {how_many(study)}, and there is no other to train"))
        on_event(StudyEnded(reason, *_counts(stored), time.perf_counter() - start))


def _or_float32(study: Study) -> str:
    precision = study.first.training.precision
    return "float32" if precision == "auto" else precision


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
