"""Facts about stored studies: metrics, objective, conditional parameters, trial states in words.

A study that another program stored has no study file: its metrics are called `value`, and what depends on a study file
is None. Opens existing storages, creates none, and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import StorageError, StudyFileError
from hpo.search.study_records import STUDY
from hpo.storage import Storage, StudySummary, open_storage
from hpo.storage.location import locate
from hpo.studyfile import parse_study
from hpo.studyfile.conditions import WHEN
from hpo.studyfile.metrics import curve_key
from hpo.studyfile.objective import VALUE, value_names

STEP = "step"
"""The key of the steps in a curve of reported values; VALUE is the key of the values."""

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def open_existing(url: str | None) -> Storage:
    """Open the storage at `url`. Raises StorageError for a file that does not exist: only a launch creates one."""
    location = locate(url)
    if location.file is not None and not location.file.exists():
        raise StorageError(
            f"{location.shown}: no such file; start a study with `hpo launch FILE`, or name another storage"
        )
    return open_storage(url)


def file_value(user_attrs: Mapping[str, Any], *keys: str) -> Any:
    """Return a value of the study's resolved file; None where the file or the key is missing."""
    try:
        value = json.loads(user_attrs[STUDY])
        for key in keys:
            value = value[key]
    except (KeyError, TypeError, ValueError):
        return None
    return value


def overlap(data: Mapping[str, Any]) -> float:
    """Return the overlap of the splits of a data record, for `statistics.estimate`; 0 where there is one split."""
    return data["validation"] / data["train"] if data.get("other_splits_sha256") else 0.0


def metrics_of(study: StudySummary) -> tuple[str, ...]:
    """Return the names of the study's metrics.

    Without a study file they are those that another program has given, else `value`, or `value 0`, `value 1`.
    """
    metric = file_value(study.user_attrs, "search", "metric")
    if metric is not None:
        return tuple(map(curve_key, [metric] if isinstance(metric, str) else map(str, metric)))
    count = len(study.directions)
    return study.metric_names if len(set(study.metric_names)) == count else value_names(count)


def objective_of(user_attrs: Mapping[str, Any]) -> str | None:
    """Return the reference to the study's objective function; None for other studies."""
    reference = file_value(user_attrs, "objective")
    return None if reference is None else str(reference)


def data_line(data: Mapping[str, Any]) -> str:
    """Return the name of a study's data and the sizes of its splits, from its data record."""
    test = data["test"]  # None where the number is unknown without opening the file
    sealed = "an unknown number of" if test is None else f"{test:,}" if test else "no"
    sizes = f"{data['train']:,} training and {data['validation']:,} validation examples, {sealed} sealed test examples"
    return f"{data['name']}: {sizes}"


def conditional_of(user_attrs: Mapping[str, Any], completed: Sequence[FrozenTrial]) -> frozenset[str]:
    """Return the conditional parameters of a study.

    Without a network study's file, they are the parameters that some of the completed trials lack.
    """
    if file_value(user_attrs, "network") is None:
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


def counts_by_state(states: Mapping[TrialState, int]) -> dict[str, int]:
    """Return the number of trials in each state, zeros included."""
    return {word: states.get(state, 0) for state, word in STATES.items()}


def frozen_text(frozen: Mapping[int, int]) -> str:
    """Return `33 frozen at epoch 3, 5 at epoch 9`, from the number of frozen trials at each epoch; "" for none."""
    return epochs_text(frozen).replace(" at ", " frozen at ", 1)


def epochs_text(frozen: Mapping[int, int]) -> str:
    """Return `33 at epoch 3, 5 at epoch 9`."""
    return ", ".join(f"{count} at epoch {epoch}" for epoch, count in sorted(frozen.items()))


def states_line(states: Mapping[TrialState, int], frozen: Mapping[int, int] | None = None) -> str:
    """Return `62 complete, 2 pruned`, or `none` without trials; see `counts_line`."""
    return counts_line(counts_by_state(states), frozen or {})


def counts_line(counts: Mapping[str, int], frozen: Mapping[int, int]) -> str:
    """Return `8 pruned, 16 running, 33 frozen at epoch 3`, or `none` without trials.

    The running trials that are `frozen`, by epoch, are shown apart from the others.
    """
    parts = []
    for word, count in counts.items():
        is_running = word == STATES[TrialState.RUNNING]
        shown = count - sum(frozen.values()) if is_running else count
        parts += [f"{shown} {word}"] if shown > 0 else []
        parts += [frozen_text(frozen)] if is_running and frozen else []
    return ", ".join(parts) or "none"


def reported_curve(trial: FrozenTrial) -> dict[str, list[Any]]:
    """Return the values that an objective function reported, with their steps; empty where it reported none."""
    steps = sorted(trial.intermediate_values)
    return {STEP: steps, VALUE: [trial.intermediate_values[step] for step in steps]} if steps else {}
