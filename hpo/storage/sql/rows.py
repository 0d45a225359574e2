"""Rows of Optuna's tables: convert trials to rows, and read trials from rows.

The rows written equal those of plain Optuna, column by column; a trial read equals the one that plain Optuna reads.
Reading takes a handful of queries for hundreds of trials. This module knows the tables, and nothing of connections and
transactions.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import Connection

from hpo.optuna_internals import models

Row = dict[str, Any]

STUDIES: sa.Table = models.StudyModel.__table__
DIRECTIONS: sa.Table = models.StudyDirectionModel.__table__
STUDY_ATTRS: sa.Table = models.StudyUserAttributeModel.__table__
STUDY_SYSTEM_ATTRS: sa.Table = models.StudySystemAttributeModel.__table__
TRIALS: sa.Table = models.TrialModel.__table__
PARAMS: sa.Table = models.TrialParamModel.__table__
VALUES: sa.Table = models.TrialValueModel.__table__
INTERMEDIATE: sa.Table = models.TrialIntermediateValueModel.__table__
USER_ATTRS: sa.Table = models.TrialUserAttributeModel.__table__
SYSTEM_ATTRS: sa.Table = models.TrialSystemAttributeModel.__table__
HEARTBEATS: sa.Table = models.TrialHeartbeatModel.__table__

OF_STUDIES = (DIRECTIONS, STUDY_ATTRS, STUDY_SYSTEM_ATTRS)
OF_TRIALS = (PARAMS, VALUES, INTERMEDIATE, USER_ATTRS, SYSTEM_ATTRS, HEARTBEATS)

# The number of trial ids in one query: below the parameter limit of both databases.
IDS_PER_QUERY = 500
NOT_FINITE = {"NAN": math.nan, "INF_POS": math.inf, "INF_NEG": -math.inf}


@dataclass(frozen=True)
class TrialFields:
    """The fields of trials to read: learning curves, user attributes, and system attributes with this key prefix."""

    curves: bool = True
    user_attrs: bool = True
    system_attrs: str | None = ""


ALL_FIELDS = TrialFields()


@dataclass(frozen=True)
class TrialResult:
    """The final state of a trial, its objective values (none is NaN, which Optuna cannot read back), and attributes."""

    trial_id: int
    state: TrialState
    values: tuple[float, ...] = ()
    user_attrs: Mapping[str, Any] = field(default_factory=dict)
    system_attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.state.is_finished():
            raise ValueError(f"trial {self.trial_id}: {self.state.name} is not a final state")
        if self.state == TrialState.COMPLETE and not self.values:
            raise ValueError(f"trial {self.trial_id}: a completed trial needs a value for each objective")
        if any(map(math.isnan, self.values)):
            raise ValueError(f"trial {self.trial_id}: an objective value is NaN")


def utc(time: datetime.datetime) -> datetime.datetime:
    """Return a local time as Optuna stores it: UTC without a time zone."""
    return time.astimezone(datetime.UTC).replace(tzinfo=None)


def local(time: datetime.datetime | None) -> datetime.datetime | None:
    """Return a stored time as Optuna returns it: local time without a time zone."""
    return None if time is None else time.replace(tzinfo=datetime.UTC).astimezone().replace(tzinfo=None)


def value_row(trial_id: int, objective: int, value: float) -> Row:
    """Return the row of an objective value; Optuna has its own representation of infinity."""
    stored, kind = models.TrialValueModel.value_to_stored_repr(float(value))
    return {"trial_id": trial_id, "objective": objective, "value": stored, "value_type": kind}


def intermediate_row(trial_id: int, step: int, value: float) -> Row:
    """Return the row of a metric at a step; Optuna has its own representation of NaN and infinity."""
    stored, kind = models.TrialIntermediateValueModel.intermediate_value_to_stored_repr(float(value))
    return {"trial_id": trial_id, "step": step, "intermediate_value": stored, "intermediate_value_type": kind}


def attr_rows(trial_id: int, attrs: Mapping[str, Any]) -> list[Row]:
    """Return a row for each attribute of a trial, with its value as JSON."""
    return [{"trial_id": trial_id, "key": key, "value_json": json.dumps(value)} for key, value in attrs.items()]


def param_row(trial_id: int, name: str, internal: float, distribution: BaseDistribution) -> Row:
    """Return the row of a parameter: its value in Optuna's internal representation, its distribution as JSON."""
    text = distribution_to_json(distribution)
    return {"trial_id": trial_id, "param_name": name, "param_value": internal, "distribution_json": text}


def trial_rows(trial_id: int, trial: FrozenTrial) -> Iterator[tuple[sa.Table, list[Row]]]:
    """Yield the rows of a trial in the other tables than `trials`, table by table."""
    yield VALUES, [value_row(trial_id, objective, value) for objective, value in enumerate(trial.values or ())]
    internal = {name: trial.distributions[name].to_internal_repr(value) for name, value in trial.params.items()}
    yield PARAMS, [param_row(trial_id, name, value, trial.distributions[name]) for name, value in internal.items()]
    yield USER_ATTRS, attr_rows(trial_id, trial.user_attrs)
    yield SYSTEM_ATTRS, attr_rows(trial_id, trial.system_attrs)
    yield INTERMEDIATE, [intermediate_row(trial_id, step, v) for step, v in trial.intermediate_values.items()]


def read_trials(
    connection: Connection, condition: sa.ColumnElement[bool], fields: TrialFields = ALL_FIELDS
) -> list[FrozenTrial]:
    """Return the trials whose row in `trials` meets the condition, by id; fields that are not read are empty."""
    t = TRIALS.c
    columns = (t.trial_id, t.number, t.state, t.datetime_start, t.datetime_complete)
    found = connection.execute(sa.select(*columns).where(condition).order_by(t.trial_id)).all()
    trials: list[FrozenTrial] = []
    for start in range(0, len(found), IDS_PER_QUERY):
        trials += _assemble(connection, found[start : start + IDS_PER_QUERY], fields)
    return trials


def _assemble(connection: Connection, found: Sequence[Sequence[Any]], fields: TrialFields) -> list[FrozenTrial]:
    ids = [trial_id for trial_id, *_ in found]
    params: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    distributions: defaultdict[int, dict[str, BaseDistribution]] = defaultdict(dict)
    p = PARAMS.c
    for trial_id, name, value, text in _children(
        connection, ids, (p.trial_id, p.param_name, p.param_value, p.distribution_json), p.param_id
    ):
        distribution = distributions[trial_id][name] = _distribution(text)
        params[trial_id][name] = distribution.to_external_repr(value)
    values = _numbers(connection, ids, VALUES.c.objective, VALUES.c.value, VALUES.c.value_type)
    curves = _numbers(
        connection,
        ids if fields.curves else [],
        INTERMEDIATE.c.step,
        INTERMEDIATE.c.intermediate_value,
        INTERMEDIATE.c.intermediate_value_type,
    )
    user_attrs = _attrs(connection, ids, USER_ATTRS, "" if fields.user_attrs else None)
    system_attrs = _attrs(connection, ids, SYSTEM_ATTRS, fields.system_attrs)
    # The trials of a population share start and end times: convert each time once.
    times = {time: local(time) for time in {time for *_, start, end in found for time in (start, end)}}
    return [
        FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=list(values[trial_id].values()) if trial_id in values else None,
            datetime_start=times[start],
            datetime_complete=times[end],
            params=params[trial_id],
            distributions=distributions[trial_id],
            user_attrs=user_attrs[trial_id],
            system_attrs=system_attrs[trial_id],
            intermediate_values=curves[trial_id],
            trial_id=trial_id,
        )
        for trial_id, number, state, start, end in found
    ]


def _children(
    connection: Connection,
    ids: Sequence[int],
    columns: Sequence[sa.ColumnElement[Any]],
    *order: sa.ColumnElement[Any],
    where: Sequence[sa.ColumnElement[bool]] = (),
) -> Iterable[Any]:
    """Return rows of a table that belongs to trials; the first column is the trial's id."""
    select = sa.select(*columns).where(columns[0].in_(ids), *where)
    return connection.execute(select.order_by(*order)).all() if ids else ()


def _numbers(
    connection: Connection,
    ids: Sequence[int],
    key: sa.ColumnElement[int],
    value: sa.ColumnElement[float],
    kind: sa.ColumnElement[Any],
) -> defaultdict[int, dict[int, float]]:
    numbers: defaultdict[int, dict[int, float]] = defaultdict(dict)
    trial_id = key.table.c.trial_id
    # The kind is read as text: converting it to an enum member would double the time of reading a learning curve.
    columns = (trial_id, key, value, sa.type_coerce(kind, sa.String))
    for owner, at, number, name in _children(connection, ids, columns, trial_id, key):
        numbers[owner][at] = number if name == "FINITE" else NOT_FINITE[name]
    return numbers


def _attrs(
    connection: Connection, ids: Sequence[int], table: sa.Table, prefix: str | None
) -> defaultdict[int, dict[str, Any]]:
    attrs: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    if prefix is None:
        return attrs
    columns = (table.c.trial_id, table.c.key, table.c.value_json)
    where = [table.c.key.startswith(prefix, autoescape=True)] if prefix else []
    for trial_id, key, text in _children(connection, ids, columns, *table.primary_key, where=where):
        attrs[trial_id][key] = json.loads(text)
    return attrs


@functools.lru_cache(maxsize=1024)
def _distribution(text: str) -> BaseDistribution:
    # Cached, because the trials of a study share a few distributions, which are never changed.
    return json_to_distribution(text)
