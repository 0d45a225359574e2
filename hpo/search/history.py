"""The study as samplers and pruners see it: an Optuna study in memory, with the trials in hand as running ones.

A population is sampled from this one view, so that each member counts the others as pending, and nothing is read from
the storage again. Trials outside the present space (a study can be extended) keep their numbers here, but not their
results, and the pruner does not judge them. What samplers and pruners write into a trial's attributes stays here too,
but for `kept_attrs`.

Knows nothing of the storage that holds the study, nor of training.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.search.samplers import joint_space, make_pruner, make_sampler
from hpo.search.space import Values, candidate, combination, contains, distributions, identity, size, snapped
from hpo.studyfile import Study
from hpo.training.randomness import derive_seed

ATTEMPTS = 3
"""How often the sampler is asked again for a trial that was there before, before chance is asked instead."""

CHANCES = 50
"""How often chance is asked, before a finite space is searched for what is left."""


class History:
    """All trials of a study, by number; `ask`, `report`, `judge` and `tell` keep it up to date."""

    def __init__(self, study: Study, trials: Sequence[FrozenTrial]) -> None:
        self._study_file = study
        self._space = distributions(study)
        self._joint = joint_space(study.search.sampler, self._space)
        self._storage = InMemoryStorage()
        direction = StudyDirection.MINIMIZE if study.search.metric == "val_loss" else StudyDirection.MAXIMIZE
        self._study = optuna.create_study(study_name=study.name, direction=direction, storage=self._storage)
        self._id = self._study._study_id
        self._pruner = make_pruner(study)
        self._outside = {trial.number for trial in trials if not contains(self._space, trial.params)}
        self._seen = {identity(trial.params) for trial in trials if trial.number not in self._outside}
        self._size = size(study)
        self._next = 0  # every combination before this one has been seen
        for number, trial in enumerate(sorted(trials, key=lambda each: each.number)):
            self._add(number, trial)
        self._earlier = self._study.get_trials(deepcopy=False)
        if study.search.sampler == "qmc":  # the sequence goes on where it was
            for trial in self._earlier:
                self._sampled(trial, attempt=0)

    def _add(self, number: int, trial: FrozenTrial) -> None:
        """Take over a stored trial: one that waits will run next, one that cannot be learnt from counts as failed."""
        assert trial.number == number, "a study's trials are numbered without gaps"
        if trial.state == TrialState.FAIL or number in self._outside:
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
        # As Optuna's own `ask` does: samplers that read the trials from this cache would never see another.
        self._study._thread_local.cached_all_trials = None
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
            return self._next_combination(trial.number)
        for attempt in range(ATTEMPTS + CHANCES):
            values = self._sampled(trial, attempt)
            if search.repeat or identity(values) not in self._seen:
                return values
        return values if math.isinf(self._size) else self._next_combination(trial.number)

    def _sampled(self, trial: FrozenTrial, attempt: int) -> Values:
        search = self._study_file.search
        seed = derive_seed("sampler", search.seed, trial.number, attempt) % 2**32
        if attempt < ATTEMPTS:
            sampler = make_sampler(search.sampler, seed, search.seed, self._joint, self._earlier)
        else:
            sampler = RandomSampler(seed=seed)
        joint = sampler.sample_relative(self._study, trial, self._joint)
        values: Values = {}
        for parameter in self._study_file.parameters:
            name, distribution = parameter.name, self._space[parameter.name]
            if distribution.single():  # nothing to choose, and TPE would complain of it
                value = candidate(parameter, 0)
            elif name in joint:
                value = joint[name]
            else:
                value = sampler.sample_independent(self._study, trial, name, distribution)
            values[name] = snapped(parameter, value)
        return values

    def _next_combination(self, number: int) -> Values:
        """Return the first combination of a finite space that no trial has had; with repeats, the next in turn."""
        if self._study_file.search.repeat:
            return combination(self._study_file, number % int(self._size))
        while identity(values := combination(self._study_file, self._next)) in self._seen:
            self._next += 1
        return values

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """Take note of the members' metric after an epoch, by trial number."""
        for number in values.keys() - self._outside:
            self._storage.set_trial_intermediate_value(number, epoch, values[number])

    def judge(self, numbers: Iterable[int]) -> set[int]:
        """Return the members to prune, by what they reported last.

        The pruner is asked twice: hyperband learns a member's value when it is asked about it, and no member should
        be judged before it has heard them all.
        """
        if isinstance(self._pruner, NopPruner):
            return set()
        members = {number: self._storage.get_trial(number) for number in numbers if number not in self._outside}
        for trial in members.values():
            self._pruner.prune(self._study, trial)
        return {number for number, trial in members.items() if self._pruner.prune(self._study, trial)}

    def tell(self, number: int, state: TrialState, value: float | None) -> None:
        """Take note of how a trial ended."""
        if number not in self._outside:
            self._storage.set_trial_state_values(number, state, None if value is None else [value])

    def attrs(self, number: int) -> dict[str, Any]:
        """Return what the pruner will want to know of the trial after a restart."""
        return kept_attrs(self._storage.get_trial(number).system_attrs)


def kept_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes worth storing: hyperband's rungs, and not CMA-ES's pickles."""
    return {key: value for key, value in attrs.items() if key.startswith("completed_rung_")}
