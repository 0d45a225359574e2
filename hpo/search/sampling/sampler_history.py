"""The in-memory Optuna study that samplers and pruners of a network study read.

All members of a population are sampled from this study, so that each takes the others into account, and known trials
are not read from the storage again. Trials of other workers come in by `sync`; until then they count as running. Trials
outside the present search space (a study can be extended) keep their numbers here, but not their results, and are not
pruned. Attributes that samplers and pruners write stay in memory, except `stored_attrs`. Completed trials of the
studies in `search.start_from` are visible to samplers only: they have negative numbers, are not counted, and pruners do
not compare with them.

Knows neither the storage nor training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from hpo.search.sampling.configurations import Configurations
from hpo.search.sampling.in_memory_study import STUDY, InMemoryStudy, in_memory_trial
from hpo.search.sampling.pruners import HYPERBAND_RUNG, IncrementalMedianPruner, max_epochs
from hpo.search.sampling.samplers import GENERATION, joint_space, make_pruner, make_sampler
from hpo.search.sampling.tpe import Observations
from hpo.search.space import Values, belongs, candidate, config_of, distributions, groups, snapped
from hpo.search.study_records import directions
from hpo.storage.pareto import Losses, trials_since_best
from hpo.studyfile import Study
from hpo.training.seeds import derive_seed

CONSTRAINT = "constraints:"
"""Prefix of the attributes with a trial's constraint values: above 0 where the trial violates the constraint."""

SAMPLER_ATTEMPTS = 3
"""Attempts of the sampler at a configuration that no trial has had, before random sampling is tried."""

RANDOM_ATTEMPTS = 50
"""Attempts of random sampling, before a finite space is searched for the first unused configuration."""


class SamplerHistory:
    """All trials of a study by number, updated by `sync`, `ask`, `report`, `prune` and `tell`.

    `last` is the storage id of the newest known trial, `unfinished` are the ids of trials that have not ended. `before`
    are completed trials of the studies in `search.start_from`; those outside the search space are left out.
    `constraints` returns the constraint values of a configuration. `trials_since_best` counts pruned trials with
    `count_pruned` only.
    """

    def __init__(
        self,
        study: Study,
        trials: Sequence[FrozenTrial] = (),
        before: Sequence[FrozenTrial] = (),
        constraints: Callable[[Values], Mapping[str, float]] = lambda values: {},
        *,
        count_pruned: bool = True,
    ) -> None:
        self._study_file, self._constraints, self._count_pruned = study, constraints, count_pruned
        self._space = distributions(study)
        self._joint = joint_space(study.search.sampler, groups(study, {})[0])
        before = self._numbered(before)
        self._in_memory = InMemoryStudy(before)
        self._study = optuna.create_study(study_name=study.name, directions=directions(study), storage=self._in_memory)
        self._pruner = make_pruner(study)
        self._epochs_differ = len(set(study.possible_values(("training", "epochs")).values())) > 1
        self._observations = Observations(self._space, self._study, len(before))
        for trial in before:
            self._observations.add(trial)
        self._outside_space: set[int] = set()
        self._configurations = Configurations(study, [trial.params for trial in before])
        self._sampled_count = 0  # trials for which qmc's sequence was advanced
        # The study's attributes and _sampled_count before `ask`.
        self._before_ask: tuple[Mapping[str, Any], int] = ({}, 0)
        self._ids: dict[int, int] = {}  # of unfinished trials
        self._earlier: list[FrozenTrial] = []
        self.last = -1
        self.sync(trials)
        self._earlier = self._study.get_trials(deepcopy=False)

    def _numbered(self, before: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Return the trials of other studies that lie inside the search space, numbered up to -1."""
        inside = [trial for trial in before if belongs(self._study_file, self._space, trial.params)]
        parameters = {parameter.name: parameter for parameter in self._study_file.parameters}
        numbered = []
        for place, trial in enumerate(inside):
            values = {name: snapped(parameters[name], value) for name, value in trial.params.items()}
            attrs = self._with_generation(self._constrained({}, values))
            number = place - len(inside)
            numbered.append(
                in_memory_trial(number, TrialState.COMPLETE, values, self._space, trial.values, None, attrs)
            )
        return numbered

    def _constrained(self, attrs: Mapping[str, Any], values: Values) -> Mapping[str, Any]:
        """Return a completed trial's attributes with its constraint values: samplers want them for all trials or none.

        Trials of another study, or added by another program, lack them.
        """
        has_constraints = any(key.startswith(CONSTRAINT) for key in attrs)
        return attrs if has_constraints else {**attrs, **self._constraints(values)}

    @property
    def count(self) -> int:
        """The number of trials."""
        return self._in_memory.count

    @property
    def unfinished_numbers(self) -> set[int]:
        """The numbers of the trials that have not ended."""
        return set(self._ids)

    @property
    def unfinished(self) -> set[int]:
        """The storage ids of the trials that have not ended."""
        return set(self._ids.values())

    def sync(self, trials: Iterable[FrozenTrial]) -> None:
        """Add stored trials: new ones, and known ones that other workers have ended.

        A waiting trial counts as running, and a trial that samplers cannot use as failed.
        """
        for trial in sorted(trials, key=lambda each: each.number):
            if trial.number == self.count or trial.number in self._outside_space:
                self._check_space(trial)
            self.last = max(self.last, trial._trial_id)
            if trial.state.is_finished():
                self._ids.pop(trial.number, None)
            else:
                self._ids[trial.number] = trial._trial_id
            self._put(trial)
        if self._study_file.search.sampler == "qmc":  # the sequence continues where it was
            for number in filter(self._configurations.is_sampled, range(self._sampled_count, self.count)):
                self._sampled(self._in_memory.get_trial(number), 0, {})

    def _check_space(self, trial: FrozenTrial) -> None:
        """Record whether a trial lies inside the search space; a trial without parameters yet may be checked again."""
        if belongs(self._study_file, self._space, trial.params):
            self._outside_space.discard(trial.number)
            self._configurations.add(trial.number, trial.params)
        else:
            self._outside_space.add(trial.number)

    def _put(self, trial: FrozenTrial) -> None:
        if trial.state == TrialState.FAIL or trial.number in self._outside_space:
            failed = in_memory_trial(trial.number, TrialState.FAIL, {}, {})
            self._in_memory.put(failed)
            self._observations.add(failed)
            return
        attrs: Mapping[str, Any] = stored_attrs(trial.system_attrs)
        if trial.state == TrialState.COMPLETE:
            attrs = self._constrained(attrs, trial.params)
        known = in_memory_trial(
            trial.number,
            trial.state if trial.state.is_finished() else TrialState.RUNNING,
            trial.params,
            self._space,
            trial.values,
            trial.intermediate_values,
            self._with_generation(attrs),
        )
        self._in_memory.put(known)
        self._add(known)

    def _with_generation(self, attrs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a trial's attributes, for NSGA-II with a generation: the first for trials that it has not sampled."""
        return {GENERATION: 0, **attrs} if self._study_file.search.sampler == "nsga2" else dict(attrs)

    def _add(self, trial: FrozenTrial) -> None:
        self._observations.add(trial)
        if isinstance(self._pruner, IncrementalMedianPruner):
            self._pruner.add(trial)

    def restart(self, trials: Iterable[FrozenTrial]) -> None:
        """Reset trials that are trained again from epoch 1."""
        for trial in trials:
            if trial.number in self._outside_space:
                self._check_space(trial)
            if trial.number not in self._outside_space:
                attrs = self._with_generation({})
                running = in_memory_trial(
                    trial.number, TrialState.RUNNING, trial.params, self._space, system_attrs=attrs
                )
                self._in_memory.put(running)

    @property
    def trials_since_best(self) -> int:
        """See `hpo.storage.pareto.trials_since_best`; trials of `search.start_from` do not count."""
        trials = self._study.get_trials(deepcopy=False)
        own = [trial for trial in trials if trial.number >= 0]
        return trials_since_best(own, self._study.directions, count_pruned=self._count_pruned)

    @property
    def can_ask(self) -> bool:
        """Whether there is a configuration for another trial."""
        return self._configurations.fixed(self.count) is not None or not self._configurations.exhausted

    def ask(self, count: int, enough: Callable[[], bool] = lambda: False) -> list[tuple[int, Values]]:
        """Return up to `count` new trials, (number, values) each; fewer where a finite space is exhausted, or `enough`.

        Points of the study file come first, even where `search.start_from` has the same configurations. The caller
        stores the trials at once and calls `stored`, or calls `forget`.
        """
        asked: list[tuple[int, Values]] = []
        self._drop_cached_trials()
        self._before_ask = self._in_memory.get_study_system_attrs(STUDY), self._sampled_count
        while len(asked) < count and not enough() and self.can_ask:
            trial = self._in_memory.get_trial(self._in_memory.create_new_trial(STUDY))
            values = self._configurations.fixed(trial.number)
            if values is None:
                values = self._new_values(trial)
            self._set_params(trial, values)
            asked.append((trial.number, values))
        return asked

    def ask_for(self, given: Values, number: int | None = None) -> tuple[int, Values]:
        """Return a new trial with these values, and sampled values for the other parameters.

        With `number` it is that trial, which has no parameters yet.
        """
        self._drop_cached_trials()
        if number is None:
            number = self._in_memory.create_new_trial(STUDY)
        else:
            self._outside_space.discard(number)
            self._in_memory.put(in_memory_trial(number, TrialState.RUNNING, {}, {}))
        trial = self._in_memory.get_trial(number)
        values = self._attempted(trial, given)
        self._set_params(trial, values)
        return trial.number, values

    def _drop_cached_trials(self) -> None:
        """Drop Optuna's cached trials, as its own `ask` does: samplers would never see a newer trial."""
        self._study._thread_local.cached_all_trials = None

    def _set_params(self, trial: FrozenTrial, values: Values) -> None:
        """Set the parameters of a new trial."""
        self._configurations.add(trial.number, values)
        for name, value in values.items():
            internal = self._space[name].to_internal_repr(value)
            self._in_memory.set_trial_param(trial._trial_id, name, internal, self._space[name])
        for key, value in self._with_generation(self._in_memory.get_trial(trial.number).system_attrs).items():
            self._in_memory.set_trial_system_attr(trial.number, key, value)
        self._observations.add(self._in_memory.get_trial(trial.number))

    def stored(self, trials: Iterable[FrozenTrial]) -> None:
        """Set the storage ids of the trials of the last `ask`."""
        for trial in trials:
            self._ids[trial.number] = trial._trial_id
            self.last = max(self.last, trial._trial_id)

    def forget(self, asked: Sequence[tuple[int, Values]]) -> None:
        """Remove the trials of the last `ask`: another worker has taken their numbers."""
        attrs, self._sampled_count = self._before_ask
        self._in_memory.forget(asked[0][0], attrs)
        self._observations.forget(asked[0][0])
        self._configurations.forget(asked)

    def _new_values(self, trial: FrozenTrial) -> Values:
        """Return a configuration that no trial has had, unless the study allows repetition."""
        if self._study_file.search.sampler == "grid":
            return self._configurations.next_combination(trial.number)
        values = self._attempted(trial)
        if self._configurations.allows(values) or not self._configurations.finite:
            return values
        return self._configurations.next_combination(trial.number)

    def _attempted(self, trial: FrozenTrial, given: Mapping[str, Any] = MappingProxyType({})) -> Values:
        """Return the first sampled configuration that a new trial may have, or the last attempt where none may be."""
        for attempt in range(SAMPLER_ATTEMPTS + RANDOM_ATTEMPTS):
            values = self._sampled(trial, attempt, given)
            if self._configurations.allows(values):
                break
        return values

    def _sampled(self, trial: FrozenTrial, attempt: int, given: Mapping[str, Any]) -> Values:
        search = self._study_file.search
        seed = derive_seed("sampler", search.seed, trial.number, attempt) % 2**32
        self._sampled_count = max(self._sampled_count, trial.number + 1)
        if attempt < SAMPLER_ATTEMPTS:
            earlier, observations = self._earlier, self._observations
            sampler = make_sampler(search.sampler, seed, search.seed, self._joint, earlier, observations)
        else:
            sampler = RandomSampler(seed=seed)
        values = self._group_values(sampler, trial, groups(self._study_file, {})[0], self._joint) | dict(given)
        for group in groups(self._study_file, values)[1:]:
            # TPE uses the trials that have these parameters; the other samplers use only what every trial has.
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
        """Return a sampler's values for one group of parameters, those in `jointly` sampled together."""
        joint = sampler.sample_relative(self._study, trial, jointly) if jointly else {}
        values: Values = {}
        for parameter in self._study_file.parameters:
            if parameter.name not in group:
                continue
            name, distribution = parameter.name, self._space[parameter.name]
            if distribution.single():  # a single value: TPE would warn
                value = candidate(parameter, 0)
            elif name in joint:
                value = joint[name]
            else:
                value = sampler.sample_independent(self._study, trial, name, distribution)
            values[name] = snapped(parameter, value)
        return values

    def report(self, epoch: int, values: Mapping[int, float]) -> None:
        """Add the members' metric after an epoch, by trial number, for the pruner."""
        if isinstance(self._pruner, NopPruner):
            return
        for number in values.keys() - self._outside_space:
            self._in_memory.set_trial_intermediate_value(number, epoch, values[number])

    def prune(self, numbers: Iterable[int]) -> set[int]:
        """Return the members to prune, by their last reported value.

        Hyperband records a member's value when it is asked about the member, and must have all values before it
        decides: it is asked twice.
        """
        if isinstance(self._pruner, NopPruner):
            return set()
        members = {number: self._in_memory.get_trial(number) for number in numbers if number not in self._outside_space}
        if isinstance(self._pruner, HyperbandPruner):
            for trial in members.values():
                self._pruner.prune(self._study, trial)
        return {number for number, trial in members.items() if self._pruner.prune(self._study, trial)}

    def freeze(self, number: int, epoch: int, reached: Losses) -> None:
        """Add what a trial has reached, for the sampler: one that runs counts as pruned there, a completed one not."""
        ended = number not in self._ids and self._in_memory.get_trial(number).state != TrialState.PRUNED
        if number not in self._outside_space and not ended:
            self._observations.freeze(number, epoch, reached)

    def last_epoch(self, number: int) -> int:
        """Return the last epoch of a trial by its configuration."""
        if not self._epochs_differ:
            return max_epochs(self._study_file)
        params = self._in_memory.get_trial(number).params
        return config_of(self._study_file, params).training.epochs if params else max_epochs(self._study_file)

    def set_constraints(self, number: int, constraints: Mapping[str, float]) -> None:
        """Set a trial's constraint values; above 0 it violates a limit."""
        if number not in self._outside_space:
            for key, value in constraints.items():
                self._in_memory.set_trial_system_attr(number, key, value)

    def tell(self, number: int, state: TrialState, values: Sequence[float]) -> None:
        """Set the final state and values of a trial."""
        self._ids.pop(number, None)
        if number not in self._outside_space:
            self._in_memory.set_trial_state_values(number, state, values or None)
            self._add(self._in_memory.get_trial(number))

    def attrs(self, number: int) -> dict[str, Any]:
        """Return the attributes of a trial that pruner and sampler need after a restart."""
        return stored_attrs(self._in_memory.get_trial(number).system_attrs)


def stored_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes to store: rungs, constraints and generations, but not CMA-ES's pickles."""
    return {key: value for key, value in attrs.items() if key.startswith((HYPERBAND_RUNG, CONSTRAINT, GENERATION))}
