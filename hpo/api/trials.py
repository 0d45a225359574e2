"""Trials of a stored study as records, their learning curves as NumPy arrays, and all of them as a pandas DataFrame."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hpo.errors import HpoError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)  # == of arrays is an array, not a bool
class Trial:
    """A trial of a stored study.

    `state` is complete, pruned, failed, running or waiting. `value` is the score, an accuracy as a fraction or a loss
    in nats; of a pruned trial it is the last value, and None where there is none. `values` maps each of several metrics
    to the trial's value; it is empty where there is one metric, or no value. `params` are the searched values by name.
    `curve` maps train_loss, train_accuracy, val_loss and val_accuracy to arrays [epochs], empty before the first epoch;
    in an objective study it maps step and value to what the objective function reported. `started` and `ended` are in
    UTC. `reason` is the reason why it failed.
    """

    study: str
    number: int
    state: str
    value: float | None
    params: Mapping[str, Any]
    seed: int | None
    epochs: int
    precision: str | None
    device: str | None
    started: datetime.datetime | None
    ended: datetime.datetime | None
    reason: str | None
    curve: Mapping[str, NDArray[np.float64]]
    values: Mapping[str, float] = field(default_factory=dict)


def trial_of(record: Mapping[str, Any]) -> Trial:
    """Return the trial of a record (hpo.results.export.trials)."""
    import numpy as np

    known = {key: value for key, value in record.items() if key != "schema"}
    curve = {metric: np.array(values, dtype=np.float64) for metric, values in record["curve"].items()}
    return Trial(**{**known, "curve": curve})


def stacked_curves(trials: Sequence[Trial]) -> dict[str, NDArray[np.float64]]:
    """Return the curves of several trials, metric -> [trials, epochs], with NaN after the end of each."""
    import numpy as np

    curves = [trial.curve for trial in trials]
    metrics = dict.fromkeys(metric for curve in curves for metric in curve)
    epochs = max((len(values) for curve in curves for values in curve.values()), default=0)
    found = {metric: np.full((len(curves), epochs), np.nan) for metric in metrics}
    for row, curve in enumerate(curves):
        for metric, values in curve.items():
            found[metric][row, : len(values)] = values
    return found


OPTUNA_STATES = {"failed": "FAIL"}
"""The states that Optuna does not name like hpo, in capitals."""


def dataframe(trials: Iterable[Trial]) -> Any:
    """Return a pandas DataFrame with the columns of Optuna's, a row a trial. Raises HpoError without pandas."""
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise HpoError("trials_dataframe: needs pandas; install it with `pip install pandas`") from error
    return pandas.DataFrame([_row(trial) for trial in trials])


def _row(trial: Trial) -> dict[str, Any]:
    values: dict[str, float | None] = {f"values_{metric}": value for metric, value in trial.values.items()}
    duration = trial.ended - trial.started if trial.started and trial.ended else None
    return {
        "number": trial.number,
        **(values or {"value": trial.value}),
        "datetime_start": trial.started,
        "datetime_complete": trial.ended,
        "duration": duration,
        **{f"params_{name}": value for name, value in trial.params.items()},
        "seed": trial.seed,
        "epochs": trial.epochs,
        "precision": trial.precision,
        "device": trial.device,
        "reason": trial.reason,
        "state": OPTUNA_STATES.get(trial.state, trial.state.upper()),
    }
