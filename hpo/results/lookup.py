"""What a storage already holds, for commands that only ask: opened where there is one, and never made.

Studies that another program wrote into the same tables are met here too; what only hpo knows of a study is then absent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.errors import StorageError, StudyFileError
from hpo.search.study_records import STUDY
from hpo.storage import Storage, StudySummary, open_storage
from hpo.storage.location import locate
from hpo.studyfile import parse_study
from hpo.studyfile.conditions import WHEN

VALUE = "value"
"""What is scored by a metric that hpo does not know."""


def open_existing(url: str | None) -> Storage:
    """Open the storage at `url`; unlike a launch, make none where there is none."""
    location = locate(url)
    if location.file is not None and not location.file.exists():
        raise StorageError(
            f"{location.shown}: no such file; start a study with `hpo launch FILE`, or name another storage"
        )
    return open_storage(url)


def conditional_of(user_attrs: Mapping[str, Any], completed: Sequence[FrozenTrial]) -> frozenset[str]:
    """Return the parameters that not every trial of the study has.

    Where no file of hpo's says so, as with the user's own objective, it is seen from the trials that are completed.
    """
    if said(user_attrs, "network") is None:
        names = {name for trial in completed for name in trial.params}
        return frozenset(name for name in names if any(name not in trial.params for trial in completed))
    text = user_attrs.get(STUDY)
    if not isinstance(text, str) or f'"{WHEN}"' not in text:
        return frozenset()
    try:
        study = parse_study(json.loads(text), "")
    except (StudyFileError, ValueError):
        return frozenset()
    return frozenset(parameter.name for parameter in study.parameters if parameter.when is not None)


def metrics_of(study: StudySummary) -> tuple[str, ...]:
    """Return what the study's trials are scored by, a name for each of its objectives.

    Where only its user knows what its values are, they are called `value`, or `value 0`, `value 1` of several.
    """
    metric = said(study.user_attrs, "search", "metric")
    if metric is not None:
        return (metric,) if isinstance(metric, str) else tuple(map(str, metric))
    count = len(study.directions)
    return (VALUE,) if count == 1 else tuple(f"{VALUE} {number}" for number in range(count))


def objective_of(user_attrs: Mapping[str, Any]) -> str | None:
    """Return the reference to the study's own objective, or None where it has none."""
    reference = said(user_attrs, "objective")
    return None if reference is None else str(reference)


def said(user_attrs: Mapping[str, Any], *keys: str) -> Any:
    """Return what the study's file says, or None where there is no file, or it does not say it."""
    try:
        value = json.loads(user_attrs[STUDY])
        for key in keys:
            value = value[key]
    except (KeyError, TypeError, ValueError):
        return None
    return value
