"""The study as samplers and pruners see it: an Optuna study in memory, with the trials in hand as running ones.

A population is sampled from this one view, so that each member counts the others as pending, and nothing is read from
the storage again. Trials outside the present space (a study can be extended) keep their numbers here, but not their
results. What samplers and pruners write into a trial's attributes stays here too, but for `kept_attrs`.

Knows nothing of the storage that holds the study, nor of training.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.samplers import joint_space, make_pruner, make_sampler
from hpo.search.space import Values, combinations, contains, distributions, identity, size
from hpo.studyfile import Study
from hpo.training.randomness import derive_seed

ATTEMPTS = 10
"""How often the sampler is asked again for a trial that was there before, before chance is asked instead."""

CHANCES = 50
"""How often chance is asked, before a finite space is searched for what is left."""


class History:
    """All trials of a study, by number; `ask`, `report`, `judge` and `tell` keep it up to date."""

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        self._study_file = study
        self._space = distributions(study)
        self._joint = joint_space(study.search.sampler, self._space)
        if study.search.sampler == "cmaes" and len(self._joint) < 2:
            raise study.error("search.sampler", "cmaes needs two searched numbers or more; use tpe, gp or random")
        self._storage = InMemoryStorage()
        direction = StudyDirection.MINIMIZE if study.search.metric == "val_loss" else StudyDirection.MAXIMIZE
        self._study = optuna.create_study(study_name=study.name, direction=direction, storage=self._storage)
        self._id = self._study._study_id
        self._pruner = make_pruner(study)
        self._seen = {identity(trial.params) for trial in trials}
        self._combinations = combinations(study)
        self._size = size(study)
        for number, trial in enumerate(sorted(trials, key=lambda each: each.number)):
            self._add(number, trial)
        self._earlier = self._study.get_trials(deepcopy=False)
        if study.search.sampler == "qmc":  # the sequence goes on where it was
            for trial in self._earlier:
                self._sampled(trial, attempt=0)

    def _add(self, number: int, trial: FrozenTrial) -> None:
        """Take over a stored trial: one that waits will run next, one that cannot be learnt from counts as failed."""
        assert trial.number == number, "a study's trials are numbered without gaps"
        if trial.state == TrialState.FAIL or not contains(self._space, trial.params):
            now = datetime.datetime.now()
            known = create_trial(state=TrialState.FAIL)
            known.datetime_start = known.datetime_complete = now
        else:
            state = trial.state if trial.state.is_finished() else TrialState.RUNNING
            known = create_trial(
                state=state,
                values=trial.values,
                params=trial.params,
                distributions=self._space,
                system_attrs=kept_attrs(trial.system_attrs),
                intermediate_values=trial.intermediate_values,
            )
        self._storage.create_new_trial(self._id, known)

    def exhausted(self) -> bool:
        """Return whether every different trial of a finite space has been asked for."""
        return not self._study_file.search.repeat and len(self._seen) >= self._size

    def ask(self, count: int) -> list[tuple[int, Values]]:
        """Return up to `count` new trials, (number, values) each; fewer where a finite space is exhausted."""
        asked: list[tuple[int, Values]] = []
        while len(asked) < count and not self.exhausted():
            trial = self._storage.get_trial(self._storage.create_new_trial(self._id))
            values = self._new_values(trial)
            self._seen.add(identity(values))
            for name, distribution in self._space.items():
                internal = distribution.to_internal_repr(values[name])
                self._storage.set_trial_param(trial._trial_id, name, internal, distribution)
            asked.append((trial.number, values))
        return asked

    def _new_values(self, trial: FrozenTrial) -> Values:
        """Return values that no trial has had, unless the study asks for repeats."""
        search = self._study_file.search
        if search.sampler == "grid":
            return self._next_combination()
        for attempt in range(ATTEMPTS + CHANCES):
            values = self._sampled(trial, attempt)
            if search.repeat or identity(values) not in self._seen:
                return values
        return values if self._size == float("inf") else self._next_combination()

    def _sampled(self, trial: FrozenTrial, attempt: int) -> Values:
        search = self._study_file.search
        seed = derive_seed("sampler", search.seed, trial.number, attempt) % 2**32
        if attempt < ATTEMPTS:
            sampler = make_sampler(search.sampler, seed, search.seed, self._earlier)
        else:
            sampler = RandomSampler(seed=seed)
        joint = sampler.sample_relative(self._study, trial, self._joint)
        return {
            name: joint[name] if name in joint else sampler.sample_independent(self._study, trial, name, distribution)
            for name, distribution in self._space.items()
        }

    def _next_combination(self) -> Values:
        """Return the first combination of a finite space that no trial has had; with repeats, begin anew at the end."""
        for values in self._combinations:
            if self._study_file.search.repeat or identity(values) not in self._seen:
                return values
        self._combinations = combinations(self._study_file)
        return next(values for values in self._combinations)

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """Take note of the members' metric after an epoch, by trial number."""
        for number, value in values.items():
            self._storage.set_trial_intermediate_value(number, epoch, value)

    def judge(self, numbers: Iterable[int]) -> set[int]:
        """Return the members to prune, by what they reported last.

        The pruner is asked twice: hyperband learns a member's value when it is asked about it, and no member should
        be judged before it has heard them all.
        """
        if isinstance(self._pruner, NopPruner):
            return set()
        members = {number: self._storage.get_trial(number) for number in numbers}
        for trial in members.values():
            self._pruner.prune(self._study, trial)
        return {number for number, trial in members.items() if self._pruner.prune(self._study, trial)}

    def tell(self, number: int, state: TrialState, value: float | None) -> None:
        """Take note of how a trial ended."""
        self._storage.set_trial_state_values(number, state, None if value is None else [value])

    def attrs(self, number: int) -> dict[str, Any]:
        """Return what the pruner will want to know of the trial after a restart."""
        return kept_attrs(self._storage.get_trial(number).system_attrs)


def kept_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes worth storing: hyperband's rungs, and not CMA-ES's pickles."""
    return {key: value for key, value in attrs.items() if key.startswith("completed_rung_")}
