"""Studies by name: summaries, the best trials, and a stored study as an optuna.Study.

The database counts and ranks, with a few queries for all studies; no learning curve is read, and no trial but those
requested (of studies with several objectives, all objective values). The results of one call are of one moment. A study
that `load_study` returns reads through Optuna's cache: finished trials once, new and unfinished trials each time. This
module knows nothing of the attributes that hpo stores with a study, except its state.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from hpo.errors import UnknownStudyError, nearest
from hpo.optuna_internals import models
from hpo.storage.pareto import best_first, losses
from hpo.storage.sql.claim_conditions import STATE, StudyState
from hpo.storage.sql.retry import read_transaction
from hpo.storage.sql.rows import (
    DIRECTIONS,
    IDS_PER_QUERY,
    INTERMEDIATE,
    STUDIES,
    STUDY_ATTRS,
    STUDY_SYSTEM_ATTRS,
    SYSTEM_ATTRS,
    TRIALS,
    VALUES,
    TrialFields,
    local,
    read_trials,
    utc,
)
from hpo.storage.sql.statements import FROZEN
from hpo.storage.storage import Storage
from hpo.text import first_few

# The largest trial id, as a limit without effect: a database refuses a much larger one.
MAX_TRIALS = 2**31 - 1
METRIC_NAMES = "study:metric_names"  # Optuna's system attribute
MOST_NAMES = 5  # of studies in one message
RANKED = TrialFields(curves=False, system_attrs=None)
# Objective values that can be ranked: Optuna stores infinity without a number.
ANY_FINITE = (VALUES.c.trial_id == TRIALS.c.trial_id) & (
    VALUES.c.value_type == models.TrialValueModel.TrialValueType.FINITE
)
FINITE = ANY_FINITE & (VALUES.c.objective == 0)


@dataclass(frozen=True)
class StudySummary:
    """The key facts of a study.

    `states` counts the trials of each state that occurs, `frozen` the running trials that are frozen, by the epochs
    that they have trained. `best` is the best finite value of the first objective among
    completed trials, or None. `last_activity` is the time of the last start or end of a trial, or None. `metric_names`
    are those of Optuna's `set_metric_names`.
    """

    study_id: int
    name: str
    directions: tuple[StudyDirection, ...]
    user_attrs: Mapping[str, Any]
    states: Mapping[TrialState, int]
    best: float | None
    last_activity: datetime.datetime | None
    frozen: Mapping[int, int] = field(default_factory=dict)
    metric_names: tuple[str, ...] = ()


def study_names(storage: Storage) -> list[str]:
    """Return the names of the studies in the storage, oldest first."""
    names = sa.select(STUDIES.c.study_name).order_by(STUDIES.c.study_id)
    return read_transaction(storage.engine, lambda connection: list(connection.execute(names).scalars()))


def summaries(storage: Storage) -> list[StudySummary]:
    """Return the summary of each study in the storage, oldest first."""
    return read_transaction(storage.engine, lambda connection: _summaries(connection, sa.true()))


def summary(storage: Storage, study: str | int) -> StudySummary:
    """Return the summary of the study of that name or id. A rename changes the name only."""
    found = read_transaction(storage.engine, lambda connection: _summaries(connection, _matches(study)))
    if not found:
        raise _unknown(storage, study)
    return found[0]


def study_id_of(storage: Storage, trial_id: int) -> int | None:
    """Return the id of a trial's study; None if there is no such trial."""
    found = sa.select(TRIALS.c.study_id).where(TRIALS.c.trial_id == trial_id)
    return read_transaction(storage.engine, lambda connection: connection.execute(found).scalar())


def open_summaries(storage: Storage) -> list[StudySummary]:
    """Return the summary of each open study, oldest first."""
    closed = sa.select(STUDY_ATTRS.c.study_id).where(
        STUDY_ATTRS.c.key == STATE, STUDY_ATTRS.c.value_json != json.dumps(StudyState.OPEN.value)
    )
    return read_transaction(
        storage.engine, lambda connection: _summaries(connection, STUDIES.c.study_id.not_in(closed))
    )


def frozen_counts(storage: Storage) -> dict[int, dict[int, int]]:
    """Return the number of frozen trials at each epoch, of each study that has any."""
    return read_transaction(storage.engine, lambda connection: _frozen(connection, sa.select(STUDIES.c.study_id)))


def trial_rates(storage: Storage, window_s: float) -> dict[int, float]:
    """Return the finished trials per second of each study during the last `window_s` seconds.

    If the first of these trials started within the window, the rate counts from its start. The trials have the time of
    the machines that trained them, the window that of this machine.
    """
    now = utc(datetime.datetime.now())
    start = now - datetime.timedelta(seconds=window_s)
    ended = sa.select(TRIALS.c.study_id, sa.func.count(), sa.func.min(TRIALS.c.datetime_start)).group_by(
        TRIALS.c.study_id
    )
    rows = read_transaction(
        storage.engine, lambda connection: connection.execute(ended.where(TRIALS.c.datetime_complete > start)).all()
    )
    return {
        study_id: count / max(1.0, (now - max(first or start, start)).total_seconds())
        for study_id, count, first in rows
    }


def last_epochs(storage: Storage, trial_ids: Sequence[int]) -> dict[int, int]:
    """Return the last reported step of each trial that has reported one."""
    steps = sa.select(INTERMEDIATE.c.trial_id, sa.func.max(INTERMEDIATE.c.step)).group_by(INTERMEDIATE.c.trial_id)

    def work(connection: Connection) -> dict[int, int]:
        found: dict[int, int] = {}
        for start in range(0, len(trial_ids), IDS_PER_QUERY):
            ids = trial_ids[start : start + IDS_PER_QUERY]
            rows = connection.execute(steps.where(INTERMEDIATE.c.trial_id.in_(ids)))
            found |= {trial_id: step for trial_id, step in rows}
        return found

    return read_transaction(storage.engine, work)


def best_trials(storage: Storage, study: str | int, n: int | None = None) -> list[FrozenTrial]:
    """Return the `n` best completed trials of the study of that name or id, best first.

    Trials with equal values are ordered by number; infinite values are not ranked. With several objectives, the best
    trials are the Pareto front, ordered by the first objective. Without `n`, return the best trial, or the whole front.
    The returned trials have no learning curves and no system attributes.
    """

    def work(connection: Connection) -> list[FrozenTrial] | None:
        of_study = (
            sa.select(DIRECTIONS.c.direction).join(STUDIES).where(_matches(study)).order_by(DIRECTIONS.c.objective)
        )
        directions = connection.execute(of_study).scalars().all()
        if len(directions) == 1:
            return _ranked(connection, _matches(study), directions[0], 1 if n is None else n)
        return _front(connection, _matches(study), directions, n) if directions else None

    best = read_transaction(storage.engine, work)
    if best is None:
        raise _unknown(storage, study)
    return best


def _ranked(
    connection: Connection, study: sa.ColumnElement[bool], direction: StudyDirection, n: int
) -> list[FrozenTrial]:
    value = VALUES.c.value.desc() if direction == StudyDirection.MAXIMIZE else VALUES.c.value
    of_study = sa.select(TRIALS.c.trial_id).select_from(TRIALS.join(STUDIES).join(VALUES, FINITE)).where(study)
    ranked = of_study.where(TRIALS.c.state == TrialState.COMPLETE).order_by(value, TRIALS.c.number)
    ranked = ranked.limit(min(n, MAX_TRIALS))
    # A subquery instead of ids, because a database limits the number of parameters.
    found = {trial._trial_id: trial for trial in read_trials(connection, TRIALS.c.trial_id.in_(ranked), RANKED)}
    return [found[trial_id] for trial_id in connection.execute(ranked).scalars()]


def _front(
    connection: Connection, study: sa.ColumnElement[bool], directions: Sequence[StudyDirection], n: int | None
) -> list[FrozenTrial]:
    rows = sa.select(TRIALS.c.trial_id, VALUES.c.value)
    rows = rows.select_from(TRIALS.join(STUDIES).join(VALUES, ANY_FINITE)).where(study)
    values: defaultdict[int, list[float]] = defaultdict(list)
    complete = rows.where(TRIALS.c.state == TrialState.COMPLETE).order_by(VALUES.c.objective)
    for trial_id, value in connection.execute(complete):
        values[trial_id].append(value)
    finite = {trial_id: found for trial_id, found in values.items() if len(found) == len(directions)}
    # Ids have the order of numbers.
    ids = best_first({trial_id: losses(found, directions) for trial_id, found in finite.items()})[:n]
    found: dict[int, FrozenTrial] = {}
    for start in range(0, len(ids), IDS_PER_QUERY):
        among = TRIALS.c.trial_id.in_(ids[start : start + IDS_PER_QUERY])
        found |= {trial._trial_id: trial for trial in read_trials(connection, among, RANKED)}
    return [found[trial_id] for trial_id in ids]


def load_study(storage: Storage, name: str) -> optuna.Study:
    """Return the study of that name. Raises UnknownStudyError if there is none."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        raise _unknown(storage, name) from error


def _summaries(connection: Connection, which: sa.ColumnElement[bool]) -> list[StudySummary]:
    studies = connection.execute(sa.select(STUDIES).where(which).order_by(STUDIES.c.study_id)).all()
    ids = sa.select(STUDIES.c.study_id).where(which)
    directions: defaultdict[int, list[StudyDirection]] = defaultdict(list)
    d = DIRECTIONS.c
    for row in connection.execute(sa.select(DIRECTIONS).where(d.study_id.in_(ids)).order_by(d.objective)):
        directions[row.study_id].append(row.direction)
    user_attrs: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for row in connection.execute(sa.select(STUDY_ATTRS).where(STUDY_ATTRS.c.study_id.in_(ids))):
        user_attrs[row.study_id][row.key] = json.loads(row.value_json)
    a = STUDY_SYSTEM_ATTRS.c
    named = sa.select(STUDY_SYSTEM_ATTRS).where(a.study_id.in_(ids), a.key == METRIC_NAMES)
    names = {row.study_id: _texts(json.loads(row.value_json)) for row in connection.execute(named)}
    totals: defaultdict[int, dict[TrialState, sa.Row[Any]]] = defaultdict(dict)
    for row in connection.execute(_totals(ids)):
        totals[row.study_id][row.state] = row
    is_running = any(TrialState.RUNNING in of_study for of_study in totals.values())
    frozen = _frozen(connection, ids) if is_running else {}
    return [
        StudySummary(
            study_id=row.study_id,
            name=row.study_name,
            directions=tuple(directions[row.study_id]),
            user_attrs=user_attrs[row.study_id],
            states={state: total.trials for state, total in totals[row.study_id].items()},
            best=_best(directions[row.study_id], totals[row.study_id].get(TrialState.COMPLETE)),
            last_activity=_latest(totals[row.study_id].values()),
            frozen=frozen.get(row.study_id, {}),
            metric_names=names.get(row.study_id, ()),
        )
        for row in studies
    ]


def _texts(value: Any) -> tuple[str, ...]:
    """Return a list's items as texts; none of a value that is no list, which only another program stores."""
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _totals(study_ids: sa.Select[tuple[int]]) -> sa.Select[Any]:
    """Return the query with a row for each state of each study."""
    columns = (
        sa.func.count().label("trials"),
        sa.func.min(VALUES.c.value).label("lowest"),
        sa.func.max(VALUES.c.value).label("highest"),
        sa.func.max(TRIALS.c.datetime_start).label("started"),
        sa.func.max(TRIALS.c.datetime_complete).label("ended"),
    )
    by = (TRIALS.c.study_id, TRIALS.c.state)
    of_studies = sa.select(*by, *columns).where(TRIALS.c.study_id.in_(study_ids))
    return of_studies.select_from(TRIALS.outerjoin(VALUES, FINITE)).group_by(*by)


def _frozen(connection: Connection, study_ids: sa.Select[tuple[int]]) -> dict[int, dict[int, int]]:
    """Return the number of frozen trials at each epoch, ascending, of each study that has any."""
    by = (TRIALS.c.study_id, SYSTEM_ATTRS.c.value_json)
    frozen = sa.select(*by, sa.func.count()).join(SYSTEM_ATTRS, SYSTEM_ATTRS.c.trial_id == TRIALS.c.trial_id)
    of_studies = TRIALS.c.study_id.in_(study_ids) & (TRIALS.c.state == TrialState.RUNNING)
    rows = connection.execute(frozen.where(of_studies, SYSTEM_ATTRS.c.key == FROZEN).group_by(*by))
    found: defaultdict[int, dict[int, int]] = defaultdict(dict)
    for study_id, epoch, count in sorted((study_id, int(json.loads(text)), count) for study_id, text, count in rows):
        found[study_id][epoch] = count
    return found


def _best(directions: Sequence[StudyDirection], complete: sa.Row[Any] | None) -> float | None:
    if not directions or complete is None:
        return None
    value: float | None = complete.highest if directions[0] == StudyDirection.MAXIMIZE else complete.lowest
    return value


def _latest(totals: Iterable[sa.Row[Any]]) -> datetime.datetime | None:
    times = [time for total in totals for time in (total.started, total.ended) if time is not None]
    return local(max(times, default=None))


def _matches(study: str | int) -> sa.ColumnElement[bool]:
    return STUDIES.c.study_id == study if isinstance(study, int) else STUDIES.c.study_name == study


def _unknown(storage: Storage, name: str | int) -> UnknownStudyError:
    if isinstance(name, int):
        return UnknownStudyError(f"{storage.shown}: the study was deleted by another process")
    names = study_names(storage)
    if not names:
        advice = "; the storage has no study yet: start one with `hpo launch FILE`"
    else:
        more = " (see `hpo studies`)" if len(names) > MOST_NAMES else ""
        advice = nearest(name, names) or f"; the storage has {first_few(list(map(repr, names)), MOST_NAMES)}{more}"
    return UnknownStudyError(f"{storage.shown}: no study named {name!r}{advice}")
