"""Train trials of any settings on one split: group them into populations, fit populations to memory, train.

`Trainer.train` is the generator of a population (see `population.train`). It trains in smaller populations where memory
is too small, and replaces `precision = "auto"` by the fastest precision. `Trainer.run` trains members that are not
trials of a running search, such as those of `hpo verify`, until their last epochs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch

from hpo.errors import HpoError, InterruptionError
from hpo.studyfile import Config
from hpo.training.device_data import DeviceSplit, steps_per_epoch
from hpo.training.devices import is_out_of_memory
from hpo.training.early_stopping import has_stopped_improving
from hpo.training.grouping import Grouping, shared_settings, stack_key
from hpo.training.networks.weights_file import State
from hpo.training.population import EpochResult, train
from hpo.training.size import count_parameters, shape_key
from hpo.training.speed.choices import choose_stack_size, pays
from hpo.training.stack import Member
from hpo.training.stacking.tracing.trace import CannotStackError, TraceCache


@dataclass
class Outcome:
    """A member's learning curve (metric -> one value per epoch), its failure reason, if any, and its final weights.

    The curve of a failed member ends with the epoch before the failure. `state` is None unless weights were requested.
    """

    curve: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None
    state: State | None = field(default=None, repr=False)


MAX_TRACES = 32
"""Architectures whose graphs a trainer stores."""

GroupKey = tuple[str, int, int]
"""Key of a group (see `Grouping.key`), epoch and index of the split that the members of a population share."""


class Trainer:
    """Trains members on their splits, which are on one device; `others` are the splits of index 1 and up.

    `auto_precision` replaces `precision = "auto"`. `warn` is called with a line of text for a population that had to be
    made smaller, and for modules that cannot be stacked; `note` with one where stacks of another size than one a core
    were measured to be faster. `timeout_s` limits the training time of each population. With
    `apart`, networks of different shapes train in different populations, so that each has its own time.
    """

    def __init__(
        self,
        split: DeviceSplit,
        auto_precision: str,
        warn: Callable[[str], None],
        timeout_s: float | None = None,
        others: Sequence[DeviceSplit] = (),
        apart: bool = False,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._split, self._auto, self._warn, self._timeout_s = split, auto_precision, warn, timeout_s
        self._apart, self._note = apart, note
        self._stack_sizes: dict[str, int] = {}  # group and stack key -> most members of a stack
        self._max_members: int | None = None
        self._parameters: dict[str, int] = {}
        self._splits = (split, *others)
        self._grouping = Grouping(split, warn, apart)
        self._traces: dict[str, TraceCache] = {}  # architecture -> its graph

    @property
    def split_bytes(self) -> int:
        """Return the device memory of the examples of all splits, in bytes."""
        return sum(split.nbytes for split in self._splits)

    def parameters(self, config: Config) -> int:
        """Return the number of parameters of a configuration's network. Raises HpoError if it cannot be built."""
        key = shape_key(config.network)
        if key not in self._parameters:
            shape, classes = self._split.shape, self._split.task.outputs
            self._parameters[key] = count_parameters(config.network, shape, classes)
        return self._parameters[key]

    def groups(self, members: Sequence[Member]) -> list[list[Member]]:
        """Return the members in groups that can train as one population, ordered by their numbers.

        The members of a group have trained the same number of epochs.
        """
        groups: dict[GroupKey, list[Member]] = {}
        for member in sorted(members, key=lambda member: member.number):
            groups.setdefault(self.group_key(member), []).append(member)
        return list(groups.values())

    def group_key(self, member: Member) -> GroupKey:
        """Return a key that is equal for members that can train as one population."""
        return self._grouping.key(member), member.epoch, member.split

    def can_freeze(self, member: Member) -> bool:
        """Return whether the member can continue from its state after an epoch as it would without the pause."""
        return self._grouping.can_freeze(member)

    def train(self, members: Sequence[Member], spent_s: float = 0) -> Generator[EpochResult, Collection[int], None]:
        """Train members of one group: see `population.train`. Where memory is too small, train them half by half.

        The epochs of each half begin anew, with the metrics of the members of that half only. `spent_s` is the part of
        the timeout that earlier populations of the members have taken, in seconds. Raises HpoError where a single
        member does not fit into memory, and the errors of `population.train`.
        """
        limit = self._max_members or len(members)
        if limit < len(members):
            for start in range(0, len(members), limit):  # a part that is still too large is halved again
                yield from self.train(members[start : start + limit], spent_s)
            return
        precision = members[0].config.training.precision
        try:
            used = self._auto if precision == "auto" else precision
            stacked = self._grouping.can_stack(members[0])
            split, group = self._splits[members[0].split], self._grouping.key(members[0])

            def traces(architecture: str) -> TraceCache:
                return self._traces_of(f"{group} {architecture}")

            sizes = self._fastest_sizes(members, split, used) if stacked else {}
            yield from train(members, split, used, self._timeout_s, stacked, spent_s, traces, sizes)
            return
        except CannotStackError as error:  # these members cannot be stacked, although two such modules could
            if len(members) == 1 or members[0].config.network.kind != "module":
                raise
            self._warn(f"{error}; these {len(members)} trials train one at a time")
            parts, reason = [[member] for member in members], ""
        except HpoError:
            parts, reason = self._architectures(members), ""
            invalid = self._invalid(parts) if len(parts) > 1 else {}
            if len(parts) == 1 or len(invalid) == len(members):
                raise
            if invalid:
                yield from self._train_valid(members, invalid, spent_s)
                return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(members) == 1:
                problem = f"a single network does not fit into the memory of {self._split.device}"
                raise HpoError(f"{problem}: use a smaller network or batch size") from error
            parts, reason = self._architectures(members), "out of memory with networks of several shapes at once"
        # Outside the handler: its traceback would keep the population's tensors alive.
        if len(parts) > 1:
            if reason:
                self._warn(f"{reason}: continuing with one shape at a time")
            yield from self._train_apart(parts, spent_s)
            return
        if self._max_members is None:
            self._warn(f"out of memory with {len(members)} networks at once: continuing with half as many")
        self._max_members = len(members) // 2
        if self._split.device.type == "cuda":
            torch.cuda.empty_cache()
        yield from self.train(members, spent_s)

    @staticmethod
    def _architectures(members: Sequence[Member]) -> list[list[Member]]:
        """Return the members of each architecture."""
        found: dict[str, list[Member]] = {}
        for member in members:
            found.setdefault(shared_settings(member.config), []).append(member)
        return list(found.values())

    def _invalid(self, parts: Sequence[Sequence[Member]]) -> dict[int, str]:
        """Return the members whose networks cannot be built, by number, with the reasons."""
        found: dict[int, str] = {}
        for part in parts:
            try:
                self.parameters(part[0].config)
            except HpoError as error:
                found |= dict.fromkeys((member.number for member in part), str(error))
        return found

    def _train_valid(
        self, members: Sequence[Member], invalid: dict[int, str], spent_s: float
    ) -> Generator[EpochResult, Collection[int], None]:
        """Train the members that are not invalid; the invalid ones fail in the first epoch."""
        for reason in dict.fromkeys(invalid.values()):
            self._warn_failed(list(invalid.values()).count(reason), reason)
        with closing(self.train([member for member in members if member.number not in invalid], spent_s)) as epochs:
            result: EpochResult | None = next(epochs)
            while result is not None:
                result = _send(epochs, (yield replace(result, failed={**invalid, **result.failed})) or ())
                invalid = {}

    def _train_apart(
        self, parts: Sequence[list[Member]], spent_s: float
    ) -> Generator[EpochResult, Collection[int], None]:
        """Train populations one after the other; members that cannot be trained fail without the others."""
        for part in parts:
            try:
                yield from self.train(part, spent_s)
            except HpoError as error:
                self._warn_failed(len(part), str(error))
                reasons = dict.fromkeys((member.number for member in part), str(error))
                yield EpochResult(part[0].epoch + 1, {}, reasons, lambda numbers: {}, lambda numbers: {})

    def _warn_failed(self, count: int, reason: str) -> None:
        self._warn(f"{count} trial{'s' * (count > 1)} failed: {reason}")

    def _fastest_sizes(self, members: Sequence[Member], split: DeviceSplit, precision: str) -> dict[str, int]:
        """Return the most members of a stack, by `stack_key`: measured once, with members whose training is long.

        Nothing is measured on a GPU, which has one stack, nor with `apart`, where the trials' times are results.
        """
        if split.device.type != "cpu" or self._apart:
            return {}
        found: dict[str, int] = {}
        by_key: dict[str, list[Member]] = {}
        for member in members:
            by_key.setdefault(stack_key(member.config), []).append(member)
        for key, alike in by_key.items():
            group = f"{self._grouping.key(alike[0])} {key}"
            if group not in self._stack_sizes and len(alike) > 1 and pays(2 * len(alike), _steps(alike, split)):
                chosen = choose_stack_size(alike[0], len(alike), split, precision, self._timeout_s)
                self._stack_sizes[group] = chosen.members
                if chosen.slower:
                    size = f"stacks of {chosen.members} trials" if chosen.members > 1 else "trials one at a time"
                    self._note(f"{size}: {chosen.speedup:.2f} times as fast as stacks of {chosen.slower} here")
            if group in self._stack_sizes:
                found[key] = self._stack_sizes[group]
        return found

    def _traces_of(self, architecture: str) -> TraceCache:
        """Return the cache of an architecture's graph; drop the one used longest ago where there are too many."""
        self._traces[architecture] = found = self._traces.pop(architecture, None) or TraceCache()
        if len(self._traces) > MAX_TRACES:
            del self._traces[next(iter(self._traces))]
        return found

    def run(
        self,
        members: Sequence[Member],
        *,
        metric: str,
        minimized: bool,
        stop: threading.Event,
        last_epoch: int | None = None,
        with_weights: bool = False,
        on_epoch: Callable[[EpochResult], None] = lambda result: None,
    ) -> dict[int, Outcome]:
        """Train members of any settings until they end; return their outcomes by number.

        A member ends with its last configured epoch, with epoch `last_epoch`, or by early stopping on `metric`,
        whichever comes first. `minimized`: lower values of the metric are better. Calls `on_epoch` after each epoch.

        Raises InterruptionError where `stop` is set before all members have ended, and the errors of `train`.
        """
        outcomes = {member.number: Outcome() for member in members}
        for group in self.groups(members):
            patience = {member.number: member.config.training.patience for member in group}
            configured = group[0].config.training.epochs
            end = min(configured, last_epoch or configured)
            ended: set[int] = set()
            _raise_if_stopped(stop)
            with closing(self.train(group)) as epochs:
                result = next(epochs, None)
                while result is not None:
                    trained = _record(result, outcomes, ended)
                    done = [
                        number
                        for number, outcome in trained.items()
                        if result.epoch == end
                        or has_stopped_improving(patience[number], outcome.curve[metric], minimized)
                    ]
                    if with_weights:
                        for number, state in result.states(done).items():
                            outcomes[number].state = state
                    ended |= {*done, *result.failed}
                    on_epoch(result)
                    if len(ended) < len(group):
                        _raise_if_stopped(stop)
                    result = _send(epochs, ended)
        return outcomes


def _steps(members: Sequence[Member], split: DeviceSplit) -> int:
    """Return the training steps that are left to members, in all."""
    settings = [(each.config.training, each.epoch) for each in members]
    return sum((each.epochs - epoch) * steps_per_epoch(len(split.train), each.batch_size) for each, epoch in settings)


def _record(result: EpochResult, outcomes: dict[int, Outcome], ended: Collection[int]) -> dict[int, Outcome]:
    """Add an epoch to the outcomes; return those of the members that trained in it and had not ended before.

    A population that had to be made smaller starts again from epoch 1, including members that have ended.
    """
    trained = [number for number in result.metrics if number not in ended]
    for number in trained:
        if result.epoch == 1:
            outcomes[number] = Outcome({metric: [] for metric in result.metrics[number]})
        for metric, value in result.metrics[number].items():
            outcomes[number].curve[metric].append(value)
    for number in result.failed.keys() - ended:
        outcomes[number].failed = result.failed[number]
    return {number: outcomes[number] for number in trained}


def _send(epochs: Generator[EpochResult, Collection[int], None], dropped: Collection[int]) -> EpochResult | None:
    """Send the members to drop; return the next epoch, or None after the last one."""
    try:
        return epochs.send(dropped)
    except StopIteration:
        return None


def _raise_if_stopped(stop: threading.Event) -> None:
    if stop.is_set():
        raise InterruptionError("stopped before the training finished; its results are discarded")
