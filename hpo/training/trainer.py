"""The objective: the hyperparameters of K trials in, their learning curves out.

`Objective.train` is the population's own generator, with two things around it: members that do not fit into memory
together train in smaller populations, and `precision = "auto"` means what was found fastest. `Objective.run` trains
members that are no trials of a search, of any shapes, to their end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby

import torch

from hpo.errors import HpoError, InterruptionError
from hpo.studyfile import Config
from hpo.studyfile.models import is_minimized
from hpo.training.device_split import DeviceSplit
from hpo.training.devices import is_out_of_memory
from hpo.training.grouping import Architectures
from hpo.training.networks.weights import State
from hpo.training.population import EpochResult, train
from hpo.training.size import count_parameters
from hpo.training.stack import Member
from hpo.training.stacking.trace import CannotStackError


@dataclass
class Outcome:
    """What a member came to: its learning curve (metric -> a value an epoch), why it failed, if it did, its weights.

    The curve of one that failed ends with the epoch before. `state` is there where it was asked for.
    """

    curve: dict[str, list[float]] = field(default_factory=dict)
    failed: str | None = None
    state: State | None = field(default=None, repr=False)


class Trainer:
    """Trains members on one split on one device.

    `say` is told, once, that populations had to be made smaller. `timeout_s` is how long a population may take.
    """

    def __init__(
        self, split: DeviceSplit, auto_precision: str, say: Callable[[str], None], timeout_s: float | None = None
    ) -> None:
        self._split, self._auto, self._say, self._timeout_s = split, auto_precision, say, timeout_s
        self._most: int | None = None
        self._parameters: dict[str, int] = {}
        self._architectures = Architectures(split, say)

    @property
    def image_bytes(self) -> int:
        """The memory that the split's images take on the device."""
        return self._split.train.nbytes + self._split.validation.nbytes

    def parameters(self, config: Config) -> int:
        """Return how many parameters a network of this configuration has. Raises HpoError where none can be built."""
        key = config.network.model_dump_json(exclude={"activation", "init", "dropout"})  # which change no shape
        if key not in self._parameters:
            shape, classes = self._split.shape, self._split.classes
            self._parameters[key] = count_parameters(config.network, shape, classes)
        return self._parameters[key]

    def groups(self, members: Sequence[Member]) -> list[list[Member]]:
        """Return the members in populations: those of one shape together, in the order of their numbers."""
        shared = {member.number: self._architectures.population(member) for member in members}
        ordered = sorted(members, key=lambda member: (shared[member.number], member.number))
        groups = [list(group) for _, group in groupby(ordered, key=lambda member: shared[member.number])]
        return sorted(groups, key=lambda group: group[0].number)

    def train(self, members: Sequence[Member]) -> Generator[EpochResult, Collection[int], None]:
        """Train members of one shape: see `population.train`. Out of memory, halves train one after the other.

        The epochs of a half begin at 1 again, each with the metrics of that half's members only.
        """
        most = self._most or len(members)
        if most < len(members):
            for start in range(0, len(members), most):  # a part that proves too large is made smaller in its turn
                yield from self.train(members[start : start + most])
            return
        precision = members[0].config.training.precision
        try:
            chosen = self._auto if precision == "auto" else precision
            yield from train(members, self._split, chosen, self._timeout_s, self._architectures.stacks(members[0]))
            return
        except CannotStackError as error:  # not these together, though two such modules were
            if len(members) == 1 or members[0].config.network.kind != "module":
                raise
            self._say(f"{error}; these {len(members)} trials train one at a time")
            together = False
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if len(members) == 1:
                raise HpoError(f"a single network does not fit into the memory of {self._split.device}") from error
            together = True
        if not together:
            for member in members:
                yield from self.train([member])
            return
        # Outside the handler: its traceback would keep the population's tensors alive.
        if self._most is None:
            self._say(f"out of memory with {len(members)} networks at once: going on with half of that")
        self._most = len(members) // 2
        if self._split.device.type == "cuda":
            torch.cuda.empty_cache()
        yield from self.train(members)

    def run(
        self,
        members: Sequence[Member],
        *,
        metric: str,
        stop: threading.Event,
        last: int | None = None,
        keep: bool = False,
        on_epoch: Callable[[EpochResult], None] = lambda result: None,
    ) -> dict[int, Outcome]:
        """Train members to their end, in as many populations as they have shapes; return outcomes by their numbers.

        A member's end is its last epoch, epoch `last` where that is before, or the one in which its patience with
        `metric` is over. With `keep` an outcome holds the weights after it. Raises InterruptionError where `stop` is
        set before the last of them has ended; what the training raises goes through, for nothing is stored here.
        """
        outcomes = {member.number: Outcome() for member in members}
        for group in self.groups(members):
            patience = {member.number: member.config.training.patience for member in group}
            epochs_of_all = group[0].config.training.epochs
            end = min(epochs_of_all, last or epochs_of_all)
            ended: set[int] = set()
            _check(stop)
            with closing(self.train(group)) as epochs:
                result = next(epochs, None)
                while result is not None:
                    left = _note(result, outcomes, ended)
                    done = [
                        n
                        for n in left
                        if result.epoch == end or has_stopped_improving(patience[n], left[n].curve[metric], metric)
                    ]
                    if keep:
                        for number, state in result.states(done).items():
                            outcomes[number].state = state
                    ended |= {*done, *result.failed}
                    on_epoch(result)
                    if len(ended) < len(group):
                        _check(stop)
                    result = _next(epochs, ended)
        return outcomes


def has_stopped_improving(patience: int | None, values: Sequence[float], metric: str) -> bool:
    """Return whether the last `patience` of a metric's values, one an epoch, are no better than the best before."""
    if patience is None or len(values) <= patience:
        return False
    best = min if is_minimized(metric) else max
    return best(values) == best(values[:-patience])


def _note(result: EpochResult, outcomes: dict[int, Outcome], ended: Collection[int]) -> dict[int, Outcome]:
    """Take an epoch down; return the outcomes of those of its members that are well and had not ended before.

    A population that had to be made smaller begins again, with those that have ended.
    """
    well = [number for number in result.metrics if number not in ended]
    for number in well:
        if result.epoch == 1:
            outcomes[number] = Outcome({metric: [] for metric in result.metrics[number]})
        for metric, value in result.metrics[number].items():
            outcomes[number].curve[metric].append(value)
    for number in result.failed.keys() - ended:
        outcomes[number].failed = result.failed[number]
    return {number: outcomes[number] for number in well}


def _next(epochs: Generator[EpochResult, Collection[int], None], ended: Collection[int]) -> EpochResult | None:
    try:
        return epochs.send(ended)
    except StopIteration:
        return None


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise InterruptionError("stopped before the training was over; nothing of it is kept")
