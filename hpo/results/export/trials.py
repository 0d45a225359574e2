"""Trials as records, `hpo.trial/1`: all of a study's or its best, as JSON lines or as comma-separated values.

Every trial is there, whatever became of it; what it has not got is null, or an empty cell.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.results.export.best import params_of
from hpo.results.export.objective_trial import reported
from hpo.results.lookup import metrics_of
from hpo.results.ranking import score, values_of
from hpo.results.states import STATES
from hpo.results.unranked import no_best
from hpo.search.space import is_whole
from hpo.search.study_records import CURVE, RUN, any_stored_study
from hpo.storage import FAILURE_REASON, WORKER, Storage, TrialFields, best_trials, load_study, summary
from hpo.studyfile import AnyStudy, ObjectiveStudy
from hpo.text import encode_non_finite, json_text, printable_lines

SCHEMA = "hpo.trial/1"
FIRST = ("number", "state", "value", "seed", "epochs", "precision", "device", "started", "ended", "reason")
"""The columns that every table has, before those of the parameters."""


def trial_records(storage: Storage, name: str, best: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield a study's trials in the order of their numbers; or the best of the completed ones, best first.

    Raises HpoError where there is none.
    """
    found = load_study(storage, name)
    study, run = any_stored_study(found), found.user_attrs.get(RUN, {})
    # hpo keeps the learning curves of its networks whole, beside Optuna's values by epoch
    parts = TrialFields(curves=isinstance(study, ObjectiveStudy))
    if best is None:
        trials = storage.read_trials(found._study_id, -1, (), parts)
    else:
        trials = [storage.get_trial(trial._trial_id) for trial in best_trials(storage, name, best)]
    if not trials:
        raise no_best(storage, name)
    metrics = metrics_of(summary(storage, name))
    return (_record(study, metrics, str(run.get("precision", "auto")), trial) for trial in trials)


def _record(study: AnyStudy, metrics: Sequence[str], run: str, trial: FrozenTrial) -> dict[str, Any]:
    attrs = trial.system_attrs
    if isinstance(study, ObjectiveStudy):
        params, curve, precision = trial.params, reported(trial), None
    else:
        params, curve = params_of(study, trial), attrs.get(CURVE, {})
        trained_in = study.value(("training", "precision"), params) if is_whole(study, params) else None
        precision = run if trained_in == "auto" else trained_in
    return {
        "schema": SCHEMA,
        "study": study.name,
        "number": trial.number,
        "state": STATES[trial.state],
        "value": score(trial) if trial.values else None,
        **values_of(metrics, trial),
        "params": params,
        "seed": trial.user_attrs.get("seed"),
        "epochs": max(map(len, curve.values()), default=0),
        "precision": precision,
        "device": attrs.get(WORKER, {}).get("device") or None,
        "started": _utc(trial.datetime_start),
        "ended": _utc(trial.datetime_complete),
        "reason": trial.user_attrs.get(FAILURE_REASON),
        "curve": curve,
    }


def json_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield each record as a line of JSON."""
    for record in records:
        yield json_text(record) + "\n"


def comma_separated(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a heading and a row a record, without the curves; a list, a word such as true and a null are JSON.

    Several metrics have a column each; a parameter that is called like another column is `params.epochs`.
    """
    rows = list(records)
    names = list(dict.fromkeys(name for row in rows for name in row["params"]))
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.get("values", ())))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    taken = {*FIRST, *metrics}
    columns = [f"params.{name}" if name in taken else name for name in names]
    writer.writerow(map(printable_lines, [*FIRST, *metrics, *columns]))
    for row in rows:
        scores = [row["values"].get(metric) for metric in metrics]
        params = [_cell(row["params"][name]) if name in row["params"] else "" for name in names]
        writer.writerow([*(_shown(row[column]) for column in FIRST), *map(encode_non_finite, scores), *params])
    yield text.getvalue()


def _cell(value: Any) -> Any:
    return json_text(value) if value is None or isinstance(value, list | bool) else _shown(value)


def _shown(value: Any) -> Any:
    """Return a value as a spreadsheet, and a terminal, may have it."""
    return printable_lines(value) if isinstance(value, str) else encode_non_finite(value)


def _utc(time: datetime.datetime | None) -> str | None:
    """Optuna's times are this machine's."""
    if time is None:
        return None
    return time.astimezone(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
