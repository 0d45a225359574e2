"""Records of many trials, `hpo.trial/1`: all trials of a study, or the best.

Every trial has the same keys in every state and of every study; a value that it lacks is None. Times are datetimes;
`text.py` writes them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.results.no_best_trial import no_best_trial
from hpo.results.ranking import score, values_of
from hpo.results.selection import params_of
from hpo.results.study_facts import STATES, metrics_of, reported_curve
from hpo.search.space import is_whole
from hpo.search.study_records import CURVE, RUN, STUDY, any_stored_study
from hpo.storage import FAILURE_REASON, WORKER, Storage, TrialFields, best_trials, load_study, summary
from hpo.studyfile import AnyStudy, Study

SCHEMA = "hpo.trial/1"


def trial_records(
    storage: Storage, name: str, *, every: bool = False, top: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yield `every` trial of a study by number, or its `top` best, best first.

    Without either, yield the best trial, or the Pareto front where the study has several metrics. Raises HpoError where
    there is no such trial.
    """
    stored = load_study(storage, name)
    attrs = stored.user_attrs
    study, run = any_stored_study(stored) if STUDY in attrs else None, attrs.get(RUN, {})
    # A network study stores whole learning curves, so Optuna's values by epoch are needed for other studies only.
    parts = TrialFields(curves=not isinstance(study, Study))
    if every:
        trials = storage.read_trials(stored._study_id, -1, (), parts)
    else:
        trials = [storage.get_trial(trial._trial_id) for trial in best_trials(storage, name, top)]
    if not trials:
        raise no_best_trial(storage, name)
    metrics = metrics_of(summary(storage, name))
    run_precision = str(run.get("precision", "auto"))
    return (trial_record(name, study, metrics, run_precision, trial) for trial in trials)


def trial_record(
    name: str, study: AnyStudy | None, metrics: Sequence[str], run_precision: str, trial: FrozenTrial
) -> dict[str, Any]:
    """Return the record of a trial; `run_precision` is the one that the study has chosen for "auto"."""
    attrs = trial.system_attrs
    if not isinstance(study, Study):
        params, curve, precision = trial.params, reported_curve(trial), None
    else:
        params, curve = params_of(study, trial), attrs.get(CURVE, {})
        precision = study.value(("training", "precision"), params) if is_whole(study, params) else None
        precision = run_precision if precision == "auto" else precision
    return {
        "schema": SCHEMA,
        "study": name,
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


def _utc(time: datetime.datetime | None) -> datetime.datetime | None:
    """Return a time of Optuna, which is this machine's local time, in UTC."""
    return None if time is None else time.astimezone(datetime.UTC)
