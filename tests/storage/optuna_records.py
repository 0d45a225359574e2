"""Trials and studies for tests, as Optuna's records, and their comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.storage import Storage, TrialResult
from hpo.storage.location import locate

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
RUNNING, WAITING = TrialState.RUNNING, TrialState.WAITING
MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
LR = FloatDistribution(1e-6, 1e-2, log=True)


@contextmanager
def plain(url: str) -> Iterator[RDBStorage]:
    """Open a storage with existing tables as plain Optuna does."""
    storage = RDBStorage(locate(url).full_url, skip_compatibility_check=True, skip_table_creation=True)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def running(lr: float = 1e-3, **changes: Any) -> FrozenTrial:
    return create_trial(**({"state": RUNNING, "params": {"lr": lr}, "distributions": {"lr": LR}} | changes))


def ids(trials: Sequence[FrozenTrial]) -> list[int]:
    return [trial._trial_id for trial in trials]


def states(trials: Sequence[FrozenTrial]) -> list[TrialState]:
    return [trial.state for trial in trials]


def texts(trials: Sequence[FrozenTrial]) -> list[str]:
    """Return trials as comparable text: NaN is not equal to itself, and the order of dictionaries does not matter."""
    return [
        repr({k: sorted(v.items()) if isinstance(v, dict) else v for k, v in vars(trial).items()}) for trial in trials
    ]


def row_counts(storage: RDBStorage) -> dict[str, int]:
    """Return the number of rows of each table that has rows."""
    with storage.engine.connect() as connection:
        counts = {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in models.BaseModel.metadata.sorted_tables
        }
    return {name: count for name, count in counts.items() if count}


def study_with_all_rows(storage: Storage, name: str) -> int:
    """Create a study with a row in every table; return its id."""
    study_id = storage.create_study(name, [MAXIMIZE], {"hpo:study": "{}"})
    storage.set_study_system_attr(study_id, "x:y", 1)
    template = running(user_attrs={"seed": 1}, system_attrs={"x:y": [1]})
    done, trained = ids(storage.create_trials(study_id, [template, template]))
    storage.report(1, {done: 0.5, trained: 0.25})
    storage.finish([TrialResult(done, COMPLETE, (0.5,))])
    storage.record_heartbeat(trained)
    return study_id
