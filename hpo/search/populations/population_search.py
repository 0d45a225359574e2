"""The search of a network study: trials are sampled, stored and trained one population at a time.

The trainer trains members; the storage takes their results. Nothing here knows layers or SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo.errors import StudyClosedError, UsageError
from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.training_checkpoints import TrainingCheckpoints
from hpo.search.checkpoints.weights import CheckpointWriter
from hpo.search.enqueueing import checked
from hpo.search.events import Reason, TrialsFailed, TrialsLeftOut
from hpo.search.loop import Search
from hpo.search.plan import member_of
from hpo.search.points import FIXED, trial_seed
from hpo.search.populations.population_run import PopulationRun
from hpo.search.sampling.pruners import HYPERBAND_RUNG
from hpo.search.sampling.sampler_history import CONSTRAINT, SamplerHistory
from hpo.search.sampling.samplers import GENERATION
from hpo.search.space import Values, config_of, decode, distributions
from hpo.storage import FAILURE_REASON, TrialFields, TrialResult
from hpo.studyfile import Config, Study
from hpo.training.stack import Member
from hpo.training.trainer import Trainer
from hpo.usercode import UserCode, is_imported


@dataclass(kw_only=True)
class PopulationSearch(Search):
    """The search of a network study; `before` are completed trials of the studies in `search.start_from`.

    `checkpoints` writes and reads the states of trials in training.
    """

    study: Study
    trainer: Trainer
    code: UserCode
    checkpoints: TrainingCheckpoints
    before: Sequence[FrozenTrial] = ()
    history: SamplerHistory = field(init=False)
    writer: CheckpointWriter | None = field(init=False)
    _progress: dict[int, FrozenMember] = field(init=False, default_factory=dict)  # of running trials that continue

    def __post_init__(self) -> None:
        super().__post_init__()
        trials = self._read(-1, ())
        self.history = SamplerHistory(
            self.study, trials, self.before, self._constraints, count_pruned=self._count_pruned
        )
        self._learn(trials)
        keeps = self.study.first_settings.training.keep != "none"
        self.writer = (
            CheckpointWriter(self.study, self.claim_conditions, self.storage, self.on_event) if keeps else None
        )

    @property
    def _count_pruned(self) -> bool:
        """Whether `search.patience` counts pruned trials."""
        return True

    @property
    def idle_bytes(self) -> int:
        """The bytes of the examples on the device."""
        return self.trainer.split_bytes

    @property
    def _parts(self) -> TrialFields:
        """The parts of trials that the sampler and the pruner read."""
        keys = self._attribute_keys
        attrs = None if not keys else keys[0] if len(keys) == 1 else ""
        return TrialFields(self._reads_curves, user_attrs=False, system_attrs=attrs)

    @property
    def _reads_curves(self) -> bool:
        """Whether the pruner or the sampler reads learning curves of pruned trials."""
        return self.study.search.pruner in ("median", "hyperband")

    @property
    def _attribute_keys(self) -> list[str]:
        """The prefixes of the system attributes that the sampler and the pruner read."""
        keys = [HYPERBAND_RUNG] * (self.study.search.pruner == "hyperband")
        keys += [CONSTRAINT] * (self._limit_of_parameters is not None)
        return keys + [GENERATION] * (self.study.search.sampler == "nsga2")

    @property
    def _limit_of_parameters(self) -> int | None:
        return self.study.search.limits.parameters

    def _create(self, count: int) -> list[FrozenTrial]:
        """Sample new trials and store them as RUNNING; try again where another worker has stored trials meanwhile."""
        space = distributions(self.study)
        while not self.stop.is_set() and (asked := self.history.ask(min(count, self._missing), self.stop.is_set)):
            templates = [
                create_trial(
                    state=TrialState.RUNNING,
                    params=values,
                    distributions={name: space[name] for name in values},
                    user_attrs={"seed": trial_seed(self.study, number)},
                )
                for number, values in asked
            ]
            try:
                created = self.storage.create_trials(self._study_id, templates, asked[0][0], self.claim_conditions)
            except BaseException:
                self.history.forget(asked)
                raise
            if created:
                self.history.stored(created)
                return created
            self.history.forget(asked)
            self._catch_up()
        return []

    def _train(self) -> None:
        """Train the running trials, one population for each architecture and epoch.

        Writes the states of trials that a stop keeps from continuing.
        """
        if not is_imported(self.code):  # another study in this process has imported changed files since
            raise StudyClosedError(f"study '{self.study.name}': its code has changed on this machine", "changed")
        try:
            for group in self.trainer.groups(self._members()):
                if self.stop.is_set():
                    return
                run = self._population_run(group)
                self._check_repeated_error(run.train(), run.error_line)
        finally:
            if self.checkpoints.enabled and self._progress:
                self.checkpoints.write({n: each for n, each in self._progress.items() if n in self._running})
            self._progress.clear()

    def end_if_done(self) -> Reason | None:
        """Store the end of the study, and remove the training states that killed workers left of trials that ended."""
        reason = super().end_if_done()
        if reason is not None:
            extendable = self.writer.best() if self.writer is not None and self.writer.keep == "last" else set()
            self.checkpoints.remove(set(range(self.history.count)) - self.history.unfinished_numbers - extendable)
        return reason

    def _population_run(self, group: list[Member]) -> PopulationRun:
        """Return the training of one population until its members end."""
        return PopulationRun(
            self,
            self.study,
            self.trainer,
            self.history,
            self.writer,
            group,
            frozen={member.number: self._progress.pop(member.number) for member in group if member.state is not None},
            checkpoints=self.checkpoints,
        )

    @property
    def _free_places(self) -> int:
        """The number of new trials that can train together with the running ones that start at epoch 1."""
        at_start = len(self._running.keys() - self._progress.keys())
        return self.population - at_start if at_start or not self._running else 0

    def _claim_waiting(self) -> list[FrozenTrial]:
        """Claim waiting trials. Those whose state can be read continue, with their learning curves up to that epoch."""
        claimed = super()._claim_waiting()
        self._continue(claimed)
        return claimed

    def _continue(
        self, claimed: Sequence[FrozenTrial], states: Mapping[int, FrozenMember] = MappingProxyType({})
    ) -> None:
        """Read the states of claimed trials, except those in `states`, and restore their learning curves."""
        new = {trial.number: trial for trial in claimed}
        self._progress = {n: each for n, each in self._progress.items() if n in self._running.keys() - new.keys()}
        for number, trial in new.items():
            progress = states.get(number) or (self.checkpoints.read(self._member(trial)) if trial.params else None)
            if progress is not None:
                self._progress[number] = progress
        metric = self.study.search.first_metric
        continued = {number: each for number, each in self._progress.items() if number in new}
        curves = {number: dict(enumerate(each.curve[metric], 1)) for number, each in continued.items()}
        lost = self.storage.report_curves({self.trial_id(number): curve for number, curve in curves.items()})
        for number in self._drop_lost_claims(lost):
            del self._progress[number], curves[number]
        for number, curve in curves.items():
            for epoch, value in curve.items():
                self.history.report(epoch, {number: value})

    def _member(self, trial: FrozenTrial) -> Member:
        """Return a trial as a member. Raises UsageError for parameters outside the search space."""
        number = trial.number
        if number in self._progress:
            return self._progress[number].member
        return member_of(self.study, number, config_of(self.study, trial.params))

    def _members(self) -> list[Member]:
        """Return the running trials as members; fail those whose parameters are outside the search space.

        Trials whose networks exceed `search.limits` end untrained.
        """
        members, endings = [], []
        for number, trial in list(self._running.items()):
            try:
                if FIXED in trial.system_attrs and not trial.params and not self._add_parameters(trial):
                    continue
                members.append(self._member(trial))
            except UsageError as error:
                endings.append(
                    (number, TrialResult(trial._trial_id, TrialState.FAIL, (), {FAILURE_REASON: str(error)}))
                )
        members = self._within_limits(members)
        lost = self.end(endings)
        for number, ending in endings:
            if number not in lost:
                self.on_event(TrialsFailed((number,), ending.user_attrs[FAILURE_REASON]))
        return members

    def _add_parameters(self, trial: FrozenTrial) -> bool:
        """Sample the open parameters of a trial that another program enqueued; return whether its claim still stands.

        Raises UsageError where the enqueued values are outside the search space.
        """
        number, space = trial.number, distributions(self.study)
        if self.study.search.repeats > 1:
            raise UsageError("enqueued: not possible with search.repeats, which numbers the trials; use search.points")
        known = {parameter.name: parameter for parameter in self.study.parameters}
        enqueued = trial.system_attrs[FIXED].items()  # a list may be given as the text that Optuna stores for it
        given = {name: decode(known[name], value) if name in known else value for name, value in enqueued}
        _, values = self.history.ask_for(checked(self.study, given, "enqueued"), number)
        params = {name: (space[name].to_internal_repr(value), space[name]) for name, value in values.items()}
        trial.params, trial.distributions = values, {name: space[name] for name in values}
        if self.storage.update_trial(
            trial._trial_id, params=params, user_attrs={"seed": trial_seed(self.study, number)}
        ):
            return True
        self._drop_lost_claims({trial._trial_id})
        return False

    def _constraints(self, values: Values) -> dict[str, float]:
        """Return a trial's constraint values, as Optuna stores them: empty without `search.limits`."""
        limit = self._limit_of_parameters
        return {} if limit is None else self._constraints_of(config_of(self.study, values), limit)

    def _constraints_of(self, config: Config, limit: int) -> dict[str, float]:
        return {f"{CONSTRAINT}parameters": float(self.trainer.parameters(config) - limit)}

    def _within_limits(self, members: list[Member]) -> list[Member]:
        """Return the members within `search.limits`; end the others, as infeasible trials are ended in Optuna."""
        limit, over = self._limit_of_parameters, dict[int, TrialResult]()
        if limit is None:
            return members
        for member in members:
            try:
                constraints = self._constraints_of(member.config, limit)
            except Exception:  # noqa: BLE001, S112 - training builds the same network, and fails the trial
                continue
            self.history.set_constraints(member.number, constraints)
            if max(constraints.values()) > 0:
                parameters = self.trainer.parameters(member.config)
                reason = f"{parameters:,} parameters, more than search.limits.parameters = {limit:,}"
                trial_id = self.trial_id(member.number)
                over[member.number] = TrialResult(
                    trial_id, TrialState.PRUNED, (), {FAILURE_REASON: reason}, constraints
                )
        lost = self.end(list(over.items()))
        if left_out := tuple(number for number in over if number not in lost):
            self.on_event(TrialsLeftOut(left_out, f"more than {limit:,} parameters (search.limits.parameters)"))
        return [member for member in members if member.number not in over]
