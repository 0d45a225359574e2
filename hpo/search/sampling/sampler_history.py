"""The study as samplers and pruners see it: an Optuna study in memory, with the trials in hand as running ones.

A population is sampled from this one view, so that each member counts the others as pending, and nothing that is known
is read from the storage again. What other processes do with the study comes in by `sync`; until then a trial of theirs
is a running one. Trials outside the present space (a study can be extended) keep their numbers here, but not their
results, and the pruner does not judge them. What samplers and pruners write into a trial's attributes stays here too,
but for `kept_attrs`. Completed trials of the studies that this one starts from are known to samplers, and to them
alone: they have numbers below 0, are not counted, and nothing is pruned against them.

Knows nothing of the storage that holds the study, nor of training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.search.points import points
from hpo.search.sampling.in_memory_study import STUDY, Mirror, mirrored
from hpo.search.sampling.pruners import IncrementalMedianPruner
from hpo.search.sampling.samplers import GENERATION, joint_space, make_pruner, make_sampler
from hpo.search.sampling.tpe import Observations
from hpo.search.space import (
    Values,
    belongs,
    candidate,
    combination,
    distributions,
    groups,
    identity,
    size,
    snapped,
)
from hpo.storage.pareto import directions, trials_since_best
from hpo.studyfile import Study
from hpo.training.seeds import derive_seed

CONSTRAINT = "constraints:"
"""The beginning of the attributes in which Optuna keeps by how much a trial exceeds a constraint, 0 or less if not."""

ATTEMPTS = 3
"""How often the sampler is asked again for a trial that was there before, before chance is asked instead."""

CHANCES = 50
"""How often chance is asked, before a finite space is searched for what is left."""

RUNG = "completed_rung_"
"""The beginning of the attributes in which hyperband keeps what a trial reached."""


class History:
    """All trials of a study, by number; `sync`, `ask`, `report`, `judge` and `tell` keep it up to date.

    `last` is the storage's id of the last trial known, `unfinished` those of the trials that have not ended. `before`
    are completed trials of the studies that this one starts from; those outside its space are left out. `constraints`
    says what values come to of the study's limits.
    """

    def __init__(
        self,
        study: Study,
        trials: Sequence[FrozenTrial] = (),
        before: Sequence[FrozenTrial] = (),
        constraints: Callable[[Values], Mapping[str, float]] = lambda values: {},
    ) -> None:
        self._study_file, self._constraints = study, constraints
        self._space = distributions(study)
        self._joint = joint_space(study.search.sampler, groups(study, {})[0])
        before = self._numbered(before)
        self._mirror = Mirror(before)
        self._study = optuna.create_study(study_name=study.name, directions=directions(study), storage=self._mirror)
        self._pruner = make_pruner(study)
        self._size = size(study)
        self._observations = Observations(self._space, self._study, len(before))
        for trial in before:
            self._observations.note(trial)
        self._outside: set[int] = set()
        self._seen_before = {identity(trial.params) for trial in before}
        self._seen = set(self._seen_before)
        self._points, self._repeats = points(study), study.search.repeats
        self._first: dict[int, Values] = {}  # with repeats: the values of each configuration's first trial
        self._next = 0  # every combination before this one has been seen
        self._drawn = 0  # trials for which qmc's sequence has been asked
        self._before: tuple[Mapping[str, Any], int] = ({}, 0)  # the samplers' attributes of the study, likewise
        self._ids: dict[int, int] = {}  # of the unfinished
        self._earlier: list[FrozenTrial] = []
        self.last = -1
        self.sync(trials)
        self._earlier = self._study.get_trials(deepcopy=False)

    def _numbered(self, before: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials of other studies that lie inside the space, numbered up to -1, as this study has them."""
        inside = [trial for trial in before if belongs(self._study_file, self._space, trial.params)]
        parameters = {parameter.name: parameter for parameter in self._study_file.parameters}
        numbered = []
        for place, trial in enumerate(inside):
            values = {name: snapped(parameters[name], value) for name, value in trial.params.items()}
            attrs = self._of_a_generation(self._constrained({}, values))
            number = place - len(inside)
            numbered.append(mirrored(number, TrialState.COMPLETE, values, self._space, trial.values, None, attrs))
        return numbered

    def _constrained(self, attrs: Mapping[str, Any], values: Values) -> Mapping[str, Any]:
        """Return a completed trial's attributes, its constraints among them: samplers want all to have them, or none.

        Those of another study, or that another program has added, have none.
        """
        noted = any(key.startswith(CONSTRAINT) for key in attrs)
        return attrs if noted else {**attrs, **self._constraints(values)}

    @property
    def count(self) -> int:
        """How many trials the study has."""
        return self._mirror.count

    @property
    def unfinished(self) -> set[int]:
        """The storage's ids of the trials that have not ended."""
        return set(self._ids.values())

    def sync(self, trials: Iterable[FrozenTrial]) -> None:
        """Take over stored trials: new ones, and known ones that have ended elsewhere.

        One that waits will run next, so it counts as running; one that cannot be learnt from counts as failed.
        """
        for trial in sorted(trials, key=lambda each: each.number):
            if trial.number == self.count or trial.number in self._outside:
                self._note_place(trial)
            self.last = max(self.last, trial._trial_id)
            if trial.state.is_finished():
                self._ids.pop(trial.number, None)
            else:
                self._ids[trial.number] = trial._trial_id
            self._put(trial)
        if self._study_file.search.sampler == "qmc":  # the sequence goes on where it was
            for number in filter(self._is_drawn, range(self._drawn, self.count)):
                self._sampled(self._mirror.get_trial(number), attempt=0)

    def _note_place(self, trial: FrozenTrial) -> None:
        """Take note of whether a trial lies inside the space, which may be known only once it is taken up."""
        if belongs(self._study_file, self._space, trial.params):
            self._outside.discard(trial.number)
            self._see(trial.number, trial.params)
        else:
            self._outside.add(trial.number)

    def _put(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.FAIL or trial.number in self._outside:
            self._mirror.put(mirrored(trial.number, TrialState.FAIL, {}, {}))
            return
        attrs: Mapping[str, Any] = kept_attrs(trial.system_attrs)
        if trial.state == TrialState.COMPLETE:
            attrs = self._constrained(attrs, trial.params)
        taken_over = mirrored(
            trial.number,
            trial.state if trial.state.is_finished() else TrialState.RUNNING,
            trial.params,
            self._space,
            trial.values,
            trial.intermediate_values,
            self._of_a_generation(attrs),
        )
        self._mirror.put(taken_over)
        self._note(taken_over)

    def _of_a_generation(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a trial's attributes, a generation among them for NSGA-II: what it has not chosen is of the first."""
        return {GENERATION: 0, **attrs} if self._study_file.search.sampler == "nsga2" else dict(attrs)

    def _note(self, trial: FrozenTrial) -> None:
        self._observations.note(trial)
        if isinstance(self._pruner, IncrementalMedianPruner):
            self._pruner.note(trial)

    def restart(self, trials: Iterable[FrozenTrial]) -> None:
        """Take note that trials are trained from their beginning, whatever was reported of them before."""
        for trial in trials:
            if trial.number in self._outside:
                self._note_place(trial)
            if trial.number not in self._outside:
                attrs = self._of_a_generation({})
                running = mirrored(trial.number, TrialState.RUNNING, trial.params, self._space, system_attrs=attrs)
                self._mirror.put(running)

    @property
    def trials_since_best(self) -> int:
        """See `trials_since_best`; the trials of the studies that this one starts from do not count."""
        trials = self._study.get_trials(deepcopy=False)
        return trials_since_best([trial for trial in trials if trial.number >= 0], self._study.directions)

    def exhausted(self) -> bool:
        """Return whether every different trial of a finite space has been asked for."""
        return not self._study_file.search.repeat and len(self._seen) >= self._size

    def ask(self, count: int, enough: Callable[[], bool] = lambda: False) -> list[tuple[int, Values]]:
        """Return up to `count` new trials, (number, values) each; fewer where a finite space is exhausted, or `enough`.

        The file's points are among them even where the studies that this one starts from have all that there is.
        They are to be stored at once and then `stored`, or to be `forget`-ten.
        """
        asked: list[tuple[int, Values]] = []
        self._read_anew()
        self._before = self._mirror.get_study_system_attrs(STUDY), self._drawn
        while len(asked) < count and not enough() and (self._is_given(self.count) or not self.exhausted()):
            trial = self._mirror.get_trial(self._mirror.create_new_trial(STUDY))
            values = self._first_of(trial.number)
            if values is None:
                values = self._new_values(trial)
            self._take(trial, values)
            asked.append((trial.number, values))
        return asked

    def ask_for(self, given: Values, number: int | None = None) -> tuple[int, Values]:
        """Return a new trial with these values, and with the sampler's for all that they leave open.

        Or the trial of that `number`, which has no parameters yet.
        """
        self._read_anew()
        if number is None:
            number = self._mirror.create_new_trial(STUDY)
        else:
            self._outside.discard(number)
            self._mirror.put(mirrored(number, TrialState.RUNNING, {}, {}))
        trial = self._mirror.get_trial(number)
        for attempt in range(ATTEMPTS + CHANCES):
            values = self._sampled(trial, attempt, given)
            if self._study_file.search.repeat or identity(values) not in self._seen:
                break
        self._take(trial, values)
        return trial.number, values

    def _read_anew(self) -> None:
        """As Optuna's own `ask` does: samplers that read the trials from this cache would never see another."""
        self._study._thread_local.cached_all_trials = None

    def _take(self, trial: FrozenTrial, values: Values) -> None:
        """Take note of what a new trial has got."""
        self._see(trial.number, values)
        for name, value in values.items():
            internal = self._space[name].to_internal_repr(value)
            self._mirror.set_trial_param(trial._trial_id, name, internal, self._space[name])
        for key, value in self._of_a_generation(self._mirror.get_trial(trial.number).system_attrs).items():
            self._mirror.set_trial_system_attr(trial.number, key, value)
        self._observations.note(self._mirror.get_trial(trial.number))

    def stored(self, trials: Iterable[FrozenTrial]) -> None:
        """Take note of the ids that the trials asked for have got."""
        for trial in trials:
            self._ids[trial.number] = trial._trial_id
            self.last = max(self.last, trial._trial_id)

    def forget(self, asked: Sequence[tuple[int, Values]]) -> None:
        """Take back the last trials asked for: others have taken their numbers."""
        attrs, self._drawn = self._before
        self._mirror.forget(asked[0][0], attrs)
        self._observations.forget(asked[0][0])
        new = {identity(values) for number, values in asked if self._first_of(number) is None}
        self._seen -= new - self._seen_before
        for number, _ in asked:
            self._first.pop(number, None)
        self._next = 0

    def _new_values(self, trial: FrozenTrial) -> Values:
        """Return values that no trial has had, unless the study lets them come again: the file's points first."""
        search = self._study_file.search
        index = trial.number // self._repeats
        if index < len(self._points):
            return self._points[index]
        if search.sampler == "grid":
            return self._next_combination(index)
        for attempt in range(ATTEMPTS + CHANCES):
            values = self._sampled(trial, attempt)
            if search.repeat or identity(values) not in self._seen:
                return values
        return values if self._size == math.inf else self._next_combination(index)

    def _sampled(self, trial: FrozenTrial, attempt: int, given: Mapping[str, Any] = MappingProxyType({})) -> Values:
        search = self._study_file.search
        seed = derive_seed("sampler", search.seed, trial.number, attempt) % 2**32
        self._drawn = max(self._drawn, trial.number + 1)
        if attempt < ATTEMPTS:
            earlier, observations = self._earlier, self._observations
            sampler = make_sampler(search.sampler, seed, search.seed, self._joint, earlier, observations)
        else:
            sampler = RandomSampler(seed=seed)
        values = self._group_values(sampler, trial, groups(self._study_file, {})[0], self._joint) | dict(given)
        for group in groups(self._study_file, values)[1:]:
            # TPE learns from the trials that have these; the others know only what every trial has.
            joint = joint_space("tpe", group) if search.sampler == "tpe" else {}
            values |= self._group_values(sampler, trial, group, joint)
        values |= given
        return {parameter.name: values[parameter.name] for parameter in self._study_file.applicable_parameters(values)}

    def _group_values(
        self,
        sampler: BaseSampler,
        trial: FrozenTrial,
        group: Mapping[str, BaseDistribution],
        jointly: dict[str, BaseDistribution],
    ) -> Values:
        """Return a sampler's values for a part of the space, those that it can choose `jointly` at once."""
        joint = sampler.sample_relative(self._study, trial, jointly) if jointly else {}
        values: Values = {}
        for parameter in self._study_file.parameters:
            if parameter.name not in group:
                continue
            name, distribution = parameter.name, self._space[parameter.name]
            if distribution.single():  # nothing to choose, and TPE would complain of it
                value = candidate(parameter, 0)
            elif name in joint:
                value = joint[name]
            else:
                value = sampler.sample_independent(self._study, trial, name, distribution)
            values[name] = snapped(parameter, value)
        return values

    def _next_combination(self, index: int) -> Values:
        """Return the first combination of a finite space that no trial has had; or the one whose turn it is."""
        if self._study_file.search.repeat:
            return combination(self._study_file, index % int(self._size))
        while identity(values := combination(self._study_file, self._next)) in self._seen:
            self._next += 1
            assert self._next < self._size, "a space that is not exhausted has a combination that no trial has had"
        return values

    def _see(self, number: int, values: Values) -> None:
        self._seen.add(identity(values))
        if self._repeats > 1 and number % self._repeats == 0:
            self._first[number] = values

    def _first_of(self, number: int) -> Values | None:
        """Return the values that a trial repeats; None for the first of its configuration."""
        repeat = number % self._repeats
        return self._first.get(number - repeat) if repeat else None

    def _is_given(self, number: int) -> bool:
        """Return whether a trial repeats another, or is a point of the file: those are trained whatever was seen."""
        return number // self._repeats < len(self._points) or self._first_of(number) is not None

    def _is_drawn(self, number: int) -> bool:
        """Return whether a trial's values are the sampler's, not the file's and no repetition."""
        return number % self._repeats == 0 and number // self._repeats >= len(self._points)

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """Take note of the members' metric after an epoch, by trial number: only pruning makes use of it."""
        if isinstance(self._pruner, NopPruner):
            return
        for number in values.keys() - self._outside:
            self._mirror.set_trial_intermediate_value(number, epoch, values[number])

    def judge(self, numbers: Iterable[int]) -> set[int]:
        """Return the members to prune, by what they reported last.

        Hyperband learns a member's value when it is asked about it, and no member should be judged before it has heard
        them all: it is asked twice.
        """
        if isinstance(self._pruner, NopPruner):
            return set()
        members = {number: self._mirror.get_trial(number) for number in numbers if number not in self._outside}
        if isinstance(self._pruner, HyperbandPruner):
            for trial in members.values():
                self._pruner.prune(self._study, trial)
        return {number for number, trial in members.items() if self._pruner.prune(self._study, trial)}

    def exceeds(self, number: int, constraints: Mapping[str, float]) -> None:
        """Take note of what of the study's limits a trial comes to: above 0 it exceeds one."""
        if number not in self._outside:
            for key, value in constraints.items():
                self._mirror.set_trial_system_attr(number, key, value)

    def tell(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """Take note of how a trial ended, with which values."""
        self._ids.pop(number, None)
        if number not in self._outside:
            self._mirror.set_trial_state_values(number, state, values or None)
            self._note(self._mirror.get_trial(number))

    def attrs(self, number: int) -> dict[str, Any]:
        """Return what pruner and sampler will want to know of the trial after a restart."""
        return kept_attrs(self._mirror.get_trial(number).system_attrs)


def kept_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes worth storing: rungs, constraints and generations, and not CMA-ES's pickles."""
    return {key: value for key, value in attrs.items() if key.startswith((RUNG, CONSTRAINT, GENERATION))}
