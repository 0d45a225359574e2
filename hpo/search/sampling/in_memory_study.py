"""An Optuna storage for one study in memory, whose trials can be replaced.

A trial's id is its number. Trials are not copied when they are put in, and the caller must not change them afterwards.
There is no best trial, because no sampler and no pruner of hpo reads it. `get_all_trials` returns first the trials of
`search.start_from`, with negative numbers: they are not trials of the study, and nothing here changes them.
"""

from __future__ import annotations

import datetime
from collections.abc import Container, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

STUDY = 0
"""The id of the only study."""


class InMemoryStudy(InMemoryStorage):
    """The in-memory storage; `before` are the trials of `search.start_from`."""

    def __init__(self, before: Sequence[FrozenTrial] = ()) -> None:
        super().__init__()
        self._before = list(before)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of `search.start_from`, and the study's own."""
        before = [trial for trial in self._before if states is None or trial.state in states]
        return before + super().get_all_trials(study_id, deepcopy, states)

    @property
    def count(self) -> int:
        """The number of trials."""
        return len(self._studies[STUDY].trials)

    def put(self, trial: FrozenTrial) -> None:
        """Add the next trial, or replace the trial of the same number."""
        assert trial.number <= self.count, "a study's trials are numbered without gaps"
        trial._trial_id = trial.number
        if trial.number < self.count:
            self._set_trial(trial.number, trial)
        else:
            self._trial_id_to_study_id_and_number[trial.number] = (STUDY, trial.number)
            self._studies[STUDY].trials.append(trial)
            self._max_trial_id = trial.number

    def forget(self, first: int, system_attrs: Mapping[str, Any]) -> None:
        """Remove the trials from this number on, and restore the study's system attributes."""
        for number in range(first, self.count):
            del self._trial_id_to_study_id_and_number[number]
        del self._studies[STUDY].trials[first:]
        self._studies[STUDY].system_attrs = dict(system_attrs)
        self._max_trial_id = first - 1


def in_memory_trial(
    number: int,
    state: TrialState,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    values: list[float] | None = None,
    intermediate_values: Mapping[int, float] | None = None,
    system_attrs: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """Return a trial to put in; `distributions` has those of its parameters, and may have others."""
    now = datetime.datetime.now()
    return FrozenTrial(
        number=number,
        state=state,
        value=None,
        values=values,
        datetime_start=now,
        datetime_complete=now if state.is_finished() else None,
        params=dict(params),
        distributions={name: distributions[name] for name in params},
        user_attrs={},
        system_attrs=dict(system_attrs or {}),
        intermediate_values=dict(intermediate_values or {}),
        trial_id=number,
    )
