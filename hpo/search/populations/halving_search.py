"""The search of a network study with successive halving: populations train from rung to rung.

A population trains up to the next rung; its members are then frozen: their trials stay RUNNING, claimed by this worker.
Of all trials that have reached a rung, also those of other workers, the best are promoted: thawed in whole populations
of members at the same epoch. New configurations are sampled while no rung has a whole population to promote, so that
stacks stay full. Trials that cannot be promoted any more end as pruned. A worker with nothing left to train takes over
promoted trials that another worker has frozen, where it can read their states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial, TrialState

from hpo.errors import StudyClosedError
from hpo.search.checkpoints.frozen_member import FrozenMember
from hpo.search.checkpoints.frozen_members import FrozenMembers
from hpo.search.events import FrozenTrials, TrialsNotPromoted
from hpo.search.loop import trains_alone
from hpo.search.populations.population_run import PopulationRun, ending
from hpo.search.populations.population_search import PopulationSearch
from hpo.search.sampling.halving import Halving
from hpo.search.sampling.rungs import Judgement, Rungs, Unfinished
from hpo.search.scoring import objective_values
from hpo.search.study_records import directions
from hpo.storage import FROZEN, REOPENED, RUNG, WORKER, TrialFields
from hpo.training.stack import Member
from hpo.training.trainer import GroupKey


@dataclass(frozen=True)
class _Frozen:
    """A frozen trial of this worker, with what it shares with the members of its next population."""

    trial: FrozenTrial
    group: GroupKey
    values: tuple[float, ...]

    @property
    def epoch(self) -> int:
        """The rung at which the trial is frozen."""
        return self.group[1]


@dataclass(kw_only=True)
class HalvingSearch(PopulationSearch):
    """The search of a network study by successive halving."""

    halving: Halving
    _members_frozen: FrozenMembers = field(init=False)
    _frozen: dict[int, _Frozen] = field(init=False, default_factory=dict)
    _rungs: Rungs = field(init=False)
    _is_stopped: bool = field(init=False, default=False)
    _others: dict[int, FrozenTrial] = field(init=False, default_factory=dict)  # other workers' unfinished trials

    def __post_init__(self) -> None:
        self._rungs = Rungs(self.halving, directions(self.study), self.study.search.repeats)
        self._members_frozen = FrozenMembers(self.checkpoints)
        super().__post_init__()

    @property
    def _count_pruned(self) -> bool:
        return False  # most trials are pruned at the first rung, after a small part of their training

    @property
    def _reads_curves(self) -> bool:
        return True

    @property
    def _attribute_keys(self) -> list[str]:
        return [*super()._attribute_keys, RUNG]

    def close(self) -> None:
        """Requeue the frozen trials, after their states are written: any worker can then continue them."""
        super().close()
        if self._frozen:
            self._members_frozen.write()
            ids = {each.trial._trial_id: number for number, each in self._frozen.items()}
            lost = self.storage.requeue(ids)
            unfinished = {trial._trial_id for trial in self.storage.read_unfinished(lost, self._parts)}
            self.checkpoints.remove(
                {ids[trial_id] for trial_id in lost - unfinished}
            )  # ended, or their study is deleted
            self._forget(list(self._frozen))
            self._frozen_changed()

    def _claim_trials(self) -> None:
        """Claim, create or thaw trials. Of a study that is stopped, the frozen trials continue, and no other starts."""
        self._is_stopped = False
        self._members_frozen.write_permitted()
        try:
            super()._claim_trials()
        except StudyClosedError as closed:
            if closed.how != "stopped" or not self._frozen:
                raise
            self._is_stopped = True
            if not self._running:
                self._thaw(partly=True)

    def _population_run(self, group: list[Member]) -> PopulationRun:
        """Return the training of one population up to the next rung."""
        run = super()._population_run(group)
        stop = self.halving.next_stop(group[0].epoch, group[0].config.training.epochs)
        run.freeze_at(stop, self._freeze, self._members_frozen.write_permitted)
        return run

    def _sync(self) -> None:
        """Read the trials that other workers have created or ended, and the values that their trials have reached."""
        super()._sync()
        fields = TrialFields(curves=False, user_attrs=False, system_attrs="hpo:")
        others = self.storage.read_unfinished(self.history.unfinished - self.storage.claimed_ids, fields)
        self._others = {trial.number: trial for trial in others}
        self._learn(others)

    def _learn(self, trials: Sequence[FrozenTrial]) -> None:
        """Add the values that trials have reached at rungs, for the judgements and for the sampler."""
        self._tell_sampler(self._rungs.add_stored(trials))

    def _tell_sampler(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if reached := self._rungs.reached(number):
                self.history.freeze(number, *reached)

    def _claim_waiting(self) -> list[FrozenTrial]:
        """Claim waiting trials. Those that continue from a rung are frozen at once, and others take their places.

        A trial that had completed at that epoch before `--extend` raised the epochs was promoted to it: it trains on.
        """
        while not any(map(trains_alone, self._running.values())) and (claimed := super()._claim_waiting()):
            at_rung = {
                number: member
                for number, member in self._progress.items()
                if number in {trial.number for trial in claimed}
                and member.epoch in self.halving.rungs(member.member.config.training.epochs)
                and self._running[number].system_attrs.get(REOPENED) != member.epoch
            }
            self._learn([self._running[number] for number in at_rung])
            self._freeze(at_rung)
            for number in at_rung:
                self._progress.pop(number, None)
        return list(self._running.values())

    def _freeze(self, members: Mapping[int, FrozenMember]) -> set[int]:
        """Freeze members at a rung; return the numbers of those whose claim was lost."""
        values = {
            number: objective_values(self.study, self.trainer, each.member.config, each.curve, each.seconds)
            for number, each in members.items()
        }
        lost = self._drop_lost_claims(
            self.storage.freeze({self.trial_id(n): (each.epoch, values[n]) for n, each in members.items()})
        )
        stored = {number: member for number, member in members.items() if number not in lost}
        for number, each in stored.items():
            self._rungs.add(number, each.epoch, values[number])
            self._frozen[number] = _Frozen(
                self._running.pop(number), self.trainer.group_key(each.member), values[number]
            )
        self._tell_sampler(stored)
        self._members_frozen.put(stored)
        self._members_frozen.write_permitted()
        self._frozen_changed()
        return lost

    def _thaw(self, partly: bool) -> bool:
        """Promote a population of frozen trials, from the highest rung that has one; return whether there was one.

        With `partly`, promote what there is, from the lowest rung: so all trials reach a rung before it is judged.
        """
        judged = self._judge()
        for rung in sorted(judged, reverse=not partly):
            while chosen := self._population_at(rung, judged[rung].promoted, partly):
                self._thaw_trials(chosen)
                if self._running:
                    return True
        return partly and not self._is_stopped and self._take_over(judged)

    def _judge(self) -> dict[int, Judgement]:
        """Return the judgement of each rung, after the trials that cannot be promoted any more have ended."""
        judged = self._rungs.judge(self._unfinished())
        if hopeless := {n for n, each in self._frozen.items() if n in judged[each.epoch].hopeless}:
            self._end_frozen(hopeless)
        return judged

    def _unfinished(self) -> Unfinished:
        """Return the trials that may still reach a rung: after a stop or a limit, no waiting or new trial."""
        goes_on = self._limit_reached is None and not self._is_stopped
        lasts = {
            number: self.history.last_epoch(number)
            for number in self.history.unfinished_numbers
            if number not in self._others or self._is_trained(self._others[number], goes_on)
        }
        at_rung = {number: each.epoch for number, each in self._frozen.items()}
        at_rung |= {number: rung for number, other in self._others.items() if (rung := self._rung_of(other))}
        to_ask = max(0, -(-self._missing // self.study.search.repeats)) if goes_on and self.history.can_ask else 0
        return Unfinished(lasts, to_ask, self.history.count, at_rung)

    def _rung_of(self, other: FrozenTrial) -> int | None:
        """Return the rung at which another worker's trial is frozen, or which a waiting trial has reached."""
        if other.state == TrialState.WAITING and (reached := self._rungs.reached(other.number)) is not None:
            return reached[0]
        return other.system_attrs.get(FROZEN)

    @staticmethod
    def _is_trained(other: FrozenTrial, goes_on: bool) -> bool:
        """Return whether a worker trains an unfinished trial, or will train it."""
        return WORKER in other.system_attrs if other.state == TrialState.RUNNING else goes_on

    def _population_at(self, rung: int, promoted: Sequence[int], partly: bool) -> list[int]:
        """Return frozen trials of a rung that can train together: a whole population, or with `partly` any number."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for number in promoted:
            frozen = self._frozen.get(number)
            if frozen is not None and frozen.epoch == rung:
                alone = number if trains_alone(frozen.trial) else None
                groups.setdefault((frozen.group, alone), []).append(number)
        largest = max(groups.values(), key=len, default=[])
        return largest[: self.population] if partly or len(largest) >= self.population else []

    def _thaw_trials(self, numbers: Sequence[int]) -> None:
        """Make frozen trials running ones; those whose state cannot be read any more start again."""
        trials = {number: self._frozen[number].trial for number in numbers}
        lost = self.storage.thaw({trial._trial_id for trial in trials.values()})
        self._write_requeued([number for number, trial in trials.items() if trial._trial_id in lost])
        members = self._members_frozen.take(numbers)
        self._forget(numbers)
        for number, trial in trials.items():
            if trial._trial_id not in lost:
                self._running[number] = trial
                if number in members:
                    self._progress[number] = members[number]
        self.history.restart(trial for number, trial in self._running.items() if number not in members)
        self._frozen_changed()

    def _take_over(self, judged: Mapping[int, Judgement]) -> bool:
        """Claim promoted trials that other workers have frozen, where their states can be read here."""
        for rung in sorted(judged):
            others = [self._others[number] for number in judged[rung].promoted if number in self._others]
            states = self._readable([trial for trial in others if trial.system_attrs.get(FROZEN) == rung], rung)
            ids = {self._others[number]._trial_id for number in states}
            claimed = self.storage.claim(ids, self.population, self.claim_conditions, frozen=True)
            self._running = {trial.number: trial for trial in claimed}
            self._separate_trials_that_train_alone(claimed)
            self.history.restart(self._running.values())
            unchanged = {number for number, trial in self._running.items() if trial.system_attrs.get(FROZEN) == rung}
            kept = list(self._running.values())
            self._continue(kept, {number: state for number, state in states.items() if number in unchanged})
            self._drop_lost_claims(self.storage.thaw({trial._trial_id for trial in self._running.values()}))
            if self._running:
                return True
        return False

    def _readable(self, trials: Iterable[FrozenTrial], rung: int) -> dict[int, FrozenMember]:
        """Return the states of up to a population of other workers' trials, where they can be read at this rung."""
        states: dict[int, FrozenMember] = {}
        for trial in trials:
            if len(states) == self.population:
                break
            state = self.checkpoints.peek(self._member(trial))
            if state is not None and state.epoch == rung:
                states[trial.number] = state
        return states

    def _end_frozen(self, numbers: Collection[int]) -> None:
        """End frozen trials as pruned."""
        self._running |= {number: self._frozen[number].trial for number in numbers}
        curves = {number: self._members_frozen.curve(number) for number in numbers}
        endings = [
            (n, ending(self.trial_id(n), TrialState.PRUNED, self._pruned_values(n), curve, self.history.attrs(n)))
            for n, curve in curves.items()
        ]
        lost = self.end(endings)
        self._write_requeued(lost)
        self._forget(numbers)
        self.checkpoints.remove(set(numbers) - lost)
        if ended := tuple(sorted(set(numbers) - lost)):
            self.on_event(TrialsNotPromoted(ended))
        self._frozen_changed()

    def _write_requeued(self, lost: Collection[int]) -> None:
        """Write the states of frozen trials whose claims were lost, and which wait, as after a pause: they continue."""
        members = self._members_frozen.take(lost)
        waiting = self.waiting_among({self._frozen[number].trial._trial_id for number in lost}) if lost else set()
        if self.checkpoints.enabled and waiting:
            self.checkpoints.write({number: member for number, member in members.items() if number in waiting})

    def _pruned_values(self, number: int) -> tuple[float, ...]:
        """Return the last value of a frozen trial, as Optuna's pruned trials have; of several metrics all values."""
        values = self._frozen[number].values
        return values if len(values) > 1 else (self._members_frozen.curve(number)[self.study.search.first_metric][-1],)

    def _forget(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            self._frozen.pop(number, None)
            self._members_frozen.drop(number)

    def _frozen_changed(self) -> None:
        counts = Counter(self._members_frozen.epochs.values())
        self.on_event(FrozenTrials(tuple(sorted(counts.items()))))
